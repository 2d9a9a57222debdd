"""The folder of a run: JSON files that are whole or absent, and which stages are done.

A stage leaves `stage.json` in its folder when it has ended: the part of the configuration that it
depends on, the versions that it was made with, its seconds, a summary, and the sha256 of all this.
A run that finds the file skips the stage; a run whose configuration differs there stops instead of
mixing results.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, TypedDict

from agentrm_jax.core.errors import BudgetSpent, UserError
from agentrm_jax.runtime.activity import Activity
from agentrm_jax.runtime.budget import Budget, BudgetConfig
from agentrm_jax.runtime.json_files import read_record, write_json_atomic
from agentrm_jax.runtime.process_groups import OneProcess, ProcessGroup
from agentrm_jax.runtime.progress import Progress, progress, waiting

RESOLVED = "config.resolved.yaml"
VERSIONS = "versions.json"
ERRORS = "errors"
"""Names in a run's folder: its configuration, what its newest stage was made with, tracebacks."""

STAGE_FILE = "stage.json"
SECONDS_FILE = "seconds.json"
_SEAL = "sha256"  # of the rest of a stage's record
PACKAGES = ("agentrm-jax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "grain",
            "tensorflow-datasets", "transformers", "tokenizers", "minigrid")  # fmt: skip
"""Packages whose versions can change a result."""


def versions() -> dict[str, Any]:
    """Returns the versions of Python, of packages and of the commit, and the devices."""
    import jax

    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "git_commit": _git_commit(pathlib.Path(__file__).parent),
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
    }


def _git_commit(directory: pathlib.Path) -> str | None:
    """The commit of the checkout that the package lies in, `-dirty` where it was changed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # An installed package may lie inside somebody else's repository: only our own counts.
        tracked = ("git", "ls-files", "--error-unmatch", pathlib.Path(__file__).name)
        describe = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        for command in (tracked, describe):
            answer = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, timeout=10, check=True
            )
        return answer.stdout.strip()
    return None


def completed(
    directory: pathlib.Path,
    depends_on: Mapping[str, Any],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    upgraded: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Any] | None:
    """Returns the summary of a stage that has ended, None if it has not.

    Args:
      directory: The stage's folder.
      depends_on: The part of the configuration that decides what the stage makes, as JSON values.
      defaults: By dotted key. A record of an earlier version may lack a key: it counts as left at
        its default.
      upgraded: From a record of an earlier version, by dotted key, to the keys of this version.

    Raises:
      UserError: The folder holds the output of another configuration, ended or begun; names the
        first key that differs, with both values.
    """
    for name in (STAGE_FILE, SECONDS_FILE):
        path = directory / name
        if path.exists():
            stored = read_stage_record(path)
            before = upgraded(flat(stored["depends_on"]))
            _require_same(path, before, depends_on, defaults)
            return stored["summary"] if name == STAGE_FILE else None
    if directory.is_dir() and any(not p.name.startswith(".") for p in directory.iterdir()):
        raise UserError(
            f"{directory}: holds files, but no record of what made them; delete the folder, or "
            "choose another --output"
        )
    return None


def read_stage_record(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a stage recorded.

    Raises:
      UserError: See `read_record`; or the record is not as the stage wrote it. One of an earlier
        version has no sha256, and is not compared.
    """
    kinds = {"depends_on": dict, "seconds": int | float}
    if path.name == STAGE_FILE:
        kinds["summary"] = dict
    record = read_record(path, **kinds)
    seal = record.pop(_SEAL, None)
    if seal is not None and seal != _seal(record):
        raise UserError(
            f"{path}: differs from its sha256; restore it, or delete {path.parent} to run the "
            "stage again"
        )
    return record


