"""Pages of one file, from the templates that lie here."""

from __future__ import annotations

import math
from typing import Any

import jinja2
from markupsafe import Markup

from agentrm_jax.core.text import admit_text, printable

_LONGEST = 20_000
"""Most characters of a text on a page: a browser stops at pages of some hundred megabytes."""


def page(template: str, **values: Any) -> str:
    """A template filled in. Pages hold no script and ask for nothing from outside.

    Whatever an environment or a policy wrote is escaped by the template engine; a content policy
    in the page forbids scripts as well. Control, format and bidirectional characters of values are
    shown as escapes: raw, they could hide or reorder what a reader sees.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agentrm_jax.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, decimals=_decimals, duration=_duration)
    return environment.get_template(template).render(**values)


def _shown(value: Any) -> Any:
    """A value as the page holds it: valid text without raw control characters, but newlines."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(admit_text(value, _LONGEST), keep="\n\t")


def _number(value: Any) -> str:
    """A number as people write it; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)  # noqa: RUF001
    if isinstance(value, int) or (abs(value) >= 1000 and math.isfinite(value)):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _decimals(value: float | None, places: int) -> str:
    return "–" if value is None else f"{value:.{places}f}"  # noqa: RUF001


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
