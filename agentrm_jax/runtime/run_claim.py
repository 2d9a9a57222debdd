"""Claims a folder for a run: only one that is new, empty or a run's, and for one process."""

from __future__ import annotations

import fcntl
import os
import pathlib
import stat
from collections.abc import Iterable
from typing import IO

from agentrm_jax.core.addresses import is_store_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.runtime.output_folders import check_output_file
from agentrm_jax.runtime.run_directory import RESOLVED, SECONDS_FILE, STAGE_FILE, VERSIONS

_LOCK = ".lock"


class FolderInUse(UserError):
    """Another process works in a run's folder."""


def check_run_folder(directory: pathlib.Path, stages: Iterable[str] = ()) -> None:
    """Refuses a folder that no run may take; called before any work.

    A folder that is new, empty or a run's may be taken. In a run's folder, other files are left as
    they are.

    Args:
      directory: The folder.
      stages: The folders of its stages, relative to it.

    Raises:
      UserError: It is a URL, is the working folder or above it, holds other things than a run, or
        cannot be made or written.
    """
    name = printable(str(directory))
    if name != str(directory):
        raise UserError(f"{name}: a folder's name must not hold control characters")
    if is_store_url(name):
        raise UserError(
            f"{name}: --output must be a folder of a file system; to share a run through a bucket, "
            "give each host a folder of its own and set leases.store to the URL"
        )
    try:
        working = pathlib.Path.cwd()
        if directory.resolve() in (working, *working.parents):
            raise UserError(
                f"{name!r}: is the working folder or above it; give the name of a new folder"
            )
        if os.path.lexists(directory) and not directory.is_dir():
            raise UserError(f"{name}: is not a folder; choose another --output")
        held = sorted(os.listdir(directory)) if directory.is_dir() else []
        is_run = any((directory / own).is_file() for own in (RESOLVED, VERSIONS)) or any(
            (directory / stage / record).is_file()
            for stage in stages
            for record in (STAGE_FILE, SECONDS_FILE)
        )
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links
        raise UserError(f"{name}: cannot be read ({first_line(error)})") from None
    if set(held) - {_LOCK} and not is_run:
        shown = ", ".join(printable(each) for each in held[:3]) + (", ..." if held[3:] else "")
        raise UserError(f"{name}: holds files, but no run ({shown}); choose an empty folder")
    check_output_file(directory / RESOLVED)


def lock_run_folder(directory: pathlib.Path, *, shared: bool = False) -> IO[bytes]:
    """Makes a run's folder and returns its lock, which is held until the file is closed.

    Args:
      directory: The folder.
      shared: Whether other processes may hold it as well, with `shared` too.

    Raises:
      FolderInUse: Another process holds it.
      UserError: Its file is a link or no regular file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.fdopen(os.open(path, flags, 0o666), "rb")
    except OSError as error:  # ELOOP: a link
        raise UserError(
            f"{path}: cannot be opened ({error.strerror}); it must be a regular file: remove it"
        ) from None
    if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
        lock.close()
        raise UserError(f"{path}: must be a regular file; remove it")
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        hint = "; with leases.enabled, all processes need it" if shared else ""
        raise FolderInUse(f"{directory}: another process works in this folder{hint}") from None
    return lock
