"""A trained reward model at work without an environment; also from Python, in five lines."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import printable
from agentrm_jax.data.conversations import KIND
from agentrm_jax.data.render import Renderer
from agentrm_jax.engine import front
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.model.value import Readout
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.models import Model, is_model_directory
from agentrm_jax.pipeline.workspace import RESOLVED, Run
from agentrm_jax.reward.explicit import ExplicitScorer

_BATCH = 64  # trajectories whose scores are made together


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A trajectory's scores. `after_action` and `after_observation` have one for each step.

    Attributes:
      outcome: The return that is stored with it.
      start: Before any step.
      after_action: Before the environment has answered; None where the step is longer than all
        that may be kept.
      after_observation: The state behind the step; None behind a last step whose answer the file
        of conversations does not have.
      dropped_steps: How many steps did not fit into the context at the end: the oldest, which were
        left out, and those that were shortened.
    """

    task_id: str
    outcome: float
    start: float
    after_action: tuple[float | None, ...]
    after_observation: tuple[float | None, ...]
    dropped_steps: int

    @property
    def score(self) -> float:
        """Of the whole trajectory: the last that there is."""
        ends = (self.start, *self.after_action[-1:], *self.after_observation[-1:])
        return [end for end in ends if end is not None][-1]

    def to_json(self) -> dict[str, Any]:
        return {"task_id": self.task_id, "score": self.score, **dataclasses.asdict(self)}


class RewardModel:
    """A trained reward model. States are rendered as it was trained on them.

    Attributes:
      run: The run that it is of, or whose configuration was given.
      scorer: Scores states, as a search asks for it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        # A reply and its answer are two pieces here; a search reads them as one.
        engine = run.config.engine
        sizes = dataclasses.replace(engine, max_pieces=2 * engine.max_pieces)
        config = dataclasses.replace(run.config, engine=sizes)
        resized = dataclasses.replace(run, config=config)
        self.scorer = explicit_scorer(run.reward_model(), resized)

    def score(self, trajectories: Iterable[Trajectory]) -> Iterator[Scored]:
        """Scores at both ends of every step, in the order of the trajectories.

        Raises:
          UserError: A trajectory is of an environment that the run does not name, or a score is
            not finite.
        """
        remaining, number = iter(trajectories), 0
        while batch := list(itertools.islice(remaining, _BATCH)):
            for scored in self._score(batch):
                number += 1
                for score in (scored.start, *scored.after_action, *scored.after_observation):
                    check_finite(score, f"trajectory {number} (task {scored.task_id})")
                yield scored

    def _score(self, batch: Sequence[Trajectory]) -> Iterator[Scored]:
        asked: list[tuple[Trajectory, list[TokenSequence | None], int]] = []
        for trajectory in batch:
            shared = self.scorer.renderer.instruction(trajectory.task) is not None
            ends, dropped = self.scorer.renderer.both_ends(trajectory)
            parts = [
                None if pieces is None else TokenSequence(segments=pieces, shared_prefix=shared)
                for end in ends
                for pieces in end
            ]
            if _lacks_last_answer(trajectory):
                parts[-1] = None
            asked.append((trajectory, parts, dropped))
        wanted = [part for _, parts, _ in asked for part in parts if part is not None]
        found = iter(front.score(self.scorer.engine, wanted))
        for trajectory, parts, dropped in asked:
            scores = [None if part is None else next(found) for part in parts]
            start = scores[1]
            assert start is not None  # only a step can be without
            yield Scored(
                task_id=trajectory.task.task_id,
                outcome=trajectory.outcome,
                start=start,
                after_action=tuple(scores[2::2]),
                after_observation=tuple(scores[3::2]),
                dropped_steps=dropped,
            )


def open_reward_model(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> RewardModel:
    """A reward model of a run.

    Args:
      path: The run's folder, its `reward/explicit/model`, or a Hugging Face directory.
      config: A configuration that says how states are rendered and how large the engine is, in
        place of the run's.
      overrides: `--KEY=VALUE` of that configuration, for example `--engine.context=4096`.

    Raises:
      UserError: There is no such model, or no configuration to read it by.
    """
    directory = pathlib.Path(path)
    return RewardModel(Run(config=_config_for(directory, config, overrides), directory=directory))


def reward_directory(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> pathlib.Path:
    """Returns the folder that `open_reward_model` reads the model from.

    Raises:
      UserError: See `open_reward_model`.
    """
    directory = pathlib.Path(path)
    found = _config_for(directory, config, overrides)
    return Run(config=found, directory=directory).reward_directory


def check_finite(score: float | None, place: str) -> None:
    """Refuses a score that is not finite.

    Raises:
      UserError: It is NaN or infinite; names the place.
    """
    if score is not None and not math.isfinite(score):
        raise UserError(
            f"{printable(place)}: the reward model's score is {score}; its weights are damaged or "
            "do not fit --dtype: train or export it again"
        )


def _config_for(
    directory: pathlib.Path, config: str | os.PathLike[str] | None, overrides: Sequence[str]
) -> RunConfig:
    is_model = is_model_directory(directory)
    if not is_model and not (directory / RESOLVED).exists():
        raise UserError(
            f"{directory}: no reward model here; give the folder of a run, its "
            "reward/explicit/model, or what `agentrm export` wrote"
        )
    found = _read_config(directory, config, overrides)
    return dataclasses.replace(found, reward_model=str(directory)) if is_model else found


def _read_config(
    directory: pathlib.Path, config: str | os.PathLike[str] | None, overrides: Sequence[str]
) -> RunConfig:
    """The configuration that is given, else that of the run in which a folder lies."""
    if config is None:
        above = (directory, *directory.resolve().parents[:3])
        runs = [folder for folder in above if (folder / RESOLVED).exists()]
        if not runs:
            raise UserError(
                f"{directory}: lies in no run, so nothing says how it reads states; give the "
                "configuration that it was trained with (--config CONFIG)"
            )
        config = runs[0] / RESOLVED
    return load_config(pathlib.Path(config), overrides)


def explicit_scorer(model: Model, run: Run) -> ExplicitScorer:
    """A scorer with an engine of the run's sizes. The model's parameters are taken over."""
    engine = Engine.of(
        model.params["trunk"],
        model.config,
        run.config.engine,
        readout=Readout(model.head),
        head=model.params["value_head"],
        mesh=run.engine_mesh,
    )
    closed = run.config.reads_closing(model.tokenizer.foreign)
    context = run.config.engine.context
    renderer = Renderer(model.tokenizer, run.prompt_of, context, closed=closed)
    return ExplicitScorer(engine, renderer)


def _lacks_last_answer(trajectory: Trajectory) -> bool:
    """Whether a conversation ends with a reply."""
    steps = trajectory.steps
    imported = trajectory.task.kind == KIND
    return bool(imported and steps and not steps[-1].transition.observation)