def _seal(record: Mapping[str, Any]) -> str:
    """The sha256 of a record, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(_as_json(record), sort_keys=True).encode()).hexdigest()


def _require_same(
    path: pathlib.Path,
    before: Mapping[str, Any],
    depends_on: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> None:
    now = flat(_as_json(depends_on))
    assumed = _as_json({key: defaults[key] for key in now if key in defaults})
    before = {**assumed, **before}
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            shown = [json.dumps(side[key]) if key in side else "unset" for side in (before, now)]
            raise UserError(
                f"{path.parent}: was made with {key} = {shown[0]}, but it is now {shown[1]}; "
                "choose another --output, set it back, or delete the folder to make it again"
            )


def _as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples are lists there."""
    return json.loads(json.dumps(value))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, and lists of mappings, as dotted keys, in their order."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    found = {}
    for key, inner in value.items():
        found.update(flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return found


class Stage:
    """A stage at work; its seconds and tokens accumulate over interruptions.

        with Stage("sft", directory, depends_on) as stage:
            with stage.progress("sft", 10) as bar:
                ...
            stage.finish({"loss": 0.1})

    Args:
      name: The stage's name.
      directory: Its folder; made where it is absent.
      depends_on: See `completed`, which must have agreed.
      writes: Whether it is recorded: one of several processes does.
      budget: The budget of the command.
      group: The processes that work on it; see `BudgetConfig.tokens` for their budget.

    Attributes:
      activity: What the stage is doing; `activity.counts` is set by stages that count.
      budget: The budget of the command.
      group: The processes that work on it.
    """

    def __init__(
        self,
        name: str,
        directory: pathlib.Path,
        depends_on: Mapping[str, Any],
        *,
        writes: bool = True,
        budget: Budget | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.activity = Activity(directory, name, writes=writes)
        self.budget = budget or Budget(config=BudgetConfig())
        self.group, self._tokens_before = group or OneProcess(), 0
        self._name, self._directory, self._depends_on = name, directory, depends_on
        self._before, self._writes, self._shown = 0.0, writes, writes
        self._made_with: list[Any] = []
        if writes and (directory / SECONDS_FILE).exists():
            before = read_stage_record(directory / SECONDS_FILE)
            self._before, earlier = float(before["seconds"]), before.get("made_with", [])
            self._tokens_before = _tokens(before)
            self._made_with = earlier if isinstance(earlier, list) else []
        if writes and (now := versions()) not in self._made_with:
            self._made_with = [*self._made_with, now]  # it was interrupted, and resumed elsewhere
        self._start = self._saved = time.monotonic()
        if not (self.group.leased and (directory / SECONDS_FILE).exists()):
            self._save()
        self._writes = writes and not self.group.leased  # others may end it meanwhile
        self.activity.begin(name, None, 0)

    @property
    def seconds(self) -> float:
        """Seconds at work so far, those of interrupted runs included."""
        return self._before + time.monotonic() - self._start

    @property
    def tokens(self) -> int:
        """Tokens decoded so far, those of interrupted runs and of other processes included."""
        decoded = self.activity.counts().get("tokens_decoded", 0)
        return self._tokens_before + self.group.about("tokens_decoded", int(decoded))

    @contextlib.contextmanager
    def progress(self, name: str, total: int | None, *, done: int = 0) -> Iterator[Progress]:
        """Shows how far a loop is, to the terminal and to `agentrm watch`; see `progress.progress`.

        `advance` of the bar also saves the stage's seconds now and then, so that a killed run loses
        few of them.

        Args:
          name: The loop.
          total: Its length; None if it is not known.
          done: Items that an interrupted run has done.
        """
        with progress(name, total, done=done, shown=self._shown) as bar:
            self.activity.begin(name, total, done)
            yield _StageProgress(self, bar)

    def waiting(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Shows to the terminal that one long step is still at work; see `progress.waiting`."""
        return waiting(name, shown=self._shown)

    def check_budget(self) -> None:
        """Called when an item of a search is stored.

        Raises:
          BudgetSpent: A limit of the budget is reached.
        """
        if (key := self.budget.spent(self.tokens)) is not None:
            raise BudgetSpent(key, self.activity.progress())

    def tick(self) -> None:
        """Saves the seconds now and then.

        Raises:
          LeasesEnded: Another process has taken the stage over.
        """
        if time.monotonic() - self._saved >= 5.0:
            self.group.check()
            self._save()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the stage as done. Everything that it makes must be on disk by then."""
        self._write(STAGE_FILE, {**self._record(), "summary": dict(summary)})
        (self._directory / SECONDS_FILE).unlink(missing_ok=True)  # with leases, another may finish
        self.activity.end()

    def _record(self) -> dict[str, Any]:
        record = {
            "stage": self._name,
            "depends_on": dict(self._depends_on),
            "made_with": self._made_with,
            "seconds": round(self.seconds, 3),
        }
        return {**record, "tokens": self.tokens} if self.tokens else record

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._writes:
            self._write(SECONDS_FILE, self._record())

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        write_json_atomic(self._directory / name, {**record, _SEAL: _seal(record)})

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        record = self._directory / SECONDS_FILE
        if self.group.leased and (self._directory / STAGE_FILE).exists():
            self.activity.end()  # another process has ended the stage
        if not self._writes or not record.exists():
            return
        self._save()
        if isinstance(error, UserError):
            self.activity.end()
            if list(self._directory.iterdir()) == [record]:
                record.unlink()  # nothing was made, so another configuration may take the folder


class _StageProgress:
    """A progress bar that keeps the records of its stage up to date."""

    def __init__(self, stage: Stage, bar: Progress) -> None:
        self._stage, self._bar = stage, bar

    def advance(self, n: int = 1, **fields: object) -> None:
        self._bar.advance(n, **fields)
        self._stage.activity.advance(n, fields)
        self._stage.tick()


def _tokens(record: Mapping[str, Any]) -> int:
    tokens = record.get("tokens", 0)  # records of early versions have none
    return tokens if isinstance(tokens, int) else 0


def tokens_decoded(directories: Mapping[str, pathlib.Path], but: str) -> int:
    """Returns the tokens that the stages of a run have decoded, ended or begun, except for one.

    Args:
      directories: The folder of each stage by its name.
      but: The stage that is left out.
    """
    total = 0
    for name, directory in directories.items():
        files = [directory / file for file in (STAGE_FILE, SECONDS_FILE)]
        found = [path for path in files if name != but and path.exists()]
        total += sum(_tokens(read_stage_record(path)) for path in found[:1])
    return total


class StageRow(TypedDict):
    """A finished stage.

    Attributes:
      stage: Its name.
      seconds: Its seconds of work, those of interrupted runs included.
      summary: Its summary.
    """

    stage: str
    seconds: float
    summary: Mapping[str, Any]


def stages(directories: Mapping[str, pathlib.Path]) -> Iterator[StageRow]:
    """Yields the finished stages of a run.

    Args:
      directories: The folder of each stage by its name.
    """
    for name, directory in directories.items():
        path = directory / STAGE_FILE
        if path.exists():
            record = read_stage_record(path)
            yield {"stage": name, "seconds": record["seconds"], "summary": record["summary"]}
