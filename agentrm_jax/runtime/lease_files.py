"""Files that are created once: the store of leases and records on a disk that all hosts see.

Everything rests on one operation, "create if absent": a file is written whole under a temporary
name, and a hard link gives it its own name. The link fails if the name is taken, on POSIX file
systems and on NFS, so that of any number of hosts one succeeds, and no reader sees half a file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import shutil
import tempfile
import uuid
from typing import Protocol

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LeasesEnded(Exception):
    """The work that the leases are for has ended, or another process has taken it over."""


class LeaseStore(Protocol):
    """Small files by name; a name is `FOLDER/FILE`."""

    def create(self, name: str, content: bytes | pathlib.Path) -> bool:
        """Creates a file unless the name is taken; returns whether it was created.

        Args:
          name: The name.
          content: The content, or a complete file on the same disk, which gets the name as well.

        Raises:
          LeasesEnded: The store was removed.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file that only the caller writes.

        Raises:
          LeasesEnded: The store was removed.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, None if it is absent."""
        ...

    def names(self, folder: str) -> list[str]:
        """Returns the names of the files in a folder, without the folder.

        Raises:
          LeasesEnded: The store was removed.
        """
        ...


class FileStore:
    """A `LeaseStore` in a folder.

    Args:
      directory: The folder. It and its folders are made by `make` only: if it is removed, the work
        of all hosts on it has ended, and nobody makes it again by mistake.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._numbers, self._mark = itertools.count(), uuid.uuid4().hex[:12]

    def make(self, folder: str) -> None:
        """Makes the store with a folder in it.

        Raises:
          UserError: The file system has no hard links.
        """
        path = self.directory / folder
        path.mkdir(parents=True, exist_ok=True)
        self._check_links(path / self._temporary())

    def add(self, folder: str) -> None:
        """Makes a folder in the store.

        Raises:
          LeasesEnded: The store was removed.
        """
        try:
            (self.directory / folder).mkdir(exist_ok=True)
        except FileNotFoundError:
            raise LeasesEnded(str(self.directory)) from None

    def _check_links(self, probe: pathlib.Path) -> None:
        probe.touch()
        try:
            os.link(probe, probe.with_suffix(".link"))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise UserError(
                f"{self.directory}: leases need a file system with hard links "
                f"({first_line(error)}); choose another --output, or run one process"
            ) from None
        finally:
            probe.with_suffix(".link").unlink(missing_ok=True)
            probe.unlink(missing_ok=True)

    def path(self, name: str) -> pathlib.Path:
        """Returns the path of a file."""
        return self.directory / name

    def create(self, name: str, content: bytes | pathlib.Path) -> bool:
        target = self.path(name)
        if isinstance(content, pathlib.Path):
            return self._link(content, target)
        if target.exists():  # the usual answer for a task that others have taken, and a cheap one
            return False
        temporary = target.with_name(self._temporary())
        try:
            self._put(temporary, content)
            return self._link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        target = self.path(name)
        temporary = target.with_name(self._temporary())
        try:
            self._put(temporary, content)
            os.replace(temporary, target)
        except FileNotFoundError:
            raise LeasesEnded(str(self.directory)) from None
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        try:
            return [name for name in os.listdir(self.path(folder)) if not name.startswith(".")]
        except FileNotFoundError:
            raise LeasesEnded(str(self.directory)) from None

    def remove_all(self) -> None:
        """Removes the store; hosts that still use it get `LeasesEnded` from then on."""
        aside = pathlib.Path(tempfile.mkdtemp(prefix=".ended.", dir=self.directory.parent))
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(aside / "leases")  # at once, so that nobody sees a part of it
        shutil.rmtree(aside, ignore_errors=True)

    def _temporary(self) -> str:
        return f".{self._mark}.{os.getpid()}.{next(self._numbers)}.tmp"

    def _put(self, path: pathlib.Path, content: bytes) -> None:
        try:
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise LeasesEnded(str(self.directory)) from None

    def _link(self, source: pathlib.Path, target: pathlib.Path) -> bool:
        try:
            os.link(source, target)
        except FileNotFoundError:
            if target.parent.is_dir():
                raise
            raise LeasesEnded(str(self.directory)) from None
        except FileExistsError:
            # An NFS server may have made the link and lost its answer; the repeated request then
            # fails. The number of links, read through a new descriptor, tells the two apart.
            return _is_same(source, target)
        return True


def _is_same(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Whether two names are of one file."""
    try:
        with source.open("rb") as a, target.open("rb") as b:
            return os.path.sameopenfile(a.fileno(), b.fileno())
    except OSError:
        return False
