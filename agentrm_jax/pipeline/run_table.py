"""A view of a run as a table for the terminal."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from agentrm_jax.core.text import printable
from agentrm_jax.pipeline.run_view import VISITS, RunView, StageView
from agentrm_jax.runtime.activity import ActivityRecord

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_KEYS = 4  # of a stage's summary


def view_table(directory: pathlib.Path, view: RunView) -> Table:
    """Returns a view of a run for the terminal.

    Args:
      directory: The folder of the run.
      view: What its files show.
    """
    table = Table(title=printable(str(directory)), title_justify="left", box=None, pad_edge=False)
    for name in ("stage", "state", "time"):
        table.add_column(name, justify="right" if name == "time" else "left", no_wrap=True)
    table.add_column("")
    for stage in view.stages:
        style = {"done": "dim", "at work": "bold", "stopped": "yellow"}[stage.state]
        text = Text("\n".join(_lines(stage, view)))
        table.add_row(stage.name, stage.state, _clock(stage.seconds), text, style=style)
    if not view.stages:
        table.add_row("-", "no stage has begun", "", "")
    return table


def _lines(stage: StageView, view: RunView) -> Iterator[str]:
    """The lines about a stage; one that works has more of them."""
    losses = view.losses.get(stage.name, [])
    if stage.state == "done":
        numbers = {k: v for k, v in stage.summary.items() if isinstance(v, int | float)}
        shown = list(numbers.items())[:_SHOWN_KEYS]
        yield ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in shown)
    elif view.activity is not None:
        yield from _activity_lines(view.activity, works=stage.state == "at work")
    if losses:
        yield f"loss {sparkline(losses)} {losses[-1]:.4g}"
    if stage.name == "explore" and stage.state != "done" and view.trees is not None:
        yield from _tree_lines(view)
    if stage.name in ("sample", "evaluate"):
        for found in view.rollouts:
            if (found.name == "sample") == (stage.name == "sample"):
                errors = f", {found.errors} errors" if found.errors else ""
                yield (
                    f"{found.name}: {found.done:,} trajectories, "
                    f"mean return {found.mean_outcome:.3f}{errors}"
                )


def _activity_lines(activity: ActivityRecord, *, works: bool) -> Iterator[str]:
    done, total = activity["done"], activity["total"]
    seconds = max(activity["updated"] - activity["began"], 1e-9)
    new = done - activity["done_before"]
    line = activity["name"]
    if total is not None:
        line += f" {_bar(done / max(total, 1))} {done:,}/{total:,}"
        if works and new > 0 and done < total:
            line += f", {_clock(seconds / new * (total - done))} left"
    yield f"{line} on {activity['host']}" if works else line
    counts = activity["counts"]
    rates = {"tokens decoded": "tokens_decoded", "read": "tokens_read", "steps": "env_steps"}
    shown = [
        f"{counts[key] / seconds:,.0f} {name}/s" for name, key in rates.items() if key in counts
    ]
    if new > 0 and shown:
        yield ", ".join(shown)
        yield _shares(counts, seconds)
    if values := activity["shown"]:
        yield ", ".join(f"{key} {_number(value)}" for key, value in values.items())


def _shares(counts: Mapping[str, float], seconds: float) -> str:
    """The shares of the time in which the process waited for its parts."""
    parts = {
        "decoding": "policy_seconds",
        "scoring": "reward_seconds",
        "environments": "environment_seconds",
    }
    shares = {name: counts[key] / seconds for name, key in parts.items() if key in counts}
    shares["rest"] = max(0.0, 1 - sum(shares.values()))
    return "waits for " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def _tree_lines(view: RunView) -> Iterator[str]:
    trees = view.trees
    assert trees is not None
    failed = f", {trees.failed} failed" if trees.failed else ""
    mean = "" if trees.mean_outcome is None else f", mean return {trees.mean_outcome:.3f}"
    yield f"trees {trees.finished:,} finished of {trees.begun:,} begun{failed}{mean}"
    names = [
        f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"
        for low, high in VISITS
    ]
    counts = zip(names, trees.states_by_visits, strict=True)
    yield "states by visits  " + "  ".join(f"{name}: {count:,}" for name, count in counts)


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """Returns numbers as a line of block characters.

    Args:
      values: At least one number; more than `width` are averaged in equal parts.
      width: Most characters.
    """
    count = min(width, len(values))
    parts = [
        values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)
    ]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _bar(share: float, width: int = 20) -> str:
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
