"""Turns the rollouts of test-time methods into episodes.

All rules that choose among n trajectories look at the same n. Nothing here concerns several
processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.evaluation.config import MethodRun
from agentrm_jax.evaluation.curves import best_of_k_rows, oracle_scores, outcomes_of
from agentrm_jax.evaluation.episodes import AT_OBSERVATION, Episode, grouped
from agentrm_jax.evaluation.rows import ByNRow, ScoreRow
from agentrm_jax.evaluation.statistics import bootstrap
from agentrm_jax.reward.places import placed
from agentrm_jax.search.choose import NotAvailable
from agentrm_jax.search.methods import UNDECIDED, SamplingMethod
from agentrm_jax.search.rollouts import Rollout

PlacedScores = dict[str, dict[str, dict[str, list[float]]]]
"""Scores of the trajectories of each task, by place of the score, reward model and task."""


def by_task(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    """Returns the rollouts of each task, by its id, in their order."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.trajectory.task.task_id, []).append(rollout)
    return groups


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The answers of a method.

    Attributes:
      episodes: One for each task and each of the method's result rows.
      scores: The scores of the n trajectories, by place, reward model and task; empty unless the
        method is a `SamplingMethod`.
      not_available: The baselines that are left out, with the reason of each.
    """

    episodes: list[Episode]
    scores: PlacedScores = dataclasses.field(default_factory=dict)
    not_available: dict[str, str] = dataclasses.field(default_factory=dict)


def answers(
    run: MethodRun,
    rollouts: Sequence[Rollout],
    scorers: Mapping[str, Scorer],
    *,
    seed: int,
    action_key: Callable[[Task, str], str] = lambda task, action: action.strip(),
    on_scored: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Turns the rollouts of a method into its episodes.

    Args:
      run: The method.
      rollouts: Its rollouts.
      scorers: The reward models, by name. They score at the places of the run.
      seed: The seed of the run.
      action_key: `EnvironmentPool.action_key`, for the majority of actions.
      on_scored: Called with the number of trajectories that a reward model has scored since the
        last call.
    """
    if isinstance(run.method, SamplingMethod):
        return _chosen(run, run.method, rollouts, scorers, seed, action_key, on_scored)
    method: Any = run.method
    labels = {
        name: getattr(method, name)
        for name in ("n", "beam_width", "expansion_width")
        if hasattr(method, name)
    }
    for name in run.reward_models:
        labels |= {"reward_model": name, "score_at": run.score_at[0]}
    variant = _Variant(
        method=run.method_name,
        seed=seed,
        sampling_seed=run.sampling_seed,
        options=run.options,
        **labels,
    )
    episodes = [
        _episode([rollout], np.ones(1), variant, reward_tokens=rollout.reward_tokens)
        for rollout in rollouts
    ]
    return Answers(episodes=episodes)


def _chosen(
    run: MethodRun,
    method: SamplingMethod,
    rollouts: Sequence[Rollout],
    scorers: Mapping[str, Scorer],
    seed: int,
    action_key: Callable[[Task, str], str],
    on_scored: Callable[[int], None],
) -> Answers:
    """The choice under each scorer, and every baseline, among the same n trajectories of each task.

    A task whose scores are not finite is an error of that scorer.
    """
    groups = by_task(rollouts)
    base = _Variant(method=run.method_name, seed=seed, sampling_seed=run.sampling_seed)
    episodes: list[Episode] = []
    not_available: dict[str, str] = {}
    for name, rule in method.baselines(action_key).items():
        try:
            weights = [rule([r.trajectory for r in group]) for group in groups.values()]
        except NotAvailable as error:
            not_available[name] = str(error)
            continue
        episodes += [
            _episode(group, own, dataclasses.replace(base, method=name, n=len(group)))
            for group, own in zip(groups.values(), weights, strict=True)
        ]
    all_scores: PlacedScores = {}
    for place, (name, scorer) in itertools.product(run.score_at, scorers.items()):
        at_place = placed(scorer, place)
        scores = _scores(at_place, list(groups.values()), on_scored)
        all_scores.setdefault(place, {})[name] = dict(zip(groups, scores, strict=True))
        for group, each in zip(groups.values(), scores, strict=True):
            trajectories = [r.trajectory for r in group]
            decided = bool(np.isfinite(each).all())
            weights = method.choose(trajectories, each) if decided else np.zeros(len(group))
            variant = dataclasses.replace(
                base, n=len(group), reward_model=name, options=run.options, score_at=place
            )
            episodes.append(
                _episode(
                    group,
                    weights,
                    variant,
                    reward_tokens=at_place.cost(trajectories),
                    error=None if decided else UNDECIDED,
                )
            )
    return Answers(episodes=episodes, scores=all_scores, not_available=not_available)


_SCORED_TOGETHER = 256
"""Trajectories, about, that a reward model gets in one call: progress is shown after each call."""


