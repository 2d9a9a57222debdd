"""The 30 tasks of ScienceWorld, their variations, and which of them are for what."""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.core.text import described, first_line
from agentrm_jax.envs.data_directory import require

NAME = "scienceworld"
PAPER_SOURCE = "https://github.com/Yifan-Song793/ETO (eval_agent/data/sciworld)"


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One of the library's tasks.

    Attributes:
      variations: How many there are; numbered from 0.
      max_steps: Enough for the library's own solution and some way round.
      electric: Whether wires have to be connected.
      bees: Whether bees have to be let out of their hive at the right time.
    """

    variations: int
    max_steps: int
    electric: bool = False
    bees: bool = False


KINDS = {
    "boil": Kind(30, 120),
    "melt": Kind(30, 100),
    "freeze": Kind(30, 120),
    "change-the-state-of-matter-of": Kind(30, 100),
    "use-thermometer": Kind(540, 40),
    "measure-melting-point-known-substance": Kind(436, 80),
    "measure-melting-point-unknown-substance": Kind(300, 120),
    "power-component": Kind(20, 30, electric=True),
    "power-component-renewable-vs-nonrenewable-energy": Kind(20, 40, electric=True),
    "test-conductivity": Kind(900, 40, electric=True),
    "test-conductivity-of-unknown-substances": Kind(600, 40, electric=True),
    "find-living-thing": Kind(300, 30),
    "find-non-living-thing": Kind(300, 30),
    "find-plant": Kind(300, 30),
    "find-animal": Kind(300, 30),
    "grow-plant": Kind(126, 80),
    "grow-fruit": Kind(126, 120, bees=True),
    "chemistry-mix": Kind(32, 60),
    "chemistry-mix-paint-secondary-color": Kind(36, 30),
    "chemistry-mix-paint-tertiary-color": Kind(36, 40),
    "lifespan-longest-lived": Kind(125, 20),
    "lifespan-shortest-lived": Kind(125, 20),
    "lifespan-longest-lived-then-shortest-lived": Kind(125, 20),
    "identify-life-stages-1": Kind(14, 60),
    "identify-life-stages-2": Kind(10, 30),
    "inclined-plane-determine-angle": Kind(168, 200),
    "inclined-plane-friction-named-surfaces": Kind(1386, 160),
    "inclined-plane-friction-unnamed-surfaces": Kind(162, 240),
    "mendelian-genetics-known-plant": Kind(120, 160, bees=True),
    "mendelian-genetics-unknown-plant": Kind(480, 160, bees=True),
}
"""In the order of the library's topics."""


def variations(kind: str, split: Split) -> range:
    """The library's own division: half for training, a quarter for development (not used here),
    the rest for test."""
    count = KINDS[kind].variations
    quarter = count // 4
    return range(2 * quarter) if split == "train" else range(3 * quarter, count)


def simplifications(kind: str) -> str:
    """The library's set "easy", and containers that are open, as the paper's instruction says.

    Where bees matter their hive stays shut, with all other containers: bees that are out from the
    start have mostly left before there is a flower, and the plants bear no fruit.
    """
    chosen = ["teleportAction", "openDoors", "selfWateringFlowerPots"]
    if not KINDS[kind].electric:
        chosen.append("noElectricalAction")
    if not KINDS[kind].bees:
        chosen.append("openContainers")
    return ",".join(chosen)


def library_tasks(kind: str, split: Split, seed: int) -> Iterator[Task]:
    """The variations of the split in an order drawn from the seed."""
    numbers = list(variations(kind, split))
    random.Random(f"{NAME}/{kind}/{seed}").shuffle(numbers)
    return (task(kind, number, split) for number in numbers)


def paper_tasks(kind: str) -> Iterator[Task]:
    """ETO's test tasks of this kind, in its order, with its limits of steps."""
    return (task(name, number, "paper", limit) for name, number, limit in _paper() if name == kind)


def paper_count() -> int:
    return len(_paper())


def task(kind: str, variation: int, split: Split, max_steps: int | None = None) -> Task:
    return Task(
        environment=NAME,
        task_id=f"{NAME}/{kind}/{variation}",
        kind=kind,
        split=split,
        problem=canonical_form([NAME, kind, variation]),
        max_steps=KINDS[kind].max_steps if max_steps is None else max_steps,
        spec={"task": kind, "variation": variation},
    )


def _paper() -> list[tuple[str, int, int]]:
    """Kind, variation and limit of each task of ETO's list."""
    tasks = require("sciworld/test_indices.json", PAPER_SOURCE)
    limits = require("sciworld/max_steps.json", PAPER_SOURCE)
    return _read_paper(tasks, limits)


@functools.lru_cache(maxsize=2)
def _read_paper(tasks: Path, limits: Path) -> list[tuple[str, int, int]]:
    listed, steps = _read(tasks), _read(limits)
    found = []
    try:
        for name, variation in listed:
            kind = _library_name(name)
            if not 0 <= int(variation) < KINDS[kind].variations:
                raise UserError(f"{tasks}: {name} has no variation {variation}")
            found.append((kind, int(variation), int(steps[name])))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{tasks}: not the list of {PAPER_SOURCE}: {described(error)}") from error
    return found


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read: {first_line(error)}; get it from {PAPER_SOURCE}"
        ) from error


def _library_name(name: str) -> str:
    """`task-2a-test-conductivity` and the like, the names of older versions, as they are now."""
    plain = re.sub(r"^task-\d+[a-z]?-", "", name).translate({ord("("): None, ord(")"): None})
    return plain.replace("mendellian", "mendelian")
