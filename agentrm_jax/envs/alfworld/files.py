"""Where ALFWorld's games lie: a folder as `alfworld-download` lays it out, or a packed archive."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.data_directory import cache_directory, data_directory

GAME = "game.tw-pddl"
_FOLDER = "json_2.1.1"
_ARCHIVE = "alfworld_games_474.tar.xz"
_PAPER_LIST = "eto_gamefile_id.txt"
_MEMBER = re.compile(rf"{_FOLDER}/(\w+)/([\w.+-]+)/([\w.+-]+)/{re.escape(GAME)}")
_MOST_BYTES = 1 << 20  # of one game; they have about 70,000


def games_folder() -> Path:
    """The folder with `valid_seen`, `valid_unseen` and `train` or `valid_train`.

    Looked for in this order: `alfworld/json_2.1.1` in the data directory, `json_2.1.1` in the
    folder of `alfworld-download` (`ALFWORLD_DATA`, else `~/.cache/alfworld`), and the archive in
    the data directory, which is unpacked into the cache folder when it is first used.

    Raises:
      UserError: There is none, or the archive is broken.
    """
    if reason := missing_games():
        raise UserError(reason)
    for folder in _folders():
        if folder.is_dir():
            return folder
    archive = _archive()
    stat = archive.stat()
    return _unpacked(archive, stat.st_size, stat.st_mtime_ns)


def missing_games() -> str | None:
    """One line on where to put the games; None where they are there."""
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
    """The 134 test games in the order of ETO's list; None where its file is not there."""
    path = data_directory() / "alfworld" / _PAPER_LIST
    if not path.is_file():
        return None
    return tuple(f"valid_unseen/{line}" for line in path.read_text("utf-8").split())


@functools.lru_cache(maxsize=32)
def _game_names(folder: Path, split: str) -> tuple[str, ...]:
    found = (folder / split).glob(f"*/*/{GAME}")
    return tuple(sorted(path.parent.relative_to(folder).as_posix() for path in found))


def _folders() -> list[Path]:
    official = os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld"
    parents = [data_directory() / "alfworld", Path(official).expanduser()]
    return [parent / _FOLDER for parent in parents]


def _archive() -> Path:
    return data_directory() / "alfworld" / _ARCHIVE


@functools.lru_cache(maxsize=4)
def _unpacked(archive: Path, size: int, changed: int) -> Path:
    """The folder in the cache; processes that come at the same time wait for the first one."""
    name = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    target = cache_directory() / "alfworld" / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_suffix(".lock")):
            if not target.is_dir():
                _unpack(archive, target)
    return target / _FOLDER


def _unpack(archive: Path, target: Path) -> None:
    """Writes the games of the archive and nothing else; the folder appears when all is there."""
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        with tarfile.open(archive, "r:*") as members:
            for member in members:
                # The name has three plain parts, so it cannot lead out of the folder; a link is
                # no file.
                parts = _MEMBER.fullmatch(member.name.removeprefix("./"))
                if parts is None or not member.isfile() or {".", ".."} & set(parts.groups()):
                    continue
                if member.size > _MOST_BYTES:
                    raise UserError(f"{archive}: {member.name}: larger than any game")
                source = members.extractfile(member)
                assert source is not None
                path = partial / _FOLDER / Path(*parts.groups()) / GAME
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.read())
        if not (partial / _FOLDER).is_dir():
            raise UserError(f"{archive}: holds no game {_FOLDER}/SPLIT/TASK/TRIAL/{GAME}")
        os.replace(partial, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives it back
        yield
