"""Figures of scores against tokens and of values against depth; see `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from agentrm_jax.evaluation.drawing import (
    ACCENT,
    INK,
    SECOND,
    as_svg,
    errors,
    label_apart,
    new_figure,
    styled,
)

_ORACLE = "oracle"
_MARKERS = "osD^v"


def score_against_tokens(curves: Sequence[Mapping[str, Any]]) -> str:
    """Draws mean scores over policy tokens: sampling as a curve over n, searches as points.

    Args:
      curves: The rows of `curves` in report.json.
    """
    own = [row for row in curves if row["task"] == "all"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in own:
        if row["k"] is not None:
            lines.setdefault(row["label"], []).append(row)
    points = [row for row in own if row["k"] is None]
    with styled():
        figure = new_figure(8.2, 4.2)
        axes = figure.subplots()
        every = [max(row["tokens"], 1.0) for row in own]
        axes.set_xscale("log")
        axes.set_xlim(min(every) / 1.4, max(every) * 3.5)
        for i, (label, rows) in enumerate(lines.items()):
            rows = sorted(rows, key=lambda row: row["k"])
            is_oracle = rows[0]["reward_model"] == _ORACLE
            tokens = np.array([row["tokens"] for row in rows])
            low, high = np.array([row["score_ci95"] for row in rows]).T
            colour = INK if is_oracle else (ACCENT, SECOND)[i % 2]
            axes.plot(
                tokens,
                [row["score_mean"] for row in rows],
                color=colour,
                linestyle="--" if is_oracle else "-",
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=3.5,
                linewidth=1.4,
                label=label,
            )
            if not is_oracle:
                axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        x = np.array([max(row["tokens"], 1.0) for row in points])
        y = np.array([row["score_mean"] for row in points])
        for i, row in enumerate(points):
            low, high = row["score_ci95"]
            axes.errorbar(
                x[i],
                y[i],
                yerr=errors(y[i : i + 1], np.array([low]), np.array([high])),
                fmt="o",
                color=ACCENT if row["reward_model"] else INK,
                linewidth=1,
            )
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-0.02, 1.02)
        axes.set(xlabel="policy tokens for each task", ylabel="mean score, 95% interval")
        label_apart(axes, x, y, [row["label"] for row in points])
        if lines:
            figure.legend(loc="outside upper right", ncols=3)
        return as_svg(figure, "budget", "Mean score of each method against its policy tokens")


def value_by_depth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws the mean value of states and the middle half of the values over depth.

    Args:
      rows: See `depths.value_by_depth`.
    """
    depth = [row["depth"] for row in rows]
    with styled():
        figure = new_figure(8.2, 2.9)
        left, right = figure.subplots(1, 2)
        left.fill_between(
            depth,
            [row["low"] for row in rows],
            [row["high"] for row in rows],
            color=ACCENT,
            alpha=0.15,
            linewidth=0,
            label="middle half",
        )
        means = [row["mean"] for row in rows]
        left.plot(depth, means, "o-", color=ACCENT, markersize=3.5, linewidth=1.4, label="mean")
        left.set(xlabel="steps taken", ylabel="value", ylim=(-0.04, 1.04))
        right.bar(depth, [row["states"] for row in rows], color=ACCENT, width=0.7)
        right.set(xlabel="steps taken", ylabel="visited states")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper right", ncols=2)
        return as_svg(figure, "depth", "Values of states of exploration trees over their depth")
