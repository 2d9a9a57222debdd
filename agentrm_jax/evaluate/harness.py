"""Runs test-time methods over a task list and turns what they did into episodes.

Trajectories are stored as they end, so that an interrupted evaluation goes on where it was. All
rules that choose among n trajectories look at the same n.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Task, to_json
from agentrm_jax.core.text import printable
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.evaluate.results import Episode
from agentrm_jax.evaluate.statistics import bootstrap
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.runtime.processes import gather, own_part
from agentrm_jax.search.beam import BeamConfig
from agentrm_jax.search.choose import BASELINES, best, best_of_fewer, majority_of_n
from agentrm_jax.search.rollouts import Rollout

ROLLOUTS = "rollouts.jsonl"
METHODS = ("greedy", "best_of_n", "beam")
UNDECIDED = "the reward model did not decide"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which methods run on which test tasks.

    Attributes:
      split: `test`: generated problems, none of them seen in training; `paper`: the paper's list.
      num_tasks: Test tasks in all, spread evenly over the levels; 0 takes all of the paper's list.
      methods: Of greedy, best_of_n (with its baselines) and beam.
      n: Trajectories that best-of-n chooses from.
      sampling: How they, and a beam's candidates, are sampled. Greedy takes temperature 0.
      slots: Trajectories that run at the same time. It decides speed, never results.
      beam: Beam search.
      beam_tasks: How many of the tasks beam search runs on; 0 takes all.
      random_beam: Whether a beam of the same widths is also run with random scores, drawn after the
        observation: what the search gains without a reward model.
    """

    split: Literal["test", "paper"] = "test"
    num_tasks: int = 180
    methods: tuple[str, ...] = METHODS
    n: int = 5
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    slots: int = 64
    beam: BeamConfig = dataclasses.field(default_factory=BeamConfig)
    beam_tasks: int = 0
    random_beam: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_tasks="[0, 1000000]",
            n="[1, 100000]",
            slots="[1, 100000]",
            beam_tasks="[0, 1000000]",
        )
        check_choice("split", self.split, ("test", "paper"))
        for method in self.methods:
            check_choice("methods", method, METHODS)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError("must name at least one method, each once", field="methods")
        if self.num_tasks == 0 and self.split == "test":
            raise UserError(field="num_tasks", value=0, expected="at least 1 if split is test")


def read_rollouts(path: pathlib.Path, *, finished: bool = False) -> Iterator[Rollout]:
    """What `stored_rollouts` left in a file, in the order in which they ended.

    Args:
      path: The file.
      finished: Whether its writer has ended: a torn last line or an absent file is damage then.

    Raises:
      UserError: A line is damaged, no rollout, or one that was there before; names file and line.
    """
    seen: set[tuple[str, int]] = set()
    for number, value in enumerate(read_json_lines(path, finished), start=1):
        try:
            rollout = from_json(Rollout, value)
            key = (rollout.trajectory.task.task_id, rollout.sample)
            if key in seen:
                raise ValueError(f"sample {key[1]} of task {printable(key[0])} is there twice")
            if not -1e-6 <= rollout.trajectory.outcome <= 1 + 1e-6:
                raise ValueError(f"its return is {rollout.trajectory.outcome:.6g}, not in [0, 1]")
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not a rollout ({error}); restore the file, or delete it "
                "to make it again"
            ) from None
        seen.add(key)
        yield rollout


