"""The parts of a report that follow from episodes: rows, comparisons, notes, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.text import printable
from agentrm_jax.evaluation.curves import curves, equal_tokens
from agentrm_jax.evaluation.episodes import BLIND, Episode
from agentrm_jax.evaluation.probe import GIVES_AWAY, disagrees, gives_away
from agentrm_jax.evaluation.report_rows import BestOfKRow, OracleGap, ProbeRow
from agentrm_jax.evaluation.results import UNCORRECTED, comparisons, oracle_gaps, result_rows
from agentrm_jax.evaluation.rows import Comparison, ReportParts


def report_parts(
    episodes: Sequence[Episode],
    best_of_k: Sequence[BestOfKRow] = (),
    probe: Mapping[str, ProbeRow] | None = None,
) -> ReportParts:
    """Returns the parts of a report of one run, or of several (`results.merge_runs`).

    Args:
      episodes: The episodes, in the order in which methods are shown. If an environment's last
        observation gives the outcome away, methods with blind scores come first.
      best_of_k: Best-of-k of the same runs.
      probe: By environment, whether the last observation gives the outcome away.
    """
    probe = probe or {}
    telling = {name for name, row in probe.items() if gives_away(row)}
    shown = list(episodes)
    if any(episode.task.environment in telling for episode in shown):
        shown.sort(key=lambda episode: episode.score_at != BLIND)
    compared, gaps = comparisons(shown), oracle_gaps(shown)
    return {
        "results": result_rows(shown),
        "comparisons": compared,
        "oracle_gap": gaps,
        "notes": [*_gap_notes(gaps), *_probe_notes(probe, shown), *_holm_notes(compared)],
        "probe": dict(probe),
        "curves": curves(shown, best_of_k),
        "equal_tokens": equal_tokens(shown, best_of_k),
    }


def _gap_notes(gaps: Sequence[OracleGap]) -> Iterator[str]:
    for row in gaps:
        if (row["task"], row["split"]) != ("all", "all"):
            continue
        yield (
            f"Oracle gap: the best of {row['n']} trajectories has a mean return of "
            f"{row['oracle']:.3f}, one at random {row['random']:.3f}. A reward model can gain "
            f"{row['gap']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}] over "
            f"{row['n_tasks']} tasks."
        )


def _probe_notes(probe: Mapping[str, ProbeRow], episodes: Sequence[Episode]) -> Iterator[str]:
    blind = any(episode.score_at == BLIND for episode in episodes)
    for environment in dict.fromkeys(episode.task.environment for episode in episodes):
        row = probe.get(environment)
        if row is None:
            continue
        if disagrees(row):
            yield _disagreement(environment, row)
        if not gives_away(row):
            continue
        then = (
            "rows with blind scores come first."
            if blind
            else "only blind scores (evaluate.score_at: [observation, action]) show judgement of "
            "actions."
        )
        how = (
            f"they order a success above a failure in {100 * (row['auc'] or 0):.0f}% of pairs, "
            f"{row['n']} training trajectories"
            if row["gives_away"]
            else "the environment declares it"
        )
        yield (
            f"In {printable(environment)} the words of the last observation give the outcome away "
            f"({how}): {then}"
        )


def _disagreement(environment: str, row: ProbeRow) -> str:
    measured = f"{100 * (row['auc'] or 0):.0f}% of pairs, from {100 * GIVES_AWAY:.0f}% on they do"
    says = "gives" if row.get("declared") else "does not give"
    return (
        f"Warning: {printable(environment)} declares that its last observation {says} the outcome "
        f"away, but the probe finds otherwise (its words order {measured}): correct "
        "end_reveals_outcome, or look for too few trajectories."
    )


def _holm_notes(compared: Sequence[Comparison]) -> Iterator[str]:
    if any("p_holm" in row for row in compared):
        yield (f"More than {UNCORRECTED} comparisons: their p-values are corrected by Holm's rule.")
