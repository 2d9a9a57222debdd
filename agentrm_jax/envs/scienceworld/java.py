"""The simulator: one Java process that holds many worlds.

The library's own wrapper lists all valid actions after each step, which takes ten times as long
as the step, and holds one world in each Java process. Here the same Java classes are called
directly. What they keep outside a world is little, and is put in its place whenever another world
is to act: the random numbers, the number of the next object, the simplifications.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.scienceworld.patch import (
    HASHED_CLASS,
    MEMORY_FIELD,
    PARSER_CLASS,
    with_hash,
    with_memory,
)

_JAVA_OPTIONS = (
    "-Xmx768m",  # else a quarter of the machine's memory
    "-XX:+UseSerialGC",  # a process for each core: no threads of its own for garbage
    # Hashes of the few objects that are hashed by identity and are no EnvObject.
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
)
_MOST_REMEMBERED = 100_000  # about 20 MB
_PACKAGE = "agentrm-jax[scienceworld]"
_JAVA_PACKAGE = "openjdk-17-jre-headless"


def missing() -> str | None:
    """Returns one line with the package that is missing; None if nothing is."""
    if importlib.util.find_spec("scienceworld") is None:
        return f"scienceworld is not installed: pip install '{_PACKAGE}'"
    if _java() is None:
        return (
            "scienceworld needs Java, and there is no program java: install Debian's package "
            f"{_JAVA_PACKAGE}, or set JAVA_HOME"
        )
    return None


def _java() -> str | None:
    if home := os.environ.get("JAVA_HOME"):
        return shutil.which(os.path.join(home, "bin", "java"))
    return shutil.which("java")


@dataclasses.dataclass(slots=True, eq=False)
class World:
    """A game in progress, and what the simulator keeps outside it while it acts.

    Attributes:
      interface: The game (an `AgentInterface`).
      random: Its random numbers.
      next_number: Up to which its objects are numbered; out of date while it acts.
      simplifications: Of its rules.
    """

    interface: Any
    random: Any
    next_number: int
    simplifications: str


class Java:
    """The Java process; it dies with this one, however this one dies."""

    def __init__(self) -> None:
        if reason := missing():
            raise UserError(reason)
        self._gateway, self._process = _start()
        self._end = weakref.finalize(self, _end, self._gateway, self._process, os.getpid())
        jvm = self._gateway.jvm
        # It prints much, and Scala keeps what it finds here when it first prints.
        jvm.java.lang.System.setOut(jvm.java.io.PrintStream(os.devnull))
        self._loader = jvm.scienceworld.runtime.pythonapi.PythonInterface()
        self._random = _singleton(jvm, "scala.util.Random$")
        self._random_field = jvm.java.lang.Class.forName("scala.util.Random").getDeclaredField(
            "self"
        )
        self._random_field.setAccessible(True)
        self._numbers = _singleton(jvm, "util.UniqueIdentifier$")
        self._simplifier = _singleton(jvm, "main.scala.scienceworld.runtime.SimplifierProcessor$")
        # Words of names: what the patched parser remembers.
        self._remembered = jvm.java.util.HashMap()
        parser = _singleton(jvm, PARSER_CLASS.replace("/", "."))
        parser.getClass().getField(MEMORY_FIELD).set(parser, self._remembered)
        self._acting: World | None = None

    def load(self, task: str, variation: int, simplifications: str) -> World:
        """A new world.

        Raises:
          UserError: The library has no such task.
        """
        self._put_away()
        if self._remembered.size() > _MOST_REMEMBERED:
            self._remembered.clear()
        random = self._gateway.jvm.java.util.Random()
        self._random_field.set(self._random, random)
        error = self._loader.load(task, variation, simplifications, False)
        return self._loaded(error, random, simplifications)

    def gold_path(self, task: str, variation: int, simplifications: str) -> list[str]:
        """The library's own solution, which it finds by playing; this takes seconds."""
        self._put_away()
        self._random_field.set(self._random, self._gateway.jvm.java.util.Random())
        if error := self._loader.load(task, variation, simplifications, True):
            raise UserError(f"scienceworld {task} {variation}: {error}")
        return list(self._loader.getGoldActionSequence())

    def step(self, world: World, action: str) -> tuple[str, float, bool]:
        """Returns the game's text, its score (up to 1; negative: lost) and whether it is over."""
        self._activate(world)
        # A tuple (text, score, over), told in one go.
        answer = world.interface.step(action).toString()
        said, score, over = answer[1:-1].rsplit(",", 2)
        return said, float(score), over == "true"

    def description(self, world: World) -> str:
        return world.interface.getTaskDescription()

    def possible_actions(self, world: World) -> list[str]:
        self._activate(world)
        return list(world.interface.getPossibleActions())

    def possible_objects(self, world: World) -> list[str]:
        self._activate(world)
        return list(world.interface.getPossibleObjects())

    def variations(self, task: str) -> int:
        return self._loader.getTaskMaxVariations(task)

    def splits(self, task: str) -> tuple[list[int], list[int], list[int]]:
        """Variations for training, development and test; the task's first one is loaded."""
        self.load(task, 0, "")
        loader = self._loader
        return (
            list(loader.getVariationsTrain()),
            list(loader.getVariationsDev()),
            list(loader.getVariationsTest()),
        )

    def memory(self) -> tuple[int, int]:
        """Bytes of live objects, after a collection, and of the whole process."""
        system = self._gateway.jvm.java.lang.Runtime.getRuntime()
        self._gateway.jvm.java.lang.System.gc()
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return system.totalMemory() - system.freeMemory(), pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._end()

    def _loaded(self, error: str, random: Any, simplifications: str) -> World:
        if error:
            raise UserError(f"scienceworld cannot make this task: {error}")
        interface = self._loader.agentInterface().get()
        world = World(interface, random, self._numbers.count(), simplifications)
        self._acting = world
        return world

    def _put_away(self) -> None:
        if self._acting is not None:
            self._acting.next_number = self._numbers.count()
            self._acting = None

    def _activate(self, world: World) -> None:
        if world is self._acting:
            return
        self._put_away()
        self._random_field.set(self._random, world.random)
        getattr(self._numbers, "count_$eq")(world.next_number)
        self._simplifier.parseSimplificationStr(world.simplifications)
        self._acting = world


