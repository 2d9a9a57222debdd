"""Where data lies that licences keep out of the package, such as the paper's own task lists."""

from __future__ import annotations

import os
from pathlib import Path

from agentrm_jax.core.errors import UserError

VARIABLE = "AGENTRM_DATA"


def data_directory() -> Path:
    """The folder named by `AGENTRM_DATA`, else `cache_directory()`. It need not exist."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    return cache_directory()


def cache_directory() -> Path:
    """`agentrm_jax` in the user's cache folder, for what can be made again. It need not exist.

    The cache folder is `XDG_CACHE_HOME`, else `~/.cache`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification: a relative path is to be ignored
        cache = Path.home() / ".cache"
    return cache / "agentrm_jax"


def require(relative: str, official_source: str) -> Path:
    """The path of a file or folder of the data directory that has to be there.

    Args:
      relative: Path within the data directory, with forward slashes.
      official_source: Where it is had, for the message: an address, best with a version.

    Raises:
      UserError: It is not there.
    """
    path = data_directory() / relative
    if not path.exists():
        raise UserError(
            f"{path}: not found; get it from {official_source} and put it there, "
            f"or set {VARIABLE} to the folder that holds {relative}"
        )
    return path
