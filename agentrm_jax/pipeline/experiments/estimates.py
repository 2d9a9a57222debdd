"""Expected cost of the stages of an experiment: tasks, tokens and seconds.

Tokens are counted from the configuration: episodes x turns x tokens of a reply, updates x rows x
tokens of a row. Rates are those of the stages that have ended in the same folder, else assumed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from agentrm_jax.evaluation.config import method_runs
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.experiments.jobs import Job
from agentrm_jax.runtime.run_directory import STAGE_FILE, read_stage_record

STEPS = 10
"""Assumed turns of an episode without `max_steps`."""
REPLY = 0.5
"""Assumed tokens of a reply, as a fraction of `max_tokens`."""
DECODED, TRAINED, TASKS = 1000.0, 5000.0, 70.0
"""Assumed rates on two CPU cores with a model of 1M parameters: tokens decoded and trained on in a
second; expert tasks in a second."""
START = 8.0
"""Assumed seconds in which a stage with a model loads and compiles."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The expected cost of a stage.

    Attributes:
      tasks: Tasks that it works on.
      decoded: Tokens that are decoded.
      trained: Tokens that are trained on.
      seconds: Seconds; 0 if it is done.
    """

    tasks: int = 0
    decoded: float = 0.0
    trained: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> float:
        return self.decoded + self.trained


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Tokens in a second.

    Attributes:
      decoded: Tokens decoded.
      trained: Tokens trained on.
      measured: Stages that have ended and that the rates are taken from.
    """

    decoded: float = DECODED
    trained: float = TRAINED
    measured: int = 0


def rates(jobs: Iterable[Job]) -> Rates:
    """Returns the rates of the stages that have ended; without any the assumed ones."""
    decoded, decoding, trained = 0.0, 0.0, []
    measured = 0
    for job in jobs:
        if job.state != "done":
            continue
        record = read_stage_record(job.folder / STAGE_FILE)
        summary = record["summary"]
        # An interrupted stage counts the tokens of all its starts here, in its summary the last.
        if tokens := record.get("tokens"):
            decoded, decoding = decoded + tokens, decoding + record["seconds"]
            measured += 1
        if summary.get("tokens_per_second"):
            trained.append(float(summary["tokens_per_second"]))
            measured += 1
    return Rates(
        decoded=decoded / decoding if decoding else DECODED,
        trained=sum(trained) / len(trained) if trained else TRAINED,
        measured=measured,
    )


def estimate(job: Job, found: Rates) -> Estimate:
    """Returns the expected cost of a stage.

    Args:
      job: The stage.
      found: Rates; see `rates`.
    """
    config = job.config
    counts = _COUNTS.get(job.spec.name)
    tasks, decoded, trained = (0, 0.0, 0.0) if counts is None else counts(config)
    seconds = decoded / found.decoded + trained / found.trained
    seconds += START if seconds else 0.0
    if job.spec.name == "experts":
        seconds += tasks / TASKS
    return Estimate(
        tasks=tasks,
        decoded=decoded,
        trained=trained,
        seconds=0.0 if job.state == "done" else seconds,
    )


def _turns(config: RunConfig) -> float:
    """Turns of an episode, at most."""
    each = [environment.max_steps or STEPS for environment in config.environments]
    return sum(each) / len(each)


def _experts(config: RunConfig) -> tuple[int, float, float]:
    return config.experts.num_tasks, 0.0, 0.0


def _sft(config: RunConfig) -> tuple[int, float, float]:
    return config.experts.num_tasks, 0.0, _trained(config.sft.fit, config.experts.num_tasks)


def _explore(config: RunConfig) -> tuple[int, float, float]:
    search, tasks = config.explore.search, config.explore.num_tasks
    turns = (
        tasks
        * search.num_iterations
        * (search.expansion_width + search.num_rollouts * _turns(config))
    )
    return tasks, turns * REPLY * config.explore.sampling.max_tokens, 0.0


def _label(config: RunConfig) -> tuple[int, float, float]:
    return config.explore.num_tasks, 0.0, 0.0


def _train_reward(config: RunConfig) -> tuple[int, float, float]:
    search = config.explore.search
    paths = config.explore.num_tasks * search.num_iterations * search.num_rollouts
    return config.explore.num_tasks, 0.0, _trained(config.train_rm.fit, paths)


def _sample(config: RunConfig) -> tuple[int, float, float]:
    tasks = config.explore.num_tasks
    turns = tasks * config.sample.num_samples * _turns(config)
    return tasks, turns * REPLY * config.sample.sampling.max_tokens, 0.0


def _train_implicit(config: RunConfig) -> tuple[int, float, float]:
    rows = config.explore.num_tasks * config.sample.num_samples
    return config.explore.num_tasks, 0.0, _trained(config.train_implicit.fit, rows)


def _evaluate(config: RunConfig) -> tuple[int, float, float]:
    most = config.evaluate.num_tasks or 100 * len(config.environments)  # lists of the paper
    beam = min(config.evaluate.beam_tasks or most, most)
    turns = 0.0
    for run in method_runs(config.evaluate, config.rewards):
        tasks = beam if run.on_beam_tasks else most
        turns += tasks * _turns(config) * _width(run.method, run.samples)
    return most, turns * REPLY * config.evaluate.sampling.max_tokens, 0.0


def _width(method: Any, samples: bool) -> float:
    """Turns that a method samples for one step of an answer: its widths; 5 if it has none."""
    if samples:
        return method.n
    if getattr(method, "temperature", None) == 0.0:
        return 1.0
    names = ("beam_width", "expansion_width", "num_particles", "num_subtrees", "num_iterations",
             "num_attempts", "num_samples", "most")  # fmt: skip
    widths = [w for name in names if isinstance(w := getattr(method, name, None), int)]
    return math.prod(widths) if widths else 5.0


def _trained(fit: Any, rows: int) -> float:
    """Tokens of a training stage; `rows` sequences fill half a row each, if updates are not set."""
    updates = fit.num_updates or math.ceil(fit.epochs * rows / 2 / fit.batch_size)
    return float(updates * fit.batch_size * fit.length)


_COUNTS = {
    "experts": _experts,
    "sft": _sft,
    "explore": _explore,
    "label": _label,
    "train-rm": _train_reward,
    "sample": _sample,
    "train-implicit": _train_implicit,
    "evaluate": _evaluate,
}
