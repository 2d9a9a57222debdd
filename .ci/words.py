"""Words that plain English does without, counted in comments, docstrings and texts of the package.

    python .ci/words.py          fails if a floor holds more of them than `MOST` allows
    python .ci/words.py FLOOR    lists those of a floor, or of a file below `agentrm_jax/`

`MOST` may only fall. A floor that is not in it holds none.
"""

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agentrm_jax"
OUTSIDE = ("benchmarks", "docs", ".ci")
"""Folders of which only the openings of docstrings are checked."""

WORDS = {
    r"behind": "after",
    r"besides?": "next to, as well as",
    r"anew": "again",
    r"go(es)? on": "resume, continue",
    r"is told": "gets, has",
    r"so many": "the number of ...",
    r"knows? no": "does not support",
    r"None where": "None if",
    r"but for": "except for",
    r"at hand": "there, available",
    r"lanes?": "row of the batch",
}
"""From banned words to what to write instead."""

OPENINGS = re.compile(r"(What|Where|How|The same|As|See|Of|Those|That|Which)\b")
"""First words of a docstring that does not name its subject."""

MOST = {
    "envs": 7,  # texts that agents read
}
"""Most findings by floor: may only fall."""

_BANNED = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)


def findings(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields lines with a banned word in a comment or a text, or with a docstring's bad opening."""
    source = path.read_text()
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            for offset, line in enumerate(token.string.splitlines()):
                for match in _BANNED.finditer(line):
                    yield token.start[0] + offset, match[0]
    yield from _openings(source)


def _openings(source: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of docstrings with a bad opening."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and (match := OPENINGS.match(text)):
                yield getattr(node, "lineno", 1), f"a docstring that begins with {match[0]}"


def main(arguments: list[str]) -> int:
    if arguments:
        for path in _files(PACKAGE / arguments[0]):
            for line, found in findings(path):
                print(f"{path.relative_to(PACKAGE.parent)}:{line}: {found}")
        return 0
    failed = False
    for floor in sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()):
        count = sum(1 for path in _files(PACKAGE / floor) for _ in findings(path))
        most = MOST.get(floor, 0)
        if count > most:
            failed = True
            print(f"{floor}: {count} words or openings to avoid, at most {most} are allowed;")
            print(f"  `python .ci/words.py {floor}` lists them")
        elif count < most:
            print(f"{floor}: {count} are left; lower MOST from {most} in .ci/words.py")
    for path in (path for folder in OUTSIDE for path in _files(ROOT / folder)):
        for line, found in _openings(path.read_text()):
            failed = True
            print(f"{path.relative_to(ROOT)}:{line}: {found}")
    return int(failed)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
