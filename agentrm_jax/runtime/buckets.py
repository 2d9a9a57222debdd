"""Objects of a bucket, through fsspec: created once, read whole, within a time limit.

Leases rest on the conditional create of the store (`If-None-Match: *` of S3, `ifGenerationMatch=0`
of GCS), which fsspec calls `pipe_file(..., mode="create")`. A client that lost the answer to a
create repeats it, and gets the error that the object exists. Each object therefore begins with a
line that each call makes up, by which it recognizes an object of its own.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import pathlib
import random
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from agentrm_jax.core.errors import UserError

T = TypeVar("T")

FIELD = "leases.store"
"""The key that names a bucket."""

_INSTALL = "pip install 'agentrm-jax[objects]'"
_EXPECTED = "gs://BUCKET/PREFIX or s3://BUCKET/PREFIX"
_URL = re.compile(r"[a-z][a-z0-9]*://[\w.-]+(/[\w.+=,-]+)*/?", re.ASCII)
_MARK = 33  # hexadecimal digits and a line break
_SECONDS = 60.0  # for one attempt at a small object
_BYTES_PER_SECOND = 1e6  # a file may take this much longer
_PATIENCE = 180.0
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_PERMANENT = (TypeError, ValueError, AttributeError, NotImplementedError, ImportError)


class StoreAway(UserError):
    """The store did not answer, or answered with errors that may pass, for too long."""


def check_bucket_url(url: str, field: str = "store") -> None:
    """Refuses a text that is no URL of a folder in a bucket; keys in it are not shown.

    Raises:
      UserError: It is something else.
    """
    if not _URL.fullmatch(url) or {".", ".."} & set(url.split("/")):
        value = None if any(mark in url for mark in "@?#") else url
        raise UserError(field=field, value=value, expected=_EXPECTED)


def open_bucket(url: str) -> Bucket:
    """Opens a bucket, and checks that it creates objects only once.

    Args:
      url: See `check_bucket_url`. s3fs and gcsfs find credentials and endpoints.

    Raises:
      UserError: A package is missing, the scheme is unknown, the bucket is missing or cannot be
        written, or the store has no conditional create.
    """
    check_bucket_url(url, FIELD)
    scheme = url.partition("://")[0]
    try:
        import fsspec

        kind: Any = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(
            f"{FIELD} {url}: needs {error.name or f'a package for {scheme}'}; {_INSTALL}"
        ) from None
    except ValueError:
        raise UserError(field=FIELD, value=url, expected=_EXPECTED) from None
    _check_kind(kind, url, scheme)
    for client in ("fsspec", "gcsfs", "s3fs"):  # they log errors that `Bucket` retries or reports
        if (log := logging.getLogger(client)).level == logging.NOTSET:
            log.setLevel(logging.CRITICAL)
    root = str(kind._strip_protocol(url)).rstrip("/")
    try:
        files = _within(_SECONDS, lambda: kind(skip_instance_cache=True, use_listings_cache=False))
    except Exception as error:  # of any client
        raise _refused(error, "open", url) from None
    bucket = Bucket(url.rstrip("/"), files, root)
    bucket.check()
    return bucket


def _check_kind(kind: Any, url: str, scheme: str) -> None:
    """Refuses a class of fsspec that looks first and then writes, which two hosts may do at once.

    A probe cannot tell it from a conditional create.
    """
    import fsspec.asyn

    if scheme in ("file", "local", "memory"):
        raise UserError(
            f"{FIELD} {url}: is not an object store; leave {FIELD} out, and give a folder that all "
            "hosts see as --output"
        )
    base, name = fsspec.AbstractFileSystem, "pipe_file"
    if issubclass(kind, fsspec.asyn.AsyncFileSystem):
        base, name = fsspec.asyn.AsyncFileSystem, "_pipe_file"
    own = getattr(kind, name)
    if own is getattr(base, name) or "mode" not in inspect.signature(own).parameters:
        raise UserError(
            f"{FIELD} {url}: the package of {scheme} has no conditional create "
            f"({kind.__name__}.pipe_file without mode); install s3fs or gcsfs 2024.12 or later"
        )


class Bucket:
    """The objects below a URL.

    Errors that may pass are retried with growing pauses; all others, and a store that is silent for
    too long, end in one line without any text of the client, which might hold keys.

    Args:
      url: Its URL, for errors.
      files: A file system of fsspec.
      root: The path of the URL in it.
      sleep: Waits for some seconds.
    """

    def __init__(
        self, url: str, files: Any, root: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url, self._files, self._root, self._sleep = url, files, root, sleep

    def check(self) -> None:
        """Creates an object twice, and removes it.

        Raises:
          UserError: The bucket is missing or cannot be written, or the second create succeeded.
        """
        key = f"probe/{uuid.uuid4().hex}"
        self.create(key, b"first")
        try:
            if self.create(key, b"second"):
                raise UserError(
                    f"{FIELD} {self.url}: the store has no conditional create (a second create of "
                    "an object succeeded), so two hosts could take one task; choose another store"
                )
        finally:
            with contextlib.suppress(Exception):  # a host may have no right to delete
                _within(_SECONDS, lambda: self._files.rm_file(self._path(key)))

    def create(self, key: str, content: bytes) -> bool:
        """Creates an object unless it exists; returns whether this call created it."""
        mark, path = uuid.uuid4().hex.encode() + b"\n", self._path(key)
        try:
            self._call("write", lambda: self._files.pipe_file(path, mark + content, mode="create"))
        except FileExistsError:
            # It may be this call's: the store created it, and its answer was lost.
            return self._read(path, end=_MARK) == mark
        except FileNotFoundError:
            raise self._no_bucket() from None
        return True

    def write(self, key: str, content: bytes) -> None:
        """Creates or replaces an object that only the caller writes."""
        path, mark = self._path(key), uuid.uuid4().hex.encode() + b"\n"
        try:
            self._call("write", lambda: self._files.pipe_file(path, mark + content))
        except FileNotFoundError:
            raise self._no_bucket() from None

    def read(self, key: str) -> bytes | None:
        """Returns the content of an object, None if it is absent.

        Raises:
          UserError: It was not written by `create` or `write`.
        """
        content = self._read(self._path(key))
        if content is None:
            return None
        if content[_MARK - 1 : _MARK] != b"\n":
            raise UserError(f"{self.url}/{key}: was not written by agentrm; delete it")
        return content[_MARK:]

    def names(self, folder: str) -> list[str]:
        """Returns the names of the objects in a folder, without the folder."""
        path = self._path(folder)
        try:
            found = self._call("list", lambda: self._files.ls(path, detail=False, refresh=True))
        except FileNotFoundError:
            return []
        names = (str(each).rstrip("/").rpartition("/") for each in found)
        return [name for parent, _, name in names if parent.endswith(path)]

    def written(self, key: str) -> float:
        """Returns the Unix time at which an object was written, by the clock of the store."""
        path = self._path(key)
        with self._no_file():
            return self._call("read", lambda: self._files.modified(path)).timestamp()

    def upload(self, key: str, source: pathlib.Path) -> None:
        """Writes a file as it is to an object whose name nobody else uses."""
        path, seconds = self._path(key), _SECONDS + source.stat().st_size / _BYTES_PER_SECOND
        with self._no_file():
            self._call("write", lambda: self._files.put_file(str(source), path), seconds)

    def download(self, key: str, target: pathlib.Path) -> None:
        """Reads an object that `upload` wrote into a file."""
        path = self._path(key)
        with self._no_file():
            size = int(self._call("read", lambda: self._files.info(path))["size"])
            seconds = _SECONDS + size / _BYTES_PER_SECOND
            self._call("read", lambda: self._files.get_file(path, str(target)), seconds)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _read(self, path: str, end: int | None = None) -> bytes | None:
        span = {} if end is None else {"start": 0, "end": end}
        try:
            return self._call("read", lambda: self._files.cat_file(path, **span))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _no_file(self) -> Any:
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{self.url}: an object is missing; was the store removed?") from None

    def _no_bucket(self) -> UserError:
        return UserError(f"{FIELD} {self.url}: there is no such bucket; create it")

    def _call(self, action: str, call: Callable[[], T], seconds: float = _SECONDS) -> T:
        """Calls the client until it succeeds, or an error will not pass.

        Raises:
          FileExistsError: The object exists.
          FileNotFoundError: The object or the bucket is missing.
          UserError: Any other error.
        """
        ends = time.monotonic() + _PATIENCE + seconds
        for attempt, pause in enumerate((*_PAUSES, None), start=1):
            try:
                return _within(seconds, call)
            except Exception as error:  # of any client
                status = _status(error)
                if isinstance(error, FileExistsError) or status == 412:
                    raise FileExistsError from None
                if isinstance(error, FileNotFoundError) or status == 404:
                    raise FileNotFoundError from None
                if _is_permanent(error):
                    raise _refused(error, action, self.url) from None
                if pause is None or time.monotonic() > ends:
                    raise StoreAway(
                        f"{FIELD} {self.url}: the store did not {action} in {attempt} attempts "
                        f"({_names(error)}); run the same command again to resume"
                    ) from None
            self._sleep(pause * random.uniform(1.0, 1.5))
        raise AssertionError("the last pause is None")


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Returns the result of a call, made in a thread that may hang without holding up the others.

    Raises:
      TimeoutError: It took longer.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # for the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="bucket", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 8:
        chain.append(cause)
    return chain


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of gcsfs, aiohttp or botocore, None if there is none."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
        for name in ("code", "status"):
            if str(value := getattr(each, name, None)).isdecimal():
                return int(value)  # pyright: ignore[reportArgumentType]
    return None


def _is_permanent(error: Exception) -> bool:
    """Whether the same call would fail again."""
    if isinstance(error, _PERMANENT) or "ParamValidation" in _names(error):
        return True
    return _is_forbidden(error) or _status(error) == 400


def _is_forbidden(error: Exception) -> bool:
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return True
    return "Credential" in _names(error) or str(error).startswith("Forbidden")


def _refused(error: Exception, action: str, url: str) -> UserError:
    if _is_forbidden(error):
        return UserError(
            f"{FIELD} {url}: this host has no permission to {action} there ({_names(error)}); "
            "check its credentials and the rights of their account on the bucket"
        )
    return UserError(f"{FIELD} {url}: cannot {action} there ({_names(error)})")


def _names(error: BaseException) -> str:
    """The kinds of an error and its causes, and its HTTP status; its text might hold keys."""
    names = dict.fromkeys(type(each).__name__ for each in _chain(error))
    status = _status(error)
    return ", ".join([*names, *([f"HTTP {status}"] if status else [])])
