"""Text from outside: made valid where it enters, escaped where it is shown.

Environments, servers, imported files, plug-ins and error messages may hold anything. Every such
text passes `admit_text` once; everything that is printed or put on a page passes `printable`.
"""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_CHARACTERS = 1_000_000
"""Longest text that is admitted: about 250,000 tokens, more than any context here."""

_ESCAPED_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def admit_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Returns a text from outside as valid Unicode of bounded length.

    Two surrogates that form a pair become their character; every other surrogate becomes U+FFFD.
    Text beyond the limit is cut, and its end says how much is missing. Control characters are
    kept: they are valid text, and `printable` escapes them for a reader.

    Args:
      text: Any string.
      limit: Most characters of the text that are kept, without the mark.

    Raises:
      TypeError: It is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text, got {type(text).__name__}")
    text = str.__str__(text)  # the characters of a subclass, whatever its methods say
    missing = len(text) - limit
    if missing > 0:
        text = text[:limit]
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return f"{text} ... [{missing:,} more characters]" if missing > 0 else text


def printable(text: str, keep: str = "") -> str:
    r"""Returns a text with control, format and line-breaking characters as escapes (`\x1b`).

    Args:
      text: Any string.
      keep: Characters that stay as they are, for example a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(character)[1:-1]
        if unicodedata.category(character) in _ESCAPED_CATEGORIES and character not in keep
        else character
        for character in text
    )


def shown(value: Any) -> str:
    """Returns a value as an error message shows it: short, printable."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python converts
        return f"a very large {type(value).__name__}"
    text = printable(text)
    if len(text) > 40:
        text = f"{text[:40]}..."
    return f"'{text}'" if isinstance(value, str) else text


def message_of(error: BaseException) -> str:
    """Returns the text of an exception; empty if the exception fails to give one."""
    try:
        return admit_text(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # `__str__` of a foreign exception may do anything, even exit
        return ""


def described(error: BaseException) -> str:
    """Returns the type of an exception and the first line of its text: "KeyError: 'seed'"."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first line of an exception's text, or its type if it has none; printable."""
    lines = message_of(error).splitlines()
    return printable(lines[0] if lines and lines[0].strip() else type(error).__name__)[:limit]
