"""Sizes that keep the package readable: fails if a module, a function or a signature is too long.

python .ci/sizes.py
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

from agentrm_jax.cli.commands import COMMANDS

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "agentrm_jax"
MODULE, FUNCTION, PARAMETERS = 400, 70, 8
"""Most lines of a module, lines of a function, and parameters of a function."""
EACH_COMMAND = 60
"""Most lines of the command line for each command."""


def too_large(path: pathlib.Path) -> Iterator[str]:
    """Yields what exceeds a limit in a module."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE.parent)
    if (lines := text.count("\n")) > MODULE:
        yield f"{name}: {lines} lines, at most {MODULE}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{name}, line {node.lineno}: {node.name}"
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION:
                yield f"{where} has {lines} lines, at most {FUNCTION}"
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if (count := sum(each.arg not in ("self", "cls") for each in named)) > PARAMETERS:
                yield f"{where} has {count} parameters, at most {PARAMETERS}"


def main() -> int:
    found = [line for path in sorted(PACKAGE.rglob("*.py")) for line in too_large(path)]
    lines = sum(path.read_text().count("\n") for path in (PACKAGE / "cli").rglob("*.py"))
    if lines > EACH_COMMAND * len(COMMANDS):
        found.append(f"agentrm_jax/cli: {lines} lines, at most {EACH_COMMAND} for each command")
    print("\n".join(found) or f"command line: {lines} lines for {len(COMMANDS)} commands")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