@functools.cache
def _shared() -> Java:
    return Java()


def java() -> Java:
    """Returns the simulator of this process; starts another one if it has ended."""
    if not _shared().running:
        _shared.cache_clear()
    return _shared()


def _singleton(jvm: Any, name: str) -> Any:
    """A Scala object."""
    return jvm.java.lang.Class.forName(name).getField("MODULE$").get(None)


def _start() -> tuple[Any, subprocess.Popen[bytes]]:
    """Starts Java with the patched classes in front of the library's archive."""
    from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path

    # It reports each call that fails on standard error, and raises as well.
    logging.getLogger("py4j").addHandler(logging.NullHandler())

    package = importlib.util.find_spec("scienceworld")
    assert package is not None
    assert package.origin is not None
    home = Path(package.origin).parent
    archive = home / "scienceworld.jar"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        _write_patches(archive, Path(folder))
        program = _java()
        assert program is not None
        path = os.pathsep.join([find_jar_path(), folder, str(archive)])
        process = subprocess.Popen(
            [program, *_JAVA_OPTIONS, "-classpath", path, "py4j.GatewayServer",
             "--die-on-broken-pipe", "--enable-auth", "0"],
            stdin=subprocess.PIPE,  # Java ends when it closes
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=home,  # it reads a table there
        )  # fmt: skip
        assert process.stdout is not None
        port, token = (process.stdout.readline().strip().decode() for _ in range(2))
        if not port.isdecimal():
            process.kill()
            errors.seek(0)
            said = " ".join([port, token, errors.read(300).decode(errors="replace")]).split()
            raise UserError(f"{program} does not start the simulator: {' '.join(said)}")
        parameters = GatewayParameters(port=int(port), auth_token=token, auto_field=True)
        gateway: Any = JavaGateway(gateway_parameters=parameters)
        for name in _PATCHES:  # loaded now, for the folder goes
            gateway.jvm.java.lang.Class.forName(name.replace("/", "."))
    return gateway, process


_PATCHES = {HASHED_CLASS: with_hash, PARSER_CLASS: with_memory}


def _write_patches(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for name, patched in _PATCHES.items():
            file = folder / f"{name}.class"
            file.parent.mkdir(parents=True)
            try:
                file.write_bytes(patched(opened.read(f"{name}.class")))
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{archive}: this version of scienceworld is not known ({error}): "
                    "pip install scienceworld==1.2.3"
                ) from error


def _end(gateway: Any, process: subprocess.Popen[bytes], owner: int) -> None:
    """Also runs when the interpreter exits."""
    if os.getpid() != owner:  # a fork of the owner exits: Java is not its to end
        return
    with contextlib.suppress(Exception):  # Java may be gone already
        gateway.shutdown()
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
