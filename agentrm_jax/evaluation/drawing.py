"""The style of the report's figures, and a figure as inline SVG in the page's colours."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agentrm_jax.core.text import admit_text, printable

# Stand-ins that never meet a real colour; the page's own colours take their place in the SVG.
INK, FAINT, ACCENT, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
_PAGE_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--line)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}


def styled() -> AbstractContextManager[None]:
    """Returns the context in which figures of the report are drawn."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure.

    Args:
      width: In inches.
      height: In inches.
    """
    return Figure(figsize=(width, height), layout="constrained")


def label_apart(axes: Axes, x: np.ndarray, y: np.ndarray, labels: Sequence[str]) -> None:
    """Writes each label right of its point, pushed up where it would lie on another one."""
    span = axes.get_ylim()[1] - axes.get_ylim()[0]
    gap, placed = 0.06 * span, []
    for i in np.argsort(y, kind="stable"):
        near = [top for other, top in placed if abs(np.log(other / x[i])) < np.log(2.5)]
        height = max([y[i], *(top + gap for top in near)])
        placed.append((x[i], height))
        axes.annotate(
            labels[int(i)],
            (x[i], y[i]),
            xytext=(x[i] * 1.09, height),
            verticalalignment="center",
            fontsize=9,
        )


def errors(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns the lengths [2, N] of error bars from means [N] and the ends of intervals [N]."""
    return np.maximum(np.stack([mean - low, high - mean]), 0.0)


def identifier(text: str) -> str:
    """Returns a text with only letters, digits and dashes, for identifiers of elements."""
    return re.sub(r"\W+", "-", text)


def as_svg(figure: Figure, name: str, title: str) -> str:
    """Returns a figure as an `<svg>` element for a page that may hold several.

    Args:
      figure: The figure.
      name: Prefix of the identifiers in it.
      title: Its text for readers who do not see it.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", text)
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    title = html.escape(printable(title))
    head = f'<svg role="img" aria-label="{title}"'
    text = printable(admit_text(text, len(text)), keep="\n\t")  # names may hold control characters
    return text.replace("<svg", head, 1).replace(">", f"><title>{title}</title>", 1)
