"""Random hostile values and bytes, and a watch over what a block of code does to the machine."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from benchmarks.hostile_texts import random_text

MANY = pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=pytest.mark.slow)])
"""A few hundred random cases, and ten thousand in the slow run."""

NAMES = (
    "../../outside", "/etc/outside", "..", ".", "", "a/../../outside", "..\\outside", "a\0b",
    "\x1b[2Jname", "con\n", "\u202ename", "~/outside", "%2e%2e%2foutside", "x" * 300, "$(touch x)",
    "-rf", "a b", "\ud83d", ".hidden", "name.part0", "a:b", "*", "{0}", "'; touch x; '",
)  # fmt: skip
"""Names that programs have taken for a path, an option or a command."""

_NUMBERS = (
    0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**64, 10**308, 10**400, 0.5, -0.0, 1e308, 5e-324,
    True, False, None,
)  # fmt: skip
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 5_000, "[" * 2_000 + "]" * 2_000)
_HOLE = "b8e5a1f0 a raw number"


def refusal(work: Callable[[], object], kind: type[Exception] = UserError) -> str | None:
    """Returns the message of the error that some work raises, None if it raises none."""
    try:
        work()
    except kind as error:
        return str(error)
    return None


def is_visible(text: str) -> bool:
    """Whether a text has no character that controls a terminal or the direction of writing."""
    return printable(text, "\n") == text


def random_value(rng: random.Random, depth: int = 0) -> Any:
    """Returns a JSON value of any shape, with hostile texts, names and numbers."""
    kind = rng.randrange(8 if depth < 4 else 4)
    if kind == 0:
        return random_text(rng)
    if kind == 1:
        return rng.choice(_NUMBERS)
    if kind == 2:
        return rng.choice(NAMES)
    if kind == 3:
        return _HOLE if rng.random() < 0.2 else ""
    if kind == 4:
        return nested(rng.choice((1, 50, 99, 101, 150)))
    if kind < 7:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {
        rng.choice((random_text(rng), "role", "content", "id")): random_value(rng, depth + 1)
        for _ in range(rng.randrange(4))
    }


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def changed(rng: random.Random, value: Any) -> Any:
    """Returns a JSON value in which one place, anywhere in it, is missing, doubled or another."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return rest
        if rng.random() < 0.05:
            return {**value, random_text(rng): value[key]}
        return {**rest, key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        middle = rng.choice(([], [value[at]] * 2, [changed(rng, value[at])]))
        return [*value[:at], *middle, *value[at + 1 :]]
    return random_value(rng)


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """Returns a value as JSON as hostile writers write it, and at times as half of it."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    text = text.replace(json.dumps(_HOLE), rng.choice(_RAW))
    content = text.encode("utf-8", "surrogatepass")
    return damaged(rng, content) if rng.random() < 0.2 else content


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Returns bytes that are cut, flipped, repeated, inserted or overwritten at a random place."""
    if not content:
        return b"\0"
    at, end = sorted((rng.randrange(len(content)), rng.randrange(len(content) + 1)))
    kind = rng.randrange(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes((content[at] ^ 1 << rng.randrange(8),)) + content[at + 1 :]
    if kind == 2:
        return content[:end] + content[at:end] + content[end:]
    if kind == 3:
        return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
    if kind == 4:
        return content[:at] + content[end:]
    return content[:at] + bytes(end - at) + content[end:]


class Deeds:
    """What a block of code did to the machine outside of one folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        compiled = jax.config.jax_compilation_cache_dir  # JAX may write its programs there
        self.folders = [os.path.realpath(each) for each in (folder, compiled) if each]
        self.found: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Takes an audit event of the interpreter."""
        if event in _PROGRAMS:
            self.found.append(f"{event}: {arguments[:2]!r}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._touch(event, path)
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                self._touch(event, path)

    def _touch(self, event: str, path: Any) -> None:
        real = os.path.realpath(os.fsdecode(path))
        inside = any(real == each or real.startswith(each + os.sep) for each in self.folders)
        if not inside and not real.startswith(("/dev/", "/proc/")) and "__pycache__" not in real:
            self.found.append(f"{event}: {real!r}")


_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
_CHANGES = {
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1, "os.utime": 1,
}  # fmt: skip
_watching: list[Deeds] = []
_hooked: list[Callable[..., None]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for deeds in _watching:
        deeds.see(event, arguments)


@contextlib.contextmanager
def harmless(folder: pathlib.Path) -> Iterator[None]:
    """Fails if the block starts a program, loads a class of a pickle, or writes elsewhere."""
    if not _hooked:  # audit hooks stay until the interpreter ends
        sys.addaudithook(_hook)
        _hooked.append(_hook)
    deeds = Deeds(folder)
    _watching.append(deeds)
    try:
        yield
    finally:
        _watching.remove(deeds)
    assert deeds.found == [], deeds.found
