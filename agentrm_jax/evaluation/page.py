"""Pages of one file, from the templates that lie here."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from agentrm_jax.core.text import admit_text, printable

_LONGEST = 20_000
"""Most characters of a text on a page: a browser stops at pages of some hundred megabytes."""


def page(
    template: str,
    *,
    styles: Sequence[str] = ("page.css",),
    scripts: Sequence[str] = ("page.js",),
    blocks: Mapping[str, str] | None = None,
    **values: Any,
) -> str:
    """Returns a template filled in: one page that asks for nothing from outside.

    Whatever an environment or a policy wrote is escaped by the template engine. The content policy
    of the page allows the given scripts, by their hash, and no others. Control, format and
    bidirectional characters of values are shown as escapes: raw, they could hide or reorder what
    a reader sees.

    Args:
      template: A file of this folder.
      styles: Style sheets of this folder.
      scripts: Scripts of this folder, in the order in which they run.
      blocks: JSON texts for the scripts, by the identifier of their element.
      values: What the template shows.
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
    sources = [_file(name) for name in scripts]
    elements = [
        f'<script type="application/json" id="{name}">{json_block(text)}</script>'
        for name, text in (blocks or {}).items()
    ]
    elements += [f"<script>{source}</script>" for source in sources]
    return environment.get_template(template).render(
        style=Markup("".join(_file(name) for name in styles)),
        script_policy=Markup(" ".join(map(_hash, sources)) or "'none'"),
        scripts=Markup("\n".join(elements)),
        **values,
    )


def json_block(text: str) -> str:
    """Returns a JSON text that can stand in a script element: nothing in it ends the element.

    Args:
      text: ASCII JSON, as `json.dumps` writes it; `<`, `>` and `&` occur in its strings only.
    """
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _file(name: str) -> str:
    return (
        importlib.resources.files("agentrm_jax.evaluation")
        .joinpath(name)
        .read_text(encoding="utf-8")
    )


def _hash(source: str) -> str:
    """The script as the content policy names it."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


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
