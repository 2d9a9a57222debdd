"""The files of ALFWorld: a folder as `alfworld-download` lays it out, or a packed archive."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs.archives import digest, read_archive
from agentrm_jax.envs.data_directory import (
    cache_directory,
    data_directory,
    home_directory,
    refuse_damaged,
)

GAME = "game.tw-pddl"
_FOLDER = "json_2.1.1"
_ARCHIVE = "alfworld_games_474.tar.xz"
_PAPER_LIST = "eto_gamefile_id.txt"
_MEMBER = re.compile(rf"{_FOLDER}/(\w+)/([\w.+-]+)/([\w.+-]+)/{re.escape(GAME)}")
_SUMS = "sha256.json"  # of the games in the cache folder
_MOST_BYTES = 1 << 20  # of one game; they have about 70,000


def games_folder() -> Path:
    """The folder with `valid_seen`, `valid_unseen` and `train` or `valid_train`.

    Looked for in this order: `alfworld/json_2.1.1` in the data directory, `json_2.1.1` in the
    folder of `alfworld-download` (`ALFWORLD_DATA`, else `~/.cache/alfworld`), and the archive in
    the data directory, which is unpacked into the cache folder when it is first used. The games
    there are compared with their checksums in each process.

    Raises:
      UserError: There is none, the archive is damaged, or what was unpacked of it.
    """
    if reason := missing_games():
        raise UserError(reason)
    for folder in _folders():
        if folder.is_dir():
            return folder
    archive = _archive()
    found = archive.stat()
    return _unpacked(archive, found.st_size, found.st_mtime_ns)


def missing_games() -> str | None:
    """One line on where to put the games; None if they are there."""
    if _archive().is_file() or any(folder.is_dir() for folder in _folders()):
        return None
    return (
        f"{_archive().parent}: holds neither {_FOLDER}/ nor {_ARCHIVE}; run `alfworld-download`, "
        "or put either there"
    )


def game_names(split: str) -> tuple[str, ...]:
    """The names, `split/task/trial`, of the games in one of the folders, sorted."""
    return _game_names(games_folder(), split)


def paper_names() -> tuple[str, ...] | None:
    """The 134 test games in the order of ETO's list; None if its file is not there."""
    path = data_directory() / "alfworld" / _PAPER_LIST
    if not path.is_file():
        return None
    refuse_damaged(path, f"alfworld/{_PAPER_LIST}")
    try:
        return tuple(f"valid_unseen/{line}" for line in path.read_text("utf-8").split())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None


@functools.lru_cache(maxsize=32)
def _game_names(folder: Path, split: str) -> tuple[str, ...]:
    found = (folder / split).glob(f"*/*/{GAME}")
    return tuple(sorted(path.parent.relative_to(folder).as_posix() for path in found))


def _folders() -> list[Path]:
    parents = [data_directory() / "alfworld"]
    named, home = os.environ.get("ALFWORLD_DATA", ""), home_directory()
    if home is not None:  # what `~` stands for
        parents.append(Path(named).expanduser() if named else home / ".cache" / "alfworld")
    elif named:
        parents.append(Path(named))
    return [parent / _FOLDER for parent in parents]


def _archive() -> Path:
    return data_directory() / "alfworld" / _ARCHIVE


@functools.lru_cache(maxsize=4)
def _unpacked(archive: Path, size: int, changed: int) -> Path:
    """The folder in the cache; processes that come at the same time wait for the first one."""
    refuse_damaged(archive, f"alfworld/{_ARCHIVE}")
    try:
        name = digest(archive.read_bytes())[:16]
        target = cache_directory() / "alfworld" / f"games-{name}"
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target.with_suffix(".lock")):
                if not target.is_dir():
                    _unpack(archive, target)
        check_unpacked(target)
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked: {first_line(error)}") from None
    return target / _FOLDER


def _unpack(archive: Path, target: Path) -> None:
    """Writes the games of the archive and nothing else; the folder appears when all is there."""
    games = dict(_games(archive))
    if not games:
        raise UserError(f"{archive}: holds no game {_FOLDER}/SPLIT/TASK/TRIAL/{GAME}")
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        for name, content in games.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        sums = {name: digest(content) for name, content in games.items()}
        (partial / _SUMS).write_text(json.dumps(sums, indent=0), encoding="utf-8")
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _games(archive: Path) -> Iterator[tuple[str, bytes]]:
    for name, content in read_archive(archive):
        # The name has three plain parts, so it cannot lead out of the folder.
        parts = _MEMBER.fullmatch(name.removeprefix("./"))
        if parts is None or {".", ".."} & set(parts.groups()):
            continue
        if len(content) > _MOST_BYTES:
            raise UserError(f"{archive}: {printable(name)}: larger than any game")
        yield "/".join((_FOLDER, *parts.groups(), GAME)), content


def check_unpacked(folder: Path) -> None:
    """Compares the games that were unpacked into a folder with their checksums.

    Raises:
      UserError: A game is missing, another one is there, or one is damaged.
    """
    try:
        sums = parse_json((folder / _SUMS).read_bytes())
        there = {path.relative_to(folder).as_posix() for path in folder.rglob(GAME)}
        wrong = sorted(there.symmetric_difference(sums))
        wrong += [name for name in sums if name in there and _differs(folder / name, sums[name])]
    except (OSError, ValueError, TypeError) as error:
        wrong, sums = [f"{_SUMS}: {first_line(error)}"], ()
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} of {len(sums)} games damaged, the first is {wrong[0]}; delete "
            "the folder: it is unpacked again"
        )


def _differs(path: Path, wanted: str) -> bool:
    return digest(path.read_bytes()) != wanted


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits for a lock; its file is never emptied, and a link in its place is refused."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(path, flags, 0o666)
    except OSError as error:
        raise UserError(f"{path}: must be a regular file ({first_line(error)})") from None
    try:
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            raise UserError(f"{path}: must be a regular file; remove it")
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)  # which gives the lock back
