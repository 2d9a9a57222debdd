"""Scores against policy tokens: best-of-k for every k, and searches at equal tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from agentrm_jax.evaluation.episodes import (
    AT_OBSERVATION,
    Episode,
    Variant,
    grouped,
    scored_label,
)
from agentrm_jax.evaluation.report_rows import BestOfKRow, CurveRow, EqualTokens
from agentrm_jax.evaluation.results import (
    SPLITS,
    by_task_and_seed,
    correct,
    counterparts,
    means_of,
    paired_values,
)
from agentrm_jax.evaluation.significance import paired_difference
from agentrm_jax.evaluation.statistics import bootstrap, bootstrap_columns
from agentrm_jax.search.choose import best_of_fewer
from agentrm_jax.search.rollouts import Rollout

ORACLE = "oracle"
"""The reward model of rows about the best of the trajectories."""


def best_of_k_rows(
    groups: Mapping[str, Sequence[Rollout]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    score_at: str = AT_OBSERVATION,
    seed: int = 0,
    sampling_seed: int = 0,
) -> list[BestOfKRow]:
    """Returns best-of-k of each task for every k up to the number of its trajectories.

    It is the exact expectation over all ways to draw k of the trajectories.

    Args:
      groups: The trajectories of each task, in the order of the samples.
      scores: By reward model and task, of models that score a trajectory by itself. Scores that are
        not finite decide nothing: the task has return 0 for every k.
      score_at: The place at which the models scored.
      seed: The training seed.
      sampling_seed: The sampling seed.
    """
    rows: list[BestOfKRow] = []
    for reward_model, own in scores.items():
        for task_id, group in groups.items():
            means = np.zeros(len(group))
            if np.isfinite(own[task_id]).all():
                weights = best_of_fewer([r.trajectory for r in group], own[task_id])
                means = weights @ outcomes_of(group)
            rows.append(
                {
                    "task_id": task_id,
                    "reward_model": reward_model,
                    "score_at": score_at,
                    "seed": seed,
                    "sampling_seed": sampling_seed,
                    "scores": means.tolist(),
                    "policy_tokens": float(np.mean([r.policy_tokens for r in group])),
                }
            )
    return rows


def oracle_scores(groups: Mapping[str, Sequence[Rollout]]) -> dict[str, dict[str, list[float]]]:
    """Returns the scores of a reward model that sees the outcome, by task."""
    return {ORACLE: {name: [r.trajectory.outcome for r in own] for name, own in groups.items()}}


def outcomes_of(group: Sequence[Rollout]) -> np.ndarray:
    """Returns the outcomes of rollouts; 0 if an error ended the trajectory."""
    return np.array([r.trajectory.outcome if r.error is None else 0.0 for r in group])


def curves(episodes: Sequence[Episode], best_of_k: Sequence[BestOfKRow]) -> list[CurveRow]:
    """Returns the points of score against policy tokens, over all tasks and by environment.

    Best-of-n and the oracle have a point for each k, other methods one. The seeds of a task are
    averaged first.

    Args:
      episodes: The episodes of all methods.
      best_of_k: Best-of-k of the same tasks.
    """
    environments = {episode.task.task_id: episode.task.environment for episode in episodes}
    names = list(dict.fromkeys(environments.values()))
    drawn = {"best_of_n", "oracle_of_n"} if best_of_k else set()
    rows: list[CurveRow] = []
    for task in ("all", *(names if len(names) > 1 else ())):
        of_task = {t for t, environment in environments.items() if task in ("all", environment)}
        stored = [row for row in best_of_k if row["task_id"] in of_task]
        for (reward_model, place), own in grouped(
            stored, lambda row: (row["reward_model"], row["score_at"])
        ):
            rows.extend(_curve(task, reward_model, place, own))
        points = [e for e in episodes if e.task.task_id in of_task and e.method not in drawn]
        for variant, group in grouped(points, lambda episode: episode.variant):
            rows.append(_point(task, variant, group))
    return rows


def _curve(
    task: str, reward_model: str, place: str, rows: Sequence[BestOfKRow]
) -> Iterator[CurveRow]:
    method = "oracle_of_n" if reward_model == ORACLE else "best_of_n"
    by_task = [own for _, own in grouped(rows, lambda row: row["task_id"])]
    length = min(len(row["scores"]) for row in rows)
    scores = np.array([np.mean([r["scores"][:length] for r in own], axis=0) for own in by_task])
    tokens = np.mean([np.mean([r["policy_tokens"] for r in own]) for own in by_task])
    for k, score in enumerate(bootstrap_columns(scores, bounds=(0.0, 1.0)), start=1):
        yield {
            "task": task,
            "label": _label(reward_model, place, "n"),
            "method": method,
            "reward_model": reward_model,
            "score_at": place,
            "k": k,
            "tokens": k * float(tokens),
            "score_mean": score.mean,
            "score_ci95": [score.low, score.high],
            "n_tasks": score.n,
        }


def _label(reward_model: str, place: str, k: str) -> str:
    """The name of best-of-k in tables: `best-of-3.4, explicit, blind`."""
    if reward_model == ORACLE:
        return f"oracle-of-{k}"
    return scored_label(f"best-of-{k}", reward_model, place)


def _point(task: str, variant: Variant, episodes: Sequence[Episode]) -> CurveRow:
    by_task = [own for _, own in grouped(episodes, lambda episode: episode.task.task_id)]
    score = bootstrap([np.mean([e.outcome for e in own]) for own in by_task], bounds=(0.0, 1.0))
    return {
        "task": task,
        "label": variant.label,
        "method": variant.method,
        "reward_model": variant.reward_model,
        "score_at": variant.score_at,
        "k": None,
        "tokens": float(np.mean([np.mean([e.policy_tokens for e in own]) for own in by_task])),
        "score_mean": score.mean,
        "score_ci95": [score.low, score.high],
        "n_tasks": score.n,
    }


def equal_tokens(episodes: Sequence[Episode], best_of_k: Sequence[BestOfKRow]) -> list[EqualTokens]:
    """Returns each search against best-of-k of the same reward model with as many policy tokens.

    k is the mean number of tokens of the search divided by that of a trajectory, on the tasks that
    both ran. Between two whole numbers, best-of-k is the mixture of both whose expected tokens are
    equal: its return on a task is interpolated. k is one number for all tasks: if each task had its
    own, k would reveal how hard the task is.

    Args:
      episodes: The episodes of all methods.
      best_of_k: Best-of-k of the same tasks.
    """
    variants = list(dict.fromkeys(episode.variant for episode in episodes))
    sampled = [variant for variant in variants if variant.method == "best_of_n"]
    rows: list[EqualTokens] = []
    for variant in variants:
        if variant.is_baseline or variant.method == "best_of_n" or variant.reward_model is None:
            continue
        own = [episode for episode in episodes if episode.variant == variant]
        for other in counterparts(variant, sampled):
            wanted = (variant.reward_model, other.score_at)
            stored = [r for r in best_of_k if (r["reward_model"], r["score_at"]) == wanted]
            for split in SPLITS:
                part = [episode for episode in own if split in ("all", episode.split)]
                if row := _equal_tokens(variant, other, split, part, stored):
                    rows.append(row)
    correct(rows)
    return rows


def _equal_tokens(
    search: Variant,
    sampled: Variant,
    split: str,
    episodes: Sequence[Episode],
    stored: Sequence[BestOfKRow],
) -> EqualTokens | None:
    """The row of a split; None if the two have no task in common."""
    searched = by_task_and_seed(episodes)
    rows = dict(grouped(stored, lambda row: (row["task_id"], row["seed"])))
    tokens = paired_values(
        means_of(searched, "policy_tokens"),
        {key: float(np.mean([row["policy_tokens"] for row in own])) for key, own in rows.items()},
    )
    if not tokens.size:
        return None
    budget, each = tokens.mean(axis=0)
    wanted, most = budget / each if each else 1.0, min(len(row["scores"]) for row in stored)
    k = float(min(max(wanted, 1.0), most))
    low, high = math.floor(k), math.ceil(k)
    mixed = {
        key: float(np.mean([_mixture(row["scores"], low, high, k) for row in own]))
        for key, own in rows.items()
    }
    outcomes = paired_values(means_of(searched, "outcome"), mixed)
    found = paired_difference(outcomes[:, 0], outcomes[:, 1])
    return {
        "a": search.method,
        "a_label": search.label,
        "b_label": _label(str(search.reward_model), sampled.score_at, f"{k:.3g}"),
        "reward_model": str(search.reward_model),
        "a_score_at": search.score_at,
        "b_score_at": sampled.score_at,
        "split": split,
        "k": k,
        "a_tokens": float(budget),
        "b_tokens": float(k * each),
        "equal": bool(1.0 <= wanted <= most),
        "difference": found.gain.mean,
        "ci95": [found.gain.low, found.gain.high],
        "n_tasks": found.gain.n,
        "p_value": found.p_value,
        "smallest_difference": found.smallest,
    }


def _mixture(scores: Sequence[float], low: int, high: int, k: float) -> float:
    """Best-of-k between two whole numbers, one of which is drawn with expectation k."""
    return scores[low - 1] + (k - low) * (scores[high - 1] - scores[low - 1])
