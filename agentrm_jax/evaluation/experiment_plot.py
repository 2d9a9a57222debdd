"""The figure of an experiment: lines over one axis, as inline SVG in the page's colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from agentrm_jax.core.text import printable

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 320, 56, 40, 14, 190
_STYLES = ("", "6 3", "2 3", "9 3 2 3")


class Point(NamedTuple):
    """A point of a line, and its interval if that is known."""

    x: float
    y: float
    interval: tuple[float, float] | None = None


def lines_svg(lines: Sequence[tuple[str, Sequence[Point]]], x_name: str, y_name: str) -> str:
    """Draws lines with intervals; the x axis is logarithmic if all its values are positive.

    Args:
      lines: A name and the points of each.
      x_name: The name of the x axis.
      y_name: The name of the y axis.

    Returns:
      The SVG; empty without a point.
    """
    points = [point for _, each in lines for point in each]
    if not points:
        return ""
    axes = _Axes(points)
    parts = [f"<title>{_text(y_name)} over {_text(x_name)}</title>", *axes.ticks(x_name)]
    for number, (name, each) in enumerate(lines):
        colour = "var(--accent)" if number % 2 == 0 else "var(--second)"
        dash = _STYLES[number // 2 % len(_STYLES)]
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        places = [(axes.across(point.x), axes.up(point.y)) for point in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        key, left = _TOP + 10 + 18 * number, _WIDTH - _RIGHT + 12
        parts += [
            f'<polyline points="{path}" fill="none" {stroke}/>',
            *(axes.bar(point, colour, number) for point in each if point.interval),
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
            f'<line x1="{left}" x2="{left + 24}" y1="{key}" y2="{key}" {stroke}/>',
            f'<text x="{left + 30}" y="{key + 4}">{_text(name)}</text>',
        ]
    height = max(_HEIGHT, _TOP + 20 + 18 * len(lines))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" font-size="11" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )


class _Axes:
    """Places of values in the figure.

    Args:
      points: All points.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._xs = sorted({point.x for point in points})
        ys = [y for point in points for y in (point.y, *(point.interval or ()))]
        low, high = min(ys), max(ys)
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
        self._low = max(0.0, low - margin) if low >= 0 else low - margin
        self._high = high + margin

    def across(self, x: float) -> float:
        """The place of a value of x."""
        low, high = self._xs[0], self._xs[-1]
        if high == low:
            part = 0.5
        elif low > 0:
            part = math.log(x / low) / math.log(high / low)
        else:
            part = (x - low) / (high - low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def up(self, y: float) -> float:
        """The place of a value of y."""
        part = (y - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)

    def bar(self, point: Point, colour: str, number: int) -> str:
        """Returns the bar of a point's interval; bars of different lines do not overlap."""
        assert point.interval is not None
        across = self.across(point.x) + 2 * (number % 6) - 5
        low, high = map(self.up, point.interval)
        return (
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}" '
            f'stroke="{colour}" opacity="0.45"/>'
        )

    def ticks(self, x_name: str) -> list[str]:
        """The tick labels of both axes, a grid line for each tick of y, and the name of x."""
        parts, right = [], _WIDTH - _RIGHT
        for y in (self._low + (self._high - self._low) * i / 4 for i in range(5)):
            at = self.up(y)
            parts += [
                f'<line x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" '
                'stroke="var(--line)"/>',
                f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>',
            ]
        parts += [
            f'<text x="{self.across(x):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{x:g}</text>'
            for x in self._xs[:: max(1, len(self._xs) // 8)]
        ]
        middle = (_LEFT + right) / 2
        parts.append(
            f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle">{_text(x_name)}</text>'
        )
        return parts


def _text(text: str) -> str:
    return html.escape(printable(text))
