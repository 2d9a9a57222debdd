"""Lines of the console: questions, and texts from outside without their control characters."""

from __future__ import annotations

import sys

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import admit_text, first_line, printable


def read_line(question: str) -> str:
    """Returns a line of the standard input; empty at its end, or if it is closed."""
    if sys.stdin is None:
        return ""
    try:
        return input(question).strip()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not text: {first_line(error)}") from None
    except (EOFError, ValueError):  # a closed stream is a ValueError
        return ""


def say(text: str) -> None:
    """Prints a text from outside."""
    print(visible(text, keep="\n"))


def visible(text: str, keep: str = "") -> str:
    """Returns the text with control characters, and what the standard output lacks, as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = printable(admit_text(text), keep=keep)
    return shown.encode(encoding, "backslashreplace").decode(encoding)