def stored_rollouts(
    path: pathlib.Path,
    episodes: Sequence[tuple[Task, int]],
    run: Callable[[Sequence[tuple[Task, int]]], Iterator[Rollout]],
    on_rollout: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """The rollouts of all (task, sample number); only those that `path` lacks are run.

    Each of several processes has episodes of its own, and all come here together.

    Returns:
      In the order of `episodes`.
    """
    gather(path)
    wanted = {(task.task_id, sample) for task, sample in episodes}
    found = {}
    for rollout in read_rollouts(path):
        if (key := (rollout.trajectory.task.task_id, rollout.sample)) in wanted:
            found[key] = rollout
            on_rollout()
    missing = [(task, sample) for task, sample in episodes if (task.task_id, sample) not in found]
    with JsonLines(own_part(path)) as lines:
        for rollout in run(missing) if missing else ():
            fields = {f.name: getattr(rollout, f.name) for f in dataclasses.fields(rollout)}
            lines.append({**fields, "trajectory": to_json(rollout.trajectory)})
            found[rollout.trajectory.task.task_id, rollout.sample] = rollout
            on_rollout()
    gather(path)
    return [found[task.task_id, sample] for task, sample in episodes]


def by_task(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.trajectory.task.task_id, []).append(rollout)
    return groups


def single_episodes(
    rollouts: Sequence[Rollout], method: str, *, seed: int, **labels: Any
) -> list[Episode]:
    """The episodes of a method that gives one trajectory for each task."""
    return [
        _episode(
            [rollout],
            np.ones(1),
            method,
            seed=seed,
            reward_tokens=rollout.reward_tokens,
            **{"n": 1, **labels},
        )
        for rollout in rollouts
    ]


def chosen_episodes(
    rollouts: Sequence[Rollout],
    scorers: Mapping[str, Scorer],
    *,
    seed: int,
    action_key: Callable[[Task, str], str] = lambda task, action: action.strip(),
) -> tuple[list[Episode], dict[str, dict[str, list[float]]]]:
    """Best-of-n under each scorer, and every baseline, over the same n trajectories of each task.

    Args:
      rollouts: n of each task.
      scorers: By name.
      seed: The run's seed.
      action_key: `EnvironmentPool.action_key`, for the majority of actions.

    Returns:
      The episodes, and the scores by scorer and task. A task whose scores are not finite is an
      error of that scorer.
    """
    groups = by_task(rollouts)
    rules = {
        **BASELINES,
        "majority_of_n": functools.partial(majority_of_n, action_key=action_key),
    }
    episodes = [
        _episode(group, rule([r.trajectory for r in group]), name, seed=seed, n=len(group))
        for name, rule in rules.items()
        for group in groups.values()
    ]
    all_scores: dict[str, dict[str, list[float]]] = {}
    for name, scorer in scorers.items():
        scores = scores_of(scorer, [[r.trajectory for r in group] for group in groups.values()])
        all_scores[name] = dict(zip(groups, scores, strict=True))
        episodes.extend(
            _episode(
                group,
                _choice(group, own),
                "best_of_n",
                seed=seed,
                n=len(group),
                reward_model=name,
                reward_tokens=scorer.cost([r.trajectory for r in group]),
                error=None if np.isfinite(own).all() else UNDECIDED,
            )
            for group, own in zip(groups.values(), scores, strict=True)
        )
    return episodes, all_scores


def scores_by_n(
    rollouts: Sequence[Rollout], scores: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[dict[str, Any]]:
    """What best-of-n would give with fewer samples: its exact expectation over all ways to draw k
    of each task's n trajectories.

    Args:
      scores: By reward model and task, of models that score a trajectory by itself.

    Returns:
      For each reward model and the oracle, and each k: `task` (an environment, or "all"),
      `reward_model`, `n` (which is k), `score_mean`, `score_ci95` and `n_tasks`.
    """
    groups = by_task(rollouts)
    oracle = {name: [r.trajectory.outcome for r in group] for name, group in groups.items()}
    rows = []
    for reward_model, own in {**scores, "oracle": oracle}.items():
        found: dict[str, list[np.ndarray]] = {"all": []}
        for name, group in groups.items():
            means = np.zeros(len(group))
            if np.isfinite(own[name]).all():
                weights = best_of_fewer([r.trajectory for r in group], own[name])
                means = weights @ _outcomes(group)
            environment = group[0].trajectory.task.environment
            for task in ("all", environment):
                found.setdefault(task, []).append(means)
        for task, each in found.items():
            for k, means in enumerate(np.stack(each, axis=1), start=1):
                score = bootstrap(means, bounds=(0.0, 1.0))
                rows.append(
                    {
                        "task": task,
                        "reward_model": reward_model,
                        "n": k,
                        "score_mean": score.mean,
                        "score_ci95": [score.low, score.high],
                        "n_tasks": score.n,
                    }
                )
    return rows


def _outcomes(group: Sequence[Rollout]) -> np.ndarray:
    """Those of trajectories that ended by an error are 0."""
    return np.array([r.trajectory.outcome if r.error is None else 0.0 for r in group])


def _choice(group: Sequence[Rollout], scores: Sequence[float]) -> np.ndarray:
    """No weight at all where the reward model could not decide."""
    if not np.isfinite(scores).all():
        return np.zeros(len(group))
    return best([r.trajectory for r in group], scores)


def _episode(
    group: Sequence[Rollout],
    weights: np.ndarray,
    method: str,
    *,
    seed: int,
    n: int,
    reward_model: str | None = None,
    reward_tokens: int = 0,
    beam_width: int | None = None,
    expansion_width: int | None = None,
    error: str | None = None,
) -> Episode:
    """One task's episode; what a rule is expected to give where it draws.

    Args:
      error: Why there is no answer; its outcome is then that of no weights, 0.
    """
    successes = np.array([float(r.trajectory.success and r.error is None) for r in group])
    best = group[int(np.argmax(weights))]
    errors = [r.error for r, w in zip(group, weights, strict=True) if r.error and w > 0]
    steps = best.trajectory.steps
    return Episode(
        task=best.trajectory.task,
        method=method,
        reward_model=reward_model,
        n=n,
        beam_width=beam_width,
        expansion_width=expansion_width,
        seed=seed,
        outcome=float(weights @ _outcomes(group)),
        success=float(weights @ successes),
        policy_tokens=sum(r.policy_tokens for r in group),
        reward_tokens=reward_tokens,
        env_steps=sum(r.env_steps for r in group),
        wall_seconds=sum(r.wall_seconds for r in group),
        invalid_actions=sum(not s.transition.valid for s in steps),
        truncated_steps=sum(r.truncated_steps for r in group),
        replies_without_action=sum(r.replies_without_action for r in group),
        failed_candidates=sum(r.failed_candidates for r in group),
        error=error or (errors[0] if errors else None),
        steps=len(steps),
    )