def _scores(
    scorer: Scorer, groups: Sequence[Sequence[Rollout]], on_scored: Callable[[int], None]
) -> list[list[float]]:
    """The scores of the trajectories of each task, in calls of about `_SCORED_TOGETHER`."""
    scores: list[list[float]] = []
    waiting: list[list[Trajectory]] = []
    for number, group in enumerate(groups, start=1):
        waiting.append([rollout.trajectory for rollout in group])
        count = sum(map(len, waiting))
        if count >= _SCORED_TOGETHER or number == len(groups):
            scores += scores_of(scorer, waiting)
            on_scored(count)
            waiting = []
    return scores


def score_rows(
    rollouts: Iterable[Rollout],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    score_at: str = AT_OBSERVATION,
    sampling_seed: int = 0,
) -> list[ScoreRow]:
    """Returns the rows of `scores.json`: the finite scores of trajectories next to their outcomes.

    Args:
      rollouts: All trajectories.
      scores: By reward model and task, in the order of the samples.
      score_at: The place at which the models scored.
      sampling_seed: The sampling seed.
    """
    outcomes = {
        (r.trajectory.task.task_id, r.sample): 0.0 if r.error else r.trajectory.outcome
        for r in rollouts
    }
    more: ScoreRow = {}  # pyright: ignore[reportAssignmentType]
    if score_at != AT_OBSERVATION:
        more["score_at"] = score_at
    if sampling_seed:
        more["sampling_seed"] = sampling_seed
    return [
        {
            "reward_model": name,
            "task_id": task_id,
            "score": score,
            "outcome": outcomes[task_id, sample],
            **more,
        }
        for name, by_task in scores.items()
        for task_id, task_scores in by_task.items()
        for sample, score in enumerate(task_scores)
        if math.isfinite(score)
    ]


def scores_by_n(
    rollouts: Sequence[Rollout],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    score_at: str = AT_OBSERVATION,
) -> list[ByNRow]:
    """Returns the mean return of best-of-k for every k up to n.

    It is the exact expectation over all ways to draw k of each task's n trajectories.

    Args:
      rollouts: All trajectories.
      scores: By reward model and task, of models that score a trajectory by itself.
      score_at: The place at which the models scored. The oracle, which has no place, is among the
        rows of `observation`.

    Returns:
      For each reward model and the oracle, and each k: `task` (an environment, or "all"),
      `reward_model`, `n` (which is k), `score_mean`, `score_ci95` and `n_tasks`.
    """
    groups = by_task(rollouts)
    oracle = oracle_scores(groups) if score_at == AT_OBSERVATION else {}
    rows: list[ByNRow] = []
    for reward_model, own in grouped(
        best_of_k_rows(groups, {**scores, **oracle}), lambda row: row["reward_model"]
    ):
        found: dict[str, list[list[float]]] = {"all": []}
        for row in own:
            environment = groups[row["task_id"]][0].trajectory.task.environment
            for task in ("all", environment):
                found.setdefault(task, []).append(row["scores"])
        for task, each in found.items():
            for k, means in enumerate(np.array(each).T, start=1):
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
                if score_at != AT_OBSERVATION:
                    rows[-1]["score_at"] = score_at
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """The fields of an episode that are equal for all tasks; see `Episode`."""

    method: str
    seed: int
    n: int = 1
    reward_model: str | None = None
    beam_width: int | None = None
    expansion_width: int | None = None
    options: str = ""
    score_at: str = AT_OBSERVATION
    sampling_seed: int = 0


def _episode(
    group: Sequence[Rollout],
    weights: np.ndarray,
    variant: _Variant,
    *,
    reward_tokens: int = 0,
    error: str | None = None,
) -> Episode:
    """Returns the episode of one task; a rule that draws gives expected values.

    Args:
      error: The reason why there is no answer; the outcome is then 0.
    """
    successes = np.array([float(r.trajectory.success and r.error is None) for r in group])
    answer = group[int(np.argmax(weights))]
    errors = [r.error for r, w in zip(group, weights, strict=True) if r.error and w > 0]
    return Episode(
        task=answer.trajectory.task,
        **dataclasses.asdict(variant),
        outcome=float(weights @ outcomes_of(group)),
        success=float(weights @ successes),
        policy_tokens=sum(r.policy_tokens for r in group),
        reward_tokens=reward_tokens,
        env_steps=sum(r.env_steps for r in group),
        wall_seconds=sum(r.wall_seconds for r in group),
        invalid_actions=answer.trajectory.invalid_actions,
        truncated_steps=sum(r.truncated_steps for r in group),
        replies_without_action=sum(r.replies_without_action for r in group),
        failed_candidates=sum(r.failed_candidates for r in group),
        error=error or (errors[0] if errors else None),
        steps=len(answer.trajectory.steps),
    )
