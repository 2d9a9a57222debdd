"""The rows of results: what episodes add up to, and how methods compare on the same tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from agentrm_jax.evaluation.episodes import AT_OBSERVATION, CONTROLS, Episode, Variant, grouped
from agentrm_jax.evaluation.report_rows import EqualTokens, OracleGap
from agentrm_jax.evaluation.rows import Comparison, ResultRow, Split
from agentrm_jax.evaluation.significance import (
    holm,
    is_binary,
    paired_difference,
    paired_test,
    success_interval,
)
from agentrm_jax.evaluation.statistics import bootstrap, bootstrap_ratio, paired_bootstrap

SPLITS: tuple[Split, ...] = ("held_in", "held_out", "all")
"""Of results: trained-on kinds, kinds never trained on, both together."""

UNCORRECTED = 5
"""Most comparisons of a table whose p-values are not corrected for their number."""


def merge_runs(runs: Mapping[str, Sequence[Episode]]) -> list[Episode]:
    """Returns the episodes of several runs that differ in their training seed, as if of one run.

    `result_rows` and `comparisons` of them average over the seeds within each task.

    Args:
      runs: The episodes of each run, by a name for messages.

    Raises:
      UserError: Two runs hold an episode of the same method, task and seeds.
    """
    first: dict[tuple[Variant, str, int, int], str] = {}
    for run, episodes in runs.items():
        for each in episodes:
            key = (each.variant, each.task.task_id, each.seed, each.sampling_seed)
            if (other := first.setdefault(key, run)) != run:
                raise UserError(
                    f"{printable(run)} and {printable(other)} must differ in `seed` to be averaged "
                    f"(both have {printable(each.variant.label)} on task "
                    f"{printable(each.task.task_id)} with seed {each.seed})"
                )
    return [episode for episodes in runs.values() for episode in episodes]


def result_rows(episodes: Sequence[Episode]) -> list[ResultRow]:
    """Returns the rows of `results.json`.

    For each variant one row for each kind ("environment/kind"); and for each environment, and for
    "all" of them, a row for each split and for both together. The seeds of a task are averaged
    first; means are over tasks (micro). `score_mean` is the paper's number.
    """
    rows: list[ResultRow] = []
    gap = {name: _by_task([e for e in episodes if e.method == name]) for name in _GAP}
    for variant, own in grouped(episodes, lambda episode: episode.variant):
        by_kind = grouped(own, lambda episode: (episode.split, episode.task_name))
        rows.extend(_row(task, split, variant, group, gap) for (split, task), group in by_kind)
        for task, split, part in parts_of(own):
            rows.append(_row(task, split, variant, part, gap))
    return rows


def parts_of(episodes: Sequence[Episode]) -> Iterator[tuple[str, Split, list[Episode]]]:
    """Yields the episodes of each environment, then of "all", for each split that has some."""
    by_environment = grouped(episodes, lambda episode: episode.task.environment)
    for task, group in (*by_environment, ("all", list(episodes))):
        for split in SPLITS:
            part = [episode for episode in group if split in ("all", episode.split)]
            if part:
                yield task, split, part


def level(row: ResultRow) -> Literal["kind", "environment", "all"]:
    """Returns whether a row is about a kind of tasks, an environment or all tasks."""
    return "kind" if "/" in row["task"] else "all" if row["task"] == "all" else "environment"


_GAP = ("random_of_n", "oracle_of_n")
"""The methods between which every choice among n trajectories lies."""


def _by_task(episodes: Iterable[Episode]) -> dict[str, float]:
    """The mean outcome of each task over its seeds."""
    groups = grouped(episodes, lambda episode: episode.task.task_id)
    return {task_id: _mean(own, "outcome") for task_id, own in groups}


def _mean(episodes: Sequence[Episode], field: str) -> float:
    return sum(getattr(episode, field) for episode in episodes) / len(episodes)


def _row(
    task: str,
    split: str,
    variant: Variant,
    group: Sequence[Episode],
    gap: Mapping[str, Mapping[str, float]],
) -> ResultRow:
    by_task = [own for _, own in grouped(group, lambda episode: episode.task.task_id)]
    score = bootstrap([_mean(own, "outcome") for own in by_task], bounds=(0.0, 1.0))
    successes = [_mean(own, "success") for own in by_task]
    interval = success_interval(successes)
    by_seed = grouped(group, lambda episode: (episode.seed, episode.sampling_seed))
    row: ResultRow = {
        "task": task,
        "split": split,
        "method": variant.method,
        "reward_model": variant.reward_model,
        "n": variant.n,
        "beam_width": variant.beam_width,
        "expansion_width": variant.expansion_width,
        "seed": group[0].seed,
        "n_tasks": score.n,
        "score_mean": score.mean,
        "score_ci95": [score.low, score.high],
        "success_rate": float(np.mean(successes)),
        "success_ci95": [interval.low, interval.high],
        "progress_rate": score.mean,
        "policy_tokens": round(sum(_mean(own, "policy_tokens") for own in by_task)),
        "reward_tokens": round(sum(_mean(own, "reward_tokens") for own in by_task)),
        "env_steps": round(sum(_mean(own, "env_steps") for own in by_task)),
        "wall_seconds": sum(_mean(own, "wall_seconds") for own in by_task),
        "errors": sum(episode.error is not None for episode in group),
        "replies_without_action": sum(episode.replies_without_action for episode in group),
        "failed_candidates": sum(episode.failed_candidates for episode in group),
        "n_seeds": len(by_seed),
        "seeds": list(dict.fromkeys(episode.seed for episode in group)),
        "sampling_seeds": list(dict.fromkeys(episode.sampling_seed for episode in group)),
    }
    if len(by_seed) > 1:
        row["seed_deviation"] = float(np.std([_mean(own, "outcome") for _, own in by_seed], ddof=1))
    if variant.options:
        row["options"] = variant.options
    if variant.score_at != AT_OBSERVATION:
        row["score_at"] = variant.score_at
    own = _by_task(group)
    if common := [t for t in own if all(t in outcomes for outcomes in gap.values())]:
        values = np.array([[own[t], *(gap[name][t] for name in _GAP)] for t in common])
        reached, random, oracle = values.sum(axis=0).tolist()
        row["gap_closed"] = (reached - random) / (oracle - random) if oracle > random else None
        if oracle > random:
            gained, possible = values[:, 0] - values[:, 1], values[:, 2] - values[:, 1]
            if closed := bootstrap_ratio(gained, possible):
                row["gap_closed_ci95"] = [closed.low, closed.high]
    return row


def oracle_gaps(episodes: Sequence[Episode]) -> list[OracleGap]:
    """Returns the room for any reward model, by environment and split.

    Without room no search helps: best-of-n of a perfect reward model is the oracle, and that of one
    that has learned nothing is random.
    """
    random = _by_task(episode for episode in episodes if episode.method == "random_of_n")
    best = [e for e in episodes if e.method == "oracle_of_n" and e.task.task_id in random]
    rows: list[OracleGap] = []
    for task, split, part in parts_of(best):
        oracle = _by_task(part)
        gain = paired_bootstrap(list(oracle.values()), [random[task_id] for task_id in oracle])
        rows.append(
            {
                "task": task,
                "split": split,
                "n": part[0].n,
                "n_tasks": gain.n,
                "random": float(np.mean([random[task_id] for task_id in oracle])),
                "oracle": float(np.mean(list(oracle.values()))),
                "gap": gain.mean,
                "ci95": [gain.low, gain.high],
            }
        )
    return rows


def default_pairs(episodes: Sequence[Episode]) -> list[tuple[Variant, Variant]]:
    """Returns pairs to compare: methods with a reward model, and every baseline but the oracle.

    Searches are compared with best-of-n under the same reward model as well, at the same place of
    the score if best-of-n has it.
    """
    variants = list(dict.fromkeys(episode.variant for episode in episodes))
    sampled = [variant for variant in variants if variant.method == "best_of_n"]
    pairs = []
    for a in variants:
        for b in variants:
            baseline = b.is_baseline and b.method != "oracle_of_n"
            control = b.reward_model in CONTROLS and b.method != a.method
            same_model = a.method != "best_of_n" and b in counterparts(a, sampled)
            if not a.is_baseline and ((baseline and not control) or same_model):
                pairs.append((a, b))
    return pairs


def counterparts(search: Variant, sampled: Sequence[Variant]) -> list[Variant]:
    """Returns the variants of best-of-n that a search is compared with.

    They have its reward model, and its place of the score if any of them has it.
    """
    same_model = [each for each in sampled if each.reward_model == search.reward_model]
    same_place = [each for each in same_model if each.score_at == search.score_at]
    return same_place or same_model


def comparisons(
    episodes: Sequence[Episode], pairs: Sequence[tuple[Variant, Variant]] | None = None
) -> list[Comparison]:
    """Returns differences of mean return between variants, paired over the tasks that both ran.

    The sampling seeds of a task are averaged first; then the differences of its training seeds.

    Args:
      episodes: The episodes of all variants.
      pairs: Pairs (a, b) of variants; `default_pairs` if not given.

    Returns:
      A comparison for each pair and split with at least one common task.
    """
    by_variant = dict(grouped(episodes, lambda episode: episode.variant))
    found: list[Comparison] = []
    for a, b in default_pairs(episodes) if pairs is None else pairs:
        for split in SPLITS:
            first, second = (
                by_task_and_seed(e for e in by_variant[each] if split in ("all", e.split))
                for each in (a, b)
            )
            outcomes, successes = (
                paired_values(means_of(first, field), means_of(second, field))
                for field in ("outcome", "success")
            )
            if outcomes.size:
                found.append(_comparison(a, b, split, outcomes, successes))
    correct(found)
    return found


def by_task_and_seed(episodes: Iterable[Episode]) -> dict[tuple[str, int], list[Episode]]:
    """Returns the episodes of each task and training seed: one for each sampling seed."""
    return dict(grouped(episodes, lambda episode: (episode.task.task_id, episode.seed)))


def means_of(
    groups: Mapping[tuple[str, int], Sequence[Episode]], field: str
) -> dict[tuple[str, int], float]:
    """Returns the mean of a field of the episodes of each task and training seed."""
    return {key: _mean(own, field) for key, own in groups.items()}


def paired_values(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float]
) -> np.ndarray:
    """Returns the values of both sides [n, 2] of the n tasks that both have with the same seed.

    Args:
      first: A value for each task and training seed.
      second: The values of the other side.
    """
    both = grouped((key for key in first if key in second), lambda key: key[0])
    sides = [
        [sum(side[key] for key in keys) / len(keys) for side in (first, second)] for _, keys in both
    ]
    return np.array(sides, float).reshape(-1, 2)


def _comparison(
    a: Variant, b: Variant, split: Split, outcomes: np.ndarray, successes: np.ndarray
) -> Comparison:
    found = paired_difference(outcomes[:, 0], outcomes[:, 1])
    row: Comparison = {
        "a": a.method,
        "b": b.method,
        "split": split,
        "difference": found.gain.mean,
        "ci95": [found.gain.low, found.gain.high],
        "n_tasks": found.gain.n,
        "a_label": a.label,
        "b_label": b.label,
        "a_reward_model": a.reward_model,
        "b_reward_model": b.reward_model,
        "p_value": found.p_value,
        "test": found.test,
        "smallest_difference": found.smallest,
        "success_difference": float(np.mean(successes[:, 0] - successes[:, 1])),
        "success_p_value": paired_test(*successes.T)[0] if is_binary(successes) else None,
    }
    if a.score_at != AT_OBSERVATION:
        row["a_score_at"] = a.score_at
    if b.score_at != AT_OBSERVATION:
        row["b_score_at"] = b.score_at
    return row


def correct(found: Sequence[Comparison] | Sequence[EqualTokens]) -> None:
    """Adds Holm's p-values to the rows of a split if there are more than five."""
    for _, own in grouped(found, lambda row: row["split"]):
        if len(own) > UNCORRECTED:
            corrected = holm([row.get("p_value", 1.0) for row in own])
            for row, p_value in zip(own, corrected, strict=True):
                row["p_holm"] = p_value
