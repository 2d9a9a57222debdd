"""Choice of the thresholds of test-time methods, from their outcomes on training tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.evaluation.config import MethodRun
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.evaluation.statistics import bootstrap
from agentrm_jax.search.thresholds import open_thresholds


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """The choice of thresholds of test-time methods.

    Attributes:
      num_tasks: Train tasks on which every candidate is run, spread evenly over the environments.
    """

    num_tasks: int = 60

    def __post_init__(self) -> None:
        check_fields(self, num_tasks="[2, 1000000]")


class Candidate(TypedDict):
    """A method with one setting of its thresholds, on the training tasks.

    Attributes:
      thresholds: The value of each threshold.
      score_mean: Mean return over the tasks, in [0, 1]; 0 for a task that ended by an error.
      score_ci95: Low and high end of its 95% interval.
      policy_tokens: Tokens that the policy decoded, over all tasks.
      reward_tokens: Tokens that the reward model read, over all tasks.
      env_steps: Steps of the environment, over all tasks.
      errors: Tasks whose answer ended by an error.
    """

    thresholds: dict[str, float]
    score_mean: float
    score_ci95: list[float]
    policy_tokens: int
    reward_tokens: int
    env_steps: int
    errors: int


class _OptionalOfCalibration(TypedDict, total=False):
    sampling_seeds: list[int]


class Calibration(_OptionalOfCalibration):
    """The thresholds that were chosen for a method: an entry of `thresholds.json`.

    Attributes:
      name: The name of the method's folder in `eval/`, without the sampling seed.
      reward_model: The reward model that scored; None without one.
      chosen: The value of each threshold.
      n_tasks: Number of tasks.
      seeds: The training seeds of the episodes.
      sampling_seeds: The sampling seeds of the episodes; absent in files of earlier versions.
      candidates: All settings that were tried.
    """

    name: str
    reward_model: str | None
    chosen: dict[str, float]
    n_tasks: int
    seeds: list[int]
    candidates: list[Candidate]


def calibration(
    run: MethodRun,
    tried: Sequence[tuple[Mapping[str, float], Sequence[Episode]]],
) -> Calibration:
    """Chooses the thresholds of a method; see `best_candidate`.

    Args:
      run: The method.
      tried: The value of each threshold, and the episodes: the same tasks in the same order.
    """
    every = [episode for _, episodes in tried for episode in episodes]
    best = best_candidate(
        np.array([[episode.outcome for episode in episodes] for _, episodes in tried]),
        [sum(episode.policy_tokens for episode in episodes) for _, episodes in tried],
    )
    return {
        "name": run.setting,
        "reward_model": run.reward_models[0] if run.reward_models else None,
        "chosen": dict(tried[best][0]),
        "n_tasks": len(tried[best][1]),
        "seeds": list(dict.fromkeys(episode.seed for episode in every)),
        "sampling_seeds": list(dict.fromkeys(episode.sampling_seed for episode in every)),
        "candidates": [_candidate(values, episodes) for values, episodes in tried],
    }


def best_candidate(
    outcomes: Float[np.ndarray, "candidates tasks"], policy_tokens: Sequence[int]
) -> int:
    """Returns the index of the candidate with the highest mean return, or of a cheaper equal.

    A candidate is equal if its mean is below the highest by at most the standard error of the
    difference, paired over the tasks. Of equals, the one with the fewest policy tokens is chosen,
    and of these the one with the highest mean, the first one last of all.

    Args:
      outcomes: The return of each candidate on each task.
      policy_tokens: Policy tokens of each candidate over all tasks.
    """
    means = outcomes.mean(axis=1)
    differences = outcomes[int(np.argmax(means))] - outcomes
    n = outcomes.shape[1]
    errors = differences.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(len(means))
    # Means of equal outcomes may differ by rounding.
    equal = np.flatnonzero(differences.mean(axis=1) <= errors + 1e-12).tolist()
    return min(equal, key=lambda c: (policy_tokens[c], -means[c], c))


def calibrated(runs: Sequence[MethodRun], found: Sequence[Calibration]) -> list[MethodRun]:
    """Returns the methods of an evaluation with the chosen thresholds.

    Args:
      runs: The methods; those without an open threshold stay as they are. The options that result
        rows show stay as well: rows of runs with different thresholds belong together.
      found: What stage `calibrate` wrote.

    Raises:
      UserError: A threshold has no value.
    """
    chosen = {entry["name"]: entry["chosen"] for entry in found}
    return [_calibrated(run, chosen.get(run.setting, {})) for run in runs]


def _calibrated(run: MethodRun, chosen: Mapping[str, float]) -> MethodRun:
    needed = open_thresholds(run.method)
    for name in needed:
        if name not in chosen:
            raise UserError(
                "has no value; run `agentrm calibrate`, or set it",
                field=f"evaluate.options.{run.method_name}.{name}",
            )
    return with_thresholds(run, {name: chosen[name] for name in needed}) if needed else run


def with_thresholds(run: MethodRun, values: Mapping[str, float]) -> MethodRun:
    """Returns a method with values of its thresholds."""
    method = dataclasses.replace(run.method, **values)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(run, method=method)


def _candidate(values: Mapping[str, float], episodes: Sequence[Episode]) -> Candidate:
    score = bootstrap([episode.outcome for episode in episodes], bounds=(0.0, 1.0))
    return {
        "thresholds": dict(values),
        "score_mean": score.mean,
        "score_ci95": [score.low, score.high],
        "policy_tokens": sum(episode.policy_tokens for episode in episodes),
        "reward_tokens": sum(episode.reward_tokens for episode in episodes),
        "env_steps": sum(episode.env_steps for episode in episodes),
        "errors": sum(episode.error is not None for episode in episodes),
    }
