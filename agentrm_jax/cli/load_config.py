"""A `RunConfig` from a YAML file and overrides; its errors name key, file and line."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from agentrm_jax.cli.config import RunConfig
from agentrm_jax.core.errors import UserError


def make_parser(prog: str, description: str) -> Any:
    """A parser whose options are the keys of `RunConfig`, with their descriptions."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=f"{description}. DIR is the folder of the run.",
        usage=f"{prog} CONFIG --output DIR [--KEY=VALUE ...]",
        exit_on_error=False,
        add_help=False,
    )
    parser.add_argument("--config", action="config", help="another YAML file, laid over CONFIG")
    parser.add_class_arguments(RunConfig, None)
    return parser


def load_config(parser: Any, path: pathlib.Path, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a file with overrides such as `--sft.fit.length=512` laid over it.

    Raises:
      UserError: The file is missing or not YAML; a key is unknown; a value is of another type or
        out of range. Names the key and, where the file sets it, file and line.
    """
    import jsonargparse

    lines = _checked_lines(path)
    try:
        parsed = parser.parse_args(["--config", str(path), *overrides])
    except (jsonargparse.ArgumentError, SystemExit) as error:
        raise UserError(_located(_one_line(str(error)), path, lines, overrides)) from None
    try:
        values = parser.instantiate(parsed)
        return RunConfig(**{f.name: values[f.name] for f in dataclasses.fields(RunConfig)})
    except UserError as error:
        raise UserError(_located(str(error), path, lines, overrides)) from None


def _one_line(message: str) -> str:
    message = re.sub(r'^Parser key "([^"]+)":', r"\1:", message)
    return " ".join(message.split())


def _located(
    message: str, path: pathlib.Path, lines: dict[str, int], overrides: Sequence[str]
) -> str:
    """The message behind the file and line that set the key with which it begins."""
    key = message.partition(":")[0]
    options = [override.partition("=")[0].lstrip("-") for override in overrides]
    if not re.fullmatch(r"[\w.]+", key) or any(f".{o}".endswith(f".{key}") for o in options):
        return message
    found = [name for name in lines if name == key or name.endswith(f".{key}")]
    if len(found) != 1:
        return message
    return f"{path}, line {lines[found[0]]}: {message}"


def _checked_lines(path: pathlib.Path) -> dict[str, int]:
    """The line of each dotted key of the file; all of them are keys of the configuration."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}, line {line}: not YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({_one_line(str(error))})") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}, line 1: expected keys and values")
    return dict(_keys(path, root, RunConfig, "")) if root is not None else {}


def _keys(path: pathlib.Path, node: Any, kind: Any, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.SequenceNode) and not dataclasses.is_dataclass(kind):
        for item in node.value:
            yield from _keys(path, item, (typing.get_args(kind) or (None,))[0], prefix)
    if not dataclasses.is_dataclass(kind):
        return
    if not isinstance(node, yaml.MappingNode):
        where = f"{path}, line {node.start_mark.line + 1}: {prefix.rstrip('.') or 'the file'}"
        raise UserError(f"{where}: expected keys and values")
    types, seen = typing.get_type_hints(kind), set[str]()
    for key, value in node.value:
        line, name = key.start_mark.line + 1, f"{prefix}{key.value}"
        if name in seen:
            raise UserError(f"{path}, line {line}: {name} is set a second time")
        seen.add(name)
        if key.value not in types:
            near = difflib.get_close_matches(str(key.value), types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(types)}"
            raise UserError(f"{path}, line {line}: unknown key {name}; {hint}")
        yield name, line
        yield from _keys(path, value, types[key.value], f"{name}.")
