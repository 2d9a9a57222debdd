"""The folder of data that licences keep out of the package, such as the paper's task lists."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs.known_files import KNOWN

VARIABLE = "AGENTRM_DATA"


def data_directory() -> Path:
    """The folder named by `AGENTRM_DATA`, else `cache_directory()`. It need not exist.

    Raises:
      UserError: `AGENTRM_DATA` names the home of a user who is not known.
    """
    if named := os.environ.get(VARIABLE):
        try:
            return Path(named).expanduser().absolute()
        except RuntimeError as error:
            raise UserError(f"{VARIABLE}: {printable(named)}: {first_line(error)}") from None
    return cache_directory()


def cache_directory() -> Path:
    """`agentrm_jax` in the user's cache folder, for what can be made again. It need not exist.

    The cache folder is `XDG_CACHE_HOME`, else `~/.cache`, else, for a user without a home, a
    folder of that user's among the temporary files.

    Raises:
      UserError: That temporary folder belongs to somebody else.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache.is_absolute():  # the XDG specification: a relative path is to be ignored
        return cache / "agentrm_jax"
    home = home_directory()
    return _own_temporary() if home is None else home / ".cache" / "agentrm_jax"


def home_directory() -> Path | None:
    """The user's home; None if neither `HOME` nor the list of users names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def require(relative: str, official_source: str) -> Path:
    """The path of a file or folder of the data directory that has to be there.

    Args:
      relative: Path within the data directory, with forward slashes.
      official_source: Where it is had, for the message: an address, best with a version.

    Raises:
      UserError: It is not there, or is damaged (see `refuse_damaged`).
    """
    path = data_directory() / relative
    if not path.exists():
        raise UserError(
            f"{path}: not found; get it from {official_source} and put it there, "
            f"or set {VARIABLE} to the folder that holds {relative}"
        )
    refuse_damaged(path, relative)
    return path


def refuse_damaged(path: Path, relative: str) -> None:
    """Refuses a file that has the name and the size of a known release, but other contents.

    A file of another size may be another release, or a user's own: it is read unchecked.

    Raises:
      UserError: The file is damaged.
    """
    if relative in KNOWN and path.is_file():
        stat = path.stat()
        changed = (stat.st_mtime_ns, stat.st_ctime_ns)
        if stat.st_size == KNOWN[relative][0] and not _as_known(path, relative, changed):
            raise UserError(
                f"{path}: damaged: its sha256 is not that of the file of this name and size that "
                "was released; get it again"
            )


@functools.lru_cache(maxsize=1024)
def _as_known(path: Path, relative: str, _changed: tuple[int, int]) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest().startswith(KNOWN[relative][1])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


def _own_temporary() -> Path:
    folder = Path(tempfile.gettempdir()) / f"agentrm_jax-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        stat = folder.lstat()
    except OSError as error:
        raise UserError(f"{folder}: {first_line(error)}; set XDG_CACHE_HOME") from None
    if stat.st_uid != os.getuid() or folder.is_symlink():
        raise UserError(f"{folder}: belongs to somebody else; set XDG_CACHE_HOME")
    return folder
