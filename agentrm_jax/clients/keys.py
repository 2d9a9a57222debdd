"""API keys: read from environment variables, and masked where a server sends them back."""

from __future__ import annotations

import functools
import os
import re

from agentrm_jax.core.errors import UserError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHORTEST = 8
"""Shorter keys are placeholders such as `none`: masking them would change what servers answer."""


def check_variable(name: str, field: str) -> None:
    """Refuses what is not the name of an environment variable, without showing it: it may be a key.

    Args:
      name: The name; empty names no variable.
      field: The key or option that holds it, for errors.

    Raises:
      UserError: It is no such name.
    """
    if name and not _VARIABLE.fullmatch(name):
        raise UserError(
            "must be the name of an environment variable, such as OPENAI_API_KEY", field=field
        )


def read_key(variable: str, field: str) -> str:
    """Returns the key in an environment variable, without blanks around it.

    Args:
      variable: The name of the variable; without one the key is empty.
      field: The key or option that holds the name, for errors.

    Raises:
      UserError: It is no name, the variable is empty, or it cannot be sent in a header.
    """
    check_variable(variable, field)
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"names {variable}, which is not set in this environment", field=field)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"names {variable}, which holds no key", field=field)
    return key


def masked(answer: bytes, key: str) -> bytes:
    """Returns an answer in which a key that the server sends back is masked, escaped or not.

    Args:
      answer: The body.
      key: The key; one of fewer than 8 characters is no secret.
    """
    return answer if len(key) < _SHORTEST else _written(key).sub(b"[key]", answer)


@functools.cache
def _written(key: str) -> re.Pattern[bytes]:
    """A key as text or in JSON, where any character may be an escape."""
    escapes = (rf"(?:\\?{re.escape(each)}|\\u00(?i:{ord(each):02x}))" for each in key)
    return re.compile("".join(escapes).encode())
