"""Gains of a method over named baselines, on the same tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agentrm_jax.evaluation.episodes import BASELINE_METHODS, CONTROLS, Episode, Variant, grouped
from agentrm_jax.evaluation.results import UNCORRECTED, by_task_and_seed, means_of, paired_values
from agentrm_jax.evaluation.significance import holm, paired_test
from agentrm_jax.evaluation.statistics import paired_bootstrap

BASELINES = (*BASELINE_METHODS, *CONTROLS)
"""Names of baselines: methods without a reward model, and controls in its place."""


def gains(
    own: Sequence[Episode], baselines: Iterable[str], candidates: Sequence[Sequence[Episode]]
) -> dict[str, Any]:
    """Returns the mean gains in return of a method over baselines, with 95% intervals.

    Seeds are averaged within a task, and tasks are resampled. The intervals are those of single
    comparisons; `correct_gains` corrects the p-values of a table.

    Args:
      own: The episodes of the method, of one variant.
      baselines: A method such as `random_of_n`, or a control such as `likelihood`: the same method
        with this score.
      candidates: Episodes among which a baseline is looked for; the first that have it count.

    Returns:
      `gain_over_BASELINE`, `gain_over_BASELINE_ci95` and `gain_over_BASELINE_p` of each baseline
      that was run on tasks of the method.
    """
    found: dict[str, Any] = {}
    variant = own[0].variant
    for name in baselines:
        for episodes in candidates:
            paired = paired_values(
                *(
                    means_of(by_task_and_seed(side), "outcome")
                    for side in (own, _baseline(variant, name, episodes))
                )
            )
            if paired.size:
                gain = paired_bootstrap(*paired.T)
                found[f"gain_over_{name}"] = gain.mean
                found[f"gain_over_{name}_ci95"] = [gain.low, gain.high]
                found[f"gain_over_{name}_p"] = paired_test(*paired.T)[0]
                break
    return found


def correct_gains(rows: Sequence[dict[str, Any]]) -> None:
    """Adds `gain_over_BASELINE_p_holm` to the rows of a table.

    As in reports, p-values are corrected by Holm's rule for all gains of the table if these are
    more than five.
    """
    places = [
        (row, key)
        for row in rows
        for key in list(row)
        if key.startswith("gain_over_") and key.endswith("_p")
    ]
    p_values = [row[key] for row, key in places]
    corrected = holm(p_values) if len(p_values) > UNCORRECTED else p_values
    for (row, key), p_value in zip(places, corrected, strict=True):
        row[f"{key}_holm"] = p_value


def _baseline(variant: Variant, name: str, episodes: Sequence[Episode]) -> Sequence[Episode]:
    """The episodes of the baseline of a method; none if it is the method itself.

    Of several the one with the same number of trajectories and the same place of the score counts.
    """
    control = variant._replace(reward_model=name)
    fits = [
        (other, own)
        for other, own in grouped(episodes, lambda episode: episode.variant)
        if other != variant
        and (
            other._replace(score_at=variant.score_at) == control
            if name in CONTROLS
            else other.method == name
        )
    ]
    fits.sort(key=lambda fit: (fit[0].n != variant.n, fit[0].score_at != variant.score_at))
    return fits[0][1] if fits and variant.method != name else []
