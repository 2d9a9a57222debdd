"""The public names: are their docstrings complete, and the page that is made from them.

python .ci/public_names.py            lists what is missing; exit status 1 if something is
python .ci/public_names.py --write    writes docs/reference/python.md as well
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import agentrm_jax
import agentrm_jax.testing
from agentrm_jax.core.beams import SelectingScorer

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reference" / "python.md"
MODULES = {"arm": agentrm_jax, "agentrm_jax.testing": agentrm_jax.testing}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\s*$", re.M)
_HEAD = """\
# Python API

Written by `python .ci/public_names.py --write`; `import agentrm_jax as arm`. The site shows
the docstring at each name, and `help(arm.NAME)` prints it. A first example and its
explanation: [Python](../start/python.md). In the types, `Policy` and `Scorer` may also be plain
functions: `(state, n, seed) -> texts` and `(states) -> scores`.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring in its parts: text before the sections, and each section's text."""

    text: str
    sections: dict[str, str]

    def names(self, *sections: str) -> set[str]:
        """Returns the names that sections describe, one at the beginning of an entry."""
        text = "\n".join(self.sections.get(section, "") for section in sections)
        entries = re.findall(r"^([*\w, ]+)(?: \([^)]*\))?:", text, re.M)
        return {name.strip(" *") for entry in entries for name in entry.split(",")}


def parsed(value: Any) -> Docstring:
    """Returns the docstring of an object; without one all parts are empty."""
    text = inspect.getdoc(value) or ""
    parts = _SECTION.split(text)
    sections = {
        name: textwrap.dedent(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    return Docstring(parts[0].strip(), {name: body.strip("\n") for name, body in sections.items()})


def problems() -> list[str]:
    """Returns a line for each public name whose docstring is not complete."""
    found: list[str] = []
    for prefix, module in MODULES.items():
        for name in module.__all__:
            found += _problems(getattr(module, name), f"{prefix}.{name}")
    return found


def _problems(value: Any, name: str) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class_problems(value, name)
    elif callable(value):
        yield from _function_problems(value, name)


def _class_problems(kind: type, name: str) -> Iterator[str]:
    doc = parsed(kind)
    yield from _sentence_problems(doc, name)
    described = doc.names("Args", "Attributes")
    for field in _fields(kind):
        if field not in described:
            yield f"{name}: Attributes lacks {field}"
    for method, value in _methods(kind):
        if isinstance(value, property):
            yield from _sentence_problems(parsed(value), f"{name}.{method}")
        else:
            yield from _function_problems(value, f"{name}.{method}")


def _fields(kind: type) -> list[str]:
    """The parameters of a class: fields of a record, or parameters of its `__init__`."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    if issubclass(kind, tuple):
        return list(getattr(kind, "_fields", ()))
    own = vars(kind).get("__init__")
    if own is None or getattr(kind, "_is_protocol", False):
        return []
    return _parameters(own)


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, with inherited ones if the base class is in this package."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("agentrm_jax"):
            continue
        for name, value in vars(base).items():
            if isinstance(value, classmethod | staticmethod):
                value = value.__func__
            wanted = isinstance(value, property) or inspect.isfunction(value)
            generated = not getattr(value, "__module__", base.__module__).startswith("agentrm_jax")
            if wanted and not name.startswith("_") and name not in seen and not generated:
                seen.add(name)
                yield name, _documented(kind, name, value)


def _documented(kind: type, name: str, value: Any) -> Any:
    """The member, or the one of a base class or protocol that has its docstring."""
    protocols = (agentrm_jax.Policy, agentrm_jax.Scorer, agentrm_jax.Environment, SelectingScorer)
    for owner in (kind, *protocols, *kind.__mro__):
        found = vars(owner).get(name)
        found = getattr(found, "__func__", found)
        if found is not None and getattr(found, "__doc__", None):
            return found
    return value


def _function_problems(function: Callable[..., Any], name: str) -> Iterator[str]:
    doc = parsed(function)
    yield from _sentence_problems(doc, name)
    described = doc.names("Args")
    for parameter in _parameters(function):
        if parameter not in described:
            yield f"{name}: Args lacks {parameter}"
    returned = inspect.signature(function).return_annotation
    says = doc.text.startswith(("Returns ", "Yields ")) or {"Returns", "Yields"} & set(doc.sections)
    if returned not in ("None", None, inspect.Signature.empty) and not says:
        yield f"{name}: lacks Returns"
    if _raises(function) and "UserError" not in doc.sections.get("Raises", ""):
        yield f"{name}: Raises lacks UserError"


def _sentence_problems(doc: Docstring, name: str) -> Iterator[str]:
    first = " ".join(doc.text.split("\n\n")[0].split())
    if not first:
        yield f"{name}: lacks a docstring"
    elif not first.endswith((".", ":")):
        yield f"{name}: the first paragraph is no sentence"


def _parameters(function: Callable[..., Any]) -> list[str]:
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def _raises(function: Callable[..., Any]) -> bool:
    """Whether the function itself raises a UserError."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return any("UserError" in ast.unparse(error) for error in raised if error is not None)


def page() -> str:
    """Returns the text of docs/reference/python.md: a table of names, then directives to
    mkdocstrings."""
    blocks = [_HEAD]
    for prefix, module in MODULES.items():
        names = sorted(module.__all__, key=str.lower)
        blocks += [f"## `{prefix}`\n", "| name | |\n|---|---|"]
        blocks += [_row(getattr(module, name), f"{prefix}.{name}") for name in names]
        blocks.append("")
        blocks += [_entry(getattr(module, name), f"{prefix}.{name}") for name in names]
    return "\n".join(blocks).rstrip() + "\n"


def _row(value: Any, name: str) -> str:
    anchor = re.sub(r"[^\w-]", "", name.lower())
    return f"| [`{name}`](#{anchor}) | {_first_sentence(value)} |"


def _first_sentence(value: Any) -> str:
    if not callable(value):
        return f"A `{type(value).__name__}`."
    text = " ".join(parsed(value).text.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0].replace("|", "\\|")


def _entry(value: Any, name: str) -> str:
    if not callable(value):
        return f"### `{name}`\n\n{_first_sentence(value)}\n"
    signature = _signature(value, name.rpartition(".")[2])
    block = f"```python\n{signature}\n```\n\n" if signature else ""
    return f"### `{name}`\n\n{block}::: {value.__module__}.{value.__qualname__}\n"


def _signature(value: Any, name: str) -> str:
    if inspect.isclass(value) and (getattr(value, "_is_protocol", False) or not _fields(value)):
        return ""
    signature = inspect.signature(value)
    parameters, keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            parameters, keyword = [*parameters, "*"], True
        annotation, default = parameter.annotation, parameter.default
        text = parameter.name
        if annotation is not parameter.empty:
            text += f": {annotation if isinstance(annotation, str) else _type_name(annotation)}"
        if default is not parameter.empty:
            text += f" = {_default(default)}"
        parameters.append(text)
    returned = signature.return_annotation
    arrow = ""
    if not inspect.isclass(value) and returned is not signature.empty:
        arrow = f" -> {returned if isinstance(returned, str) else _type_name(returned)}"
    line = f"{name}({', '.join(parameters)}){arrow}"
    if len(line) <= 96:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){arrow}"


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    text = repr(value)
    return "..." if "<" in text or len(text) > 40 else text


def main() -> int:
    """Prints what is missing; returns the exit status."""
    found = problems()
    for problem in found:
        print(problem)
    if "--write" in sys.argv:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE}: is not up to date; run python .ci/public_names.py --write")
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
