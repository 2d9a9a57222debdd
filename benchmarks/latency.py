"""An environment that takes its time: a maze each of whose calls lasts 20 ms.

It stands for environments that wait (a web page, a simulator in another process): the processor is
free meanwhile. `registered` makes it known in this process and in its workers; this module must
not import jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.protocols import Demonstration, Environment, Prompt
from agentrm_jax.core.records import Split, Task, Transition
from agentrm_jax.envs.maze import Maze
from agentrm_jax.envs.registry import GROUP

SECONDS = 0.020


class Latency:
    """The maze's tasks; see `core.protocols.EnvironmentFamily`."""

    name = "latency"
    pooled = True
    metric = "success rate"

    def __init__(self) -> None:
        self._maze = Maze()

    def missing(self) -> None:
        return self._maze.missing()

    def counts(self) -> Mapping[Split, int | None]:
        return self._maze.counts()

    def kinds(self) -> Sequence[str]:
        return self._maze.kinds()

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        tasks = self._maze.tasks(split, kinds=kinds, n=n, seed=seed)
        return [
            dataclasses.replace(task, environment=self.name, task_id=f"{self.name}/{task.task_id}")
            for task in tasks
        ]

    def prompt(self) -> Prompt:
        return self._maze.prompt()

    def create(self) -> Environment:
        return LatencyEpisode(self._maze.create())

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        return self._maze.demonstrate(task)


class LatencyEpisode:
    def __init__(self, episode: Environment) -> None:
        self._episode = episode

    def reset(self, task: Task) -> str:
        time.sleep(SECONDS)
        return self._episode.reset(task)

    def step(self, action: str) -> Transition:
        time.sleep(SECONDS)
        return self._episode.step(action)

    def fork(self) -> LatencyEpisode:
        return LatencyEpisode(self._episode.fork())


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Registers the environment as an installed distribution would; workers inherit the path."""
    with tempfile.TemporaryDirectory() as folder:
        distribution = pathlib.Path(folder) / "agentrm_benchmarks-1.0.dist-info"
        distribution.mkdir()
        metadata = "Metadata-Version: 2.1\nName: agentrm-benchmarks\nVersion: 1.0\n"
        (distribution / "METADATA").write_text(metadata)
        (distribution / "entry_points.txt").write_text(
            f"[{GROUP}]\n{Latency.name} = benchmarks.latency:Latency\n"
        )
        root = str(pathlib.Path(__file__).resolve().parent.parent)
        sys.path += [folder, root]
        try:
            yield
        finally:
            sys.path.remove(folder)
            sys.path.remove(root)
