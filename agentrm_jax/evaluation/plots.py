"""The report's figures as inline SVG that takes its colours from the page, light or dark.

Text stays text, so that it can be searched and read aloud; every figure has a title for readers
who do not see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from agentrm_jax.evaluation.drawing import (
    ACCENT,
    FAINT,
    INK,
    SECOND,
    as_svg,
    errors,
    identifier,
    label_apart,
    new_figure,
    styled,
)
from agentrm_jax.evaluation.episodes import row_variant
from agentrm_jax.evaluation.meta_evaluation import DepthRow, EstimateRow, ReliabilityRow
from agentrm_jax.evaluation.results import SPLITS
from agentrm_jax.evaluation.rows import ByNRow, Comparison, ResultRow, ScoreRow
from agentrm_jax.evaluation.tables import scored_by


def forest(comparisons: Sequence[Comparison]) -> str:
    """Draws paired differences with their intervals, one line for each comparison."""
    names = list(dict.fromkeys((c["a_label"], c["b_label"]) for c in comparisons))
    marks = {"all": ("o", ACCENT, 0.0), "held_in": ("s", INK, 0.2), "held_out": ("D", INK, 0.4)}
    with styled():
        figure = new_figure(8.2, 1.0 + 0.55 * len(names))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color=INK, linewidth=1)
        for split, (marker, colour, offset) in marks.items():
            own = [c for c in comparisons if c["split"] == split]
            y = np.array([names.index((c["a_label"], c["b_label"])) + offset for c in own])
            x = np.array([c["difference"] for c in own])
            low, high = np.array([c["ci95"] for c in own]).reshape(-1, 2).T
            axes.errorbar(
                x,
                y,
                xerr=errors(x, low, high),
                fmt=marker,
                markersize=6 if split == "all" else 3.5,
                color=colour,
                linewidth=2 if split == "all" else 1,
                label=split.replace("_", " "),
            )
        axes.set_yticks(range(len(names)), [f"{a}  −  {b}" for a, b in names])  # noqa: RUF001
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.35, -0.5)
        axes.set_xlabel("difference of mean score, 95% interval (paired over tasks)")
        figure.legend(loc="outside upper right", ncols=3)
        return as_svg(figure, "forest", "Differences between methods with 95% intervals")


def learning_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Draws the loss of every stage that has one, and that on held-out tasks; one panel each."""
    stages = list(dict.fromkeys(row["stage"] for row in metrics if "loss" in row))
    with styled():
        columns = min(2, len(stages))
        lines = -(-len(stages) // columns)
        figure = new_figure(4.1 * columns, 2.5 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, stage in zip(panels, stages, strict=False):
            rows = [row for row in metrics if row["stage"] == stage and "loss" in row]
            axes.plot(
                [row["update"] for row in rows],
                [row["loss"] for row in rows],
                color=ACCENT,
                linewidth=1.4,
            )
            held_out = [row for row in rows if "held_out_loss" in row]
            if held_out:
                axes.plot(
                    [row["update"] for row in held_out],
                    [row["held_out_loss"] for row in held_out],
                    "o-",
                    color=SECOND,
                    markersize=3.5,
                    linewidth=1.4,
                    label="held-out tasks",
                )
                axes.legend()
            axes.set_title(f"{stage}: loss")
            axes.set_xlabel("update")
            axes.set_ylim(bottom=0)
        for axes in panels[len(stages) :]:
            axes.set_visible(False)
        names = ", ".join(stages)
        return as_svg(figure, "curves", f"Learning curves: loss over updates of {names}")


def score_against_outcome(scores: Sequence[ScoreRow], reward_model: str) -> str:
    """Draws mean returns of test trajectories in tenths of the score, and a histogram of scores."""
    own = [row for row in scores if scored_by(row) == reward_model]
    score = np.array([row["score"] for row in own], float)
    outcome = np.array([row["outcome"] for row in own], float)
    groups = [g for g in np.array_split(np.argsort(score, kind="stable"), 10) if g.size]
    with styled():
        figure = new_figure(8.2, 2.9)
        left, right = figure.subplots(1, 2)
        x, y = [score[g].mean() for g in groups], [outcome[g].mean() for g in groups]
        ends = [min(0.0, *x), max(1.0, *x)]
        left.plot(ends, ends, color=FAINT, linewidth=1.2)
        left.plot(x, y, "o-", color=ACCENT, markersize=4.5, linewidth=1.2)
        left.set(xlabel="mean score of each tenth", ylabel="mean outcome", ylim=(-0.04, 1.04))
        bins = np.linspace(score.min() - 1e-6, score.max() + 1e-6, 25).tolist()
        right.hist(
            [score[outcome >= 0.5], score[outcome < 0.5]],
            bins=bins,
            stacked=True,
            color=[ACCENT, SECOND],
            label=["outcome 0.5 or more", "less"],
        )
        right.set(xlabel="score", ylabel="trajectories")
        right.margins(x=0.02)
        figure.legend(loc="outside upper right", ncols=2)
        title = f"Scores of the {reward_model} reward model against outcomes"
        return as_svg(figure, f"scores-{identifier(reward_model)}", title)


def reliability(bins: Sequence[ReliabilityRow], depths: Sequence[DepthRow]) -> str:
    """Draws mean values of states over their mean score, and pairwise accuracy over depth.

    Args:
      bins: See `meta_evaluation.reliability`.
      depths: See `meta_evaluation.by_depth`.
    """
    with styled():
        figure = new_figure(8.2, 3.1)
        left, right = figure.subplots(1, 2)
        x = np.array([row["score"] for row in bins])
        ends = [min(0.0, float(x.min())), max(1.0, float(x.max()))]
        left.plot(ends, ends, color=FAINT, linewidth=1.2)
        _interval(left, x, [row["value"] for row in bins])
        largest = max(row["states"] for row in bins)
        left.scatter(
            x,
            [row["value"]["mean"] for row in bins],
            s=[15 + 120 * row["states"] / largest for row in bins],
            color=ACCENT,
        )
        left.set(xlabel="mean score of each bin", ylabel="mean value", ylim=(-0.04, 1.04))
        accuracies = {
            row["depth"]: accuracy
            for row in depths
            if (accuracy := row["pairwise_accuracy"]) is not None
        }
        right.axhline(0.5, color=FAINT, linewidth=1.2)
        if accuracies:
            _interval(right, np.array(list(accuracies)), list(accuracies.values()))
        right.set(xlabel="steps taken", ylabel="pairwise accuracy", ylim=(-0.04, 1.04))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        return as_svg(figure, "reliability", "Values over scores, and pairwise accuracy over depth")


def _interval(axes: Axes, x: np.ndarray, estimates: Sequence[EstimateRow]) -> None:
    mean, low, high = (np.array([e[key] for e in estimates]) for key in ("mean", "low", "high"))
    axes.errorbar(x, mean, yerr=errors(mean, low, high), fmt="o", color=ACCENT, markersize=4.5)


def score_against_budget(rows: Sequence[ResultRow]) -> str:
    """Draws the mean score of each method over the policy tokens that it spends on a task."""
    own = [row for row in rows if row["task"] == "all" and row["split"] == SPLITS[-1]]
    tokens = np.array([max(row["policy_tokens"] / row["n_tasks"], 1.0) for row in own])
    mean = np.array([row["score_mean"] for row in own])
    low, high = np.array([row["score_ci95"] for row in own]).T
    with styled():
        figure = new_figure(8.2, 3.8)
        axes = figure.subplots()
        for i, row in enumerate(own):
            colour = INK if row_variant(row).is_baseline else ACCENT
            error = errors(mean[i : i + 1], low[i : i + 1], high[i : i + 1])
            axes.errorbar(tokens[i], mean[i], yerr=error, fmt="o", color=colour, linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(tokens.min() / 1.4, tokens.max() * 3.5)
        axes.set_ylim(min(0.0, float(low.min())), max(1.0, float(high.max())))
        axes.set(xlabel="policy tokens for each task", ylabel="mean score, 95% interval")
        label_apart(axes, tokens, mean, [row_variant(row).label for row in own])
        return as_svg(figure, "budget", "Mean score of each method against its policy tokens")


def score_by_n(rows: Sequence[ByNRow]) -> str:
    """Draws mean scores of best-of-n over n by reward model; one panel for each environment."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if len(tasks) == 2:  # one environment is all there is
        tasks = ["all"]
    models = list(dict.fromkeys(map(scored_by, rows)))
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    with styled():
        size = (8.2, 3.2) if columns == 1 else (2.73 * columns, 2.3 * lines + 0.4)
        figure = new_figure(*size)
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            for i, model in enumerate(models):
                own = [row for row in rows if (row["task"], scored_by(row)) == (task, model)]
                n = [row["n"] for row in own]
                colour = INK if model == "oracle" else (ACCENT, SECOND)[i % 2]
                (line,) = axes.plot(
                    n,
                    [row["score_mean"] for row in own],
                    color=colour,
                    linestyle="--" if model == "oracle" else "-",
                    marker="o",
                    markersize=3.5,
                    label=model,
                )
                if model != "oracle":
                    low, high = np.array([row["score_ci95"] for row in own]).T
                    axes.fill_between(n, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            axes.set_title(task if len(tasks) > 1 else "")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(tasks) - columns : len(tasks)]:  # none stands below these
            axes.tick_params(labelbottom=True)
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        figure.supxlabel("n, trajectories to choose from", fontsize=10)
        figure.supylabel("mean score, 95% interval", fontsize=10)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        return as_svg(figure, "by-n", "Mean score of best-of-n over the number of trajectories")
