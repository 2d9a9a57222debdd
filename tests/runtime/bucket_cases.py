"""A bucket for tests: objects as files of a folder, created by hard links, with faults on demand.

It is also a plugin: a run that imports it can use `diskbucket://` and the path of a folder as
`leases.store`.
"""

from __future__ import annotations

import os
import pathlib
import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem


class DiskBucket(LocalFileSystem):
    """A file system whose creates are conditional, as those of an object store.

    Attributes:
      faults: Errors of the next calls by the name of their method, each before its call takes
        effect, or after it if it is given as a pair (error, "after").
      hidden: Ends of names that listings leave out.
    """

    protocol = "diskbucket"

    def __init__(self, **options) -> None:
        super().__init__()
        self.faults: dict[str, list] = {}
        self.hidden: tuple[str, ...] = ()

    @classmethod
    def _strip_protocol(cls, path):
        scheme, found, rest = str(path).partition("://")
        return f"/{rest}" if found else scheme

    def _fault(self, method: str, when: str = "before") -> None:
        """Raises the next error of a method, if it is due at this moment."""
        errors = self.faults.get(method)
        if not errors:
            return
        error, moment = errors[0] if isinstance(errors[0], tuple) else (errors[0], "before")
        if moment == when:
            errors.pop(0)
            raise error

    def pipe_file(self, path, value, mode="overwrite", **options) -> None:
        self._fault("pipe_file")
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        temporary.write_bytes(value)
        if mode == "create":
            try:
                os.link(temporary, target)
            finally:
                temporary.unlink()
        else:
            os.replace(temporary, target)
        self._fault("pipe_file", "after")

    def cat_file(self, path, start=None, end=None, **options) -> bytes:
        self._fault("cat_file")
        return pathlib.Path(path).read_bytes()[start:end]

    def ls(self, path, detail=False, **options):
        self._fault("ls")
        names = sorted(os.listdir(path))
        shown = [name for name in names if not name.startswith(".")]
        return [f"{path}/{name}" for name in shown if not name.endswith(self.hidden)]

    def put_file(self, lpath, rpath, **options) -> None:
        pathlib.Path(rpath).parent.mkdir(parents=True, exist_ok=True)
        super().put_file(lpath, rpath)


class Overwriting(DiskBucket):
    """A store that ignores the condition of a create."""

    protocol = "overwriting"

    def pipe_file(self, path, value, mode="overwrite", **options) -> None:
        super().pipe_file(path, value)


class LooksFirst(LocalFileSystem):
    """A file system with the create of fsspec itself, which looks first and then writes."""

    protocol = "looksfirst"


for kind in (DiskBucket, Overwriting, LooksFirst):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
