"""Folders and files that a command writes: in one piece, and never over what others wrote.

A folder may be written if it is absent, empty, or holds nothing but files that its own manifest
lists, unchanged (`runtime.manifests`). Everything is written into a temporary folder next to it,
which takes its place at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import IO

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.runtime.manifests import unlisted_files, write_manifest

_LOCK = ".agentrm.lock"  # held while a temporary folder is written; says that it is ours
_SHOWN = 3  # names in an error message
_TRIES = 20  # to remove a temporary folder


def check_output_folder(directory: pathlib.Path, inputs: Iterable[pathlib.Path] = ()) -> None:
    """Refuses a folder that a command must not write; called before any work.

    Args:
      directory: The folder that will be written or replaced.
      inputs: Files and folders that the command reads.

    Raises:
      UserError: It is the working folder or above it, a file or a link, holds files that agentrm
        did not write, holds one of the inputs, or cannot be made.
    """
    try:
        _check_kind(directory)
        _check_inputs(directory, inputs)
        _check_parent(directory)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise UserError(f"{printable(str(directory))}: {first_line(error)}") from None
    _check_contents(directory)


def check_output_file(path: pathlib.Path, inputs: Iterable[pathlib.Path] = ()) -> None:
    """Refuses a file name under which a command must not write; called before any work.

    Whether a file that is there already may be replaced is for the caller to say.

    Raises:
      UserError: It is a folder, a link or a device, is or holds one of the inputs, or its folder
        cannot be made.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path}: not a regular file; choose another file to write")
        for each in inputs:
            if each.exists() and path.resolve() == each.resolve():
                raise UserError(f"{path}: is the file that is read; choose another file to write")
        _check_parent(path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{printable(str(path))}: {first_line(error)}") from None


@contextlib.contextmanager
def new_folder(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, which becomes `directory` with a manifest if the block succeeds.

    If the block raises anything, KeyboardInterrupt included, nothing is left of it.

    Raises:
      UserError: `check_output_folder` refuses the folder, or it cannot be written.
    """
    partial = begin_folder(directory)
    try:
        yield partial
        finish_folder(partial, directory)
    except OSError as error:  # a full disk
        drop_folder(partial)
        raise UserError(f"{directory}: cannot be written ({first_line(error)})") from None
    except BaseException:
        drop_folder(partial)
        raise


_locks: dict[pathlib.Path, IO[bytes]] = {}


def begin_folder(directory: pathlib.Path) -> pathlib.Path:
    """Makes a temporary folder next to `directory`, and removes leftovers of killed processes.

    For work that several processes share; `new_folder` otherwise. `finish_folder` or `drop_folder`
    has to follow.

    Raises:
      UserError: See `new_folder`.
    """
    check_output_folder(directory)
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        for old in directory.parent.glob(f".{_escaped(directory.name)}.*.partial"):
            _remove_abandoned(old)
        name = tempfile.mkdtemp(".partial", f".{directory.name}.", directory.parent)
        partial = pathlib.Path(name)
        partial.chmod(0o777 & ~_umask())  # mkdtemp makes it readable by its owner only
        lock = (partial / _LOCK).open("wb")
        _locks[partial] = lock
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({first_line(error)})") from None
    return partial


def finish_folder(partial: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes the manifest and puts a temporary folder in the place of `directory`.

    Raises:
      UserError: Other files came into `directory` in the meantime, or the disk is full.
    """
    directory = directory.absolute()
    try:
        (partial / _LOCK).unlink()
        write_manifest(partial)
        _check_kind(directory)
        _replace(directory, partial)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({first_line(error)})") from None
    _locks.pop(partial).close()


def _replace(directory: pathlib.Path, partial: pathlib.Path) -> None:
    """Moves `partial` to `directory`; a folder there goes only if no file came into it."""
    if not directory.exists():
        partial.rename(directory)
        return
    aside = pathlib.Path(tempfile.mkdtemp(".partial", f".{directory.name}.", directory.parent))
    try:
        moved = directory.rename(aside / directory.name)
        try:
            _check_contents(moved, contents=False, shown=directory)
            partial.rename(directory)
        except BaseException:
            moved.rename(directory)
            raise
    except BaseException:
        with contextlib.suppress(OSError):  # it still holds files if they could not go back
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def drop_folder(partial: pathlib.Path) -> None:
    """Removes a temporary folder of `begin_folder`."""
    for _ in range(_TRIES):  # threads that were writing it may still end
        shutil.rmtree(partial, ignore_errors=True)
        if not partial.exists():
            break
        time.sleep(0.1)
    if lock := _locks.pop(partial, None):
        lock.close()


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[IO[str]]:
    """Yields a file under a temporary name of its own, which becomes `path` if the block succeeds.

    Of several processes that write the same path, the last one that finishes stays, whole.

    Raises:
      UserError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({first_line(error)})") from None
    try:
        with open(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({first_line(error)})") from None
    finally:
        pathlib.Path(name).unlink(missing_ok=True)


def _check_kind(directory: pathlib.Path) -> None:
    if directory.is_symlink():
        raise UserError(f"{directory}: is a symbolic link; choose an empty folder")
    working = pathlib.Path.cwd()
    if directory.resolve() in (working, *working.parents):
        raise UserError(
            f"{str(directory)!r}: is the working folder or above it; give the name of a new folder"
        )
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; choose an empty folder")


def _check_inputs(directory: pathlib.Path, inputs: Iterable[pathlib.Path]) -> None:
    target = directory.resolve()
    for each in inputs:
        if each.exists() and target in (each.resolve(), *each.resolve().parents):
            raise UserError(f"{directory}: holds {each}, which is read; choose an empty folder")


def _check_parent(path: pathlib.Path) -> None:
    """The nearest folder that exists must be a folder, and one that can be written."""
    above = next(each for each in path.absolute().parents if os.path.lexists(each))
    if not above.is_dir():
        raise UserError(f"{path}: {above} is not a folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {above} cannot be written; choose another place")


def _check_contents(
    directory: pathlib.Path, *, contents: bool = True, shown: pathlib.Path | None = None
) -> None:
    found = unlisted_files(directory, contents=contents)
    if found:
        more = ", ..." if len(found) > _SHOWN else ""
        names = ", ".join(printable(name) for name in found[:_SHOWN])
        raise UserError(
            f"{shown or directory}: holds files that agentrm did not write, or that changed since "
            f"({names}{more}); choose an empty folder"
        )


def _remove_abandoned(partial: pathlib.Path) -> None:
    """Removes a temporary folder of ours whose process is gone: its lock is free."""
    if partial.is_symlink():
        return
    with contextlib.suppress(OSError), (partial / _LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(partial, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
