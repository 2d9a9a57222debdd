"""Problems of the four PDDL worlds: generators of our own, JSON form, when two are the same."""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.records import canonical_form
from agentrm_jax.envs.pddl.strips import Atom, Domain, Problem
from agentrm_jax.envs.pddl.strips_parser import parse_domain

KINDS = ("gripper", "blockworld", "barman", "tyreworld")  # AgentBoard's order

_PAPER_FORMS = """
025f1b93b8d7b90e 06dbfe04d7e5d2ce 0dc65d75f9de5ace 0fd8e50f23635af6 19b56a6c02ec7f3e
1dbd676bb39a9f52 1e8f413bc55e92e1 226a589fb32d09ea 2492aaeb89a3a6d8 28b0286af4e81a5e
32527b3c6214be61 34049f206a255362 3900965c34219e75 3b598da242ed0b55 40a433a707d5a55d
45b49f5052741c47 49b51824b3dfabb5 4fbc2110576586ed 523bf859b48ac0ee 553f8820e172daaf
57895429ae3c69a2 5a0c7bf3a2b53bda 5c6318b2f3884b09 5ca169a895a3e391 5cd6210be8f413fb
5dc210331b5bf23b 66209641be4beec1 6622fec8a4ac9391 666f8ef5a38562a1 67f5d6795188964a
6e5b72e96028ec69 6f9eaba3959c79c1 7255ec3ba3814c71 74f5581feba0267d 82ddaf6ecaa6bdfb
8e47bb3653c1389f 92b828f557575345 94fa17694d47d96d 95ea60f8461caec7 9774b7e242f6217e
9b9f4df6eb31a484 a9420ecddaff19b4 b263c7b4df358ee7 b437fc0914ab880d b79242219c9e466f
bee421669155ffef c593b8ca8888808b c90d1469134a3e8b d16b817a42879818 d2fad7768b02ad18
d447d92e9c1f6af1 d9459a59e2dec2d6 dbc7845fafcdd2f0 ee927fb9125f23c5 efe76f8798d9a720
f075c0eba494dc97 f5ef618911ff2bb1 f82ba49916b92a26 fb2d0f3e8e4beaf7
"""
PAPER_FORMS = frozenset(_PAPER_FORMS.split())
"""The canonical forms of AgentBoard's problems, so that none is drawn where its files are not."""


@functools.cache
def domain(kind: str) -> Domain:
    file = importlib.resources.files("agentrm_jax.envs.pddl") / "domains" / f"{kind}.pddl"
    return parse_domain(file.read_text(encoding="utf-8"), f"{kind}.pddl")


def to_spec(problem: Problem) -> dict[str, Any]:
    """The problem as JSON values: names by type, without the domain's constants; atoms as text."""
    objects: dict[str, list[str]] = {}
    for name, kind in problem.objects.items():
        if name not in problem.domain.constants:
            objects.setdefault(kind, []).append(name)
    return {
        "objects": objects,
        "init": sorted(" ".join(atom) for atom in problem.init),
        "goal": [" ".join(atom) for atom in problem.goal],
    }


def from_spec(kind: str, spec: Mapping[str, Any]) -> Problem:
    objects = {name: type_ for type_, names in spec["objects"].items() for name in names}
    return Problem(
        domain=domain(kind),
        objects={**objects, **domain(kind).constants},
        init=frozenset(tuple(atom.split()) for atom in spec["init"]),
        goal=tuple(tuple(atom.split()) for atom in spec["goal"]),
    )


def problem_form(problem: Problem) -> str:
    """A canonical form that names of objects do not matter to.

    Objects get the same colour as long as nothing tells them apart: their types, the atoms they are
    in, the colours of the other objects there, and so on (colour refinement). So problems that are
    equal except for names have equal forms. Rarely, others have too: they then count as one
    problem, which is the safe side.
    """
    constants = problem.domain.constants
    facts = [(False, atom) for atom in problem.init] + [(True, atom) for atom in problem.goal]
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in problem.objects}
    for index, (_, atom) in enumerate(facts):
        for position, name in enumerate(atom[1:]):
            places[name].append((index, position))
    colours = _ranked(
        {n: (kind, n if n in constants else "") for n, kind in problem.objects.items()}
    )
    while True:
        shown = [
            (in_goal, atom[0], *(colours[name] for name in atom[1:])) for in_goal, atom in facts
        ]
        finer = _ranked(
            {n: (colours[n], sorted((shown[i], at) for i, at in places[n])) for n in places}
        )
        if max(finer.values()) == max(colours.values()):
            break
        colours = finer
    objects = sorted((colour, problem.objects[name]) for name, colour in colours.items())
    return canonical_form([problem.domain.name, objects, sorted(shown)])


def _ranked(keys: Mapping[str, Any]) -> dict[str, int]:
    order = {repr(key): key for key in keys.values()}
    ranks = {text: rank for rank, text in enumerate(sorted(order, key=lambda text: order[text]))}
    return {name: ranks[repr(key)] for name, key in keys.items()}


def draw(kind: str, seed: str) -> Problem | None:
    """A random problem, small or as large as AgentBoard's; None if the goal is true already."""
    objects, init, goal = _DRAW[kind](random.Random(seed))
    if set(goal) <= set(init):
        return None
    return Problem(
        domain=domain(kind),
        objects={**objects, **domain(kind).constants},
        init=frozenset(init),
        goal=tuple(goal),
    )


Parts = tuple[dict[str, str], list[Atom], list[Atom]]
"""Objects with types, initial atoms, goal."""


def _numbered(stem: str, count: int) -> list[str]:
    return [f"{stem}{number}" for number in range(1, count + 1)]


def _gripper(rng: random.Random) -> Parts:
    """Up to 12 balls in two rooms, or up to 6 in three or four."""
    rooms = ["rooma", "roomb", "roomc", "roomd"][: rng.choice((2, 2, 2, 3, 4))]
    balls = _numbered("ball", rng.randint(1, 12 if len(rooms) == 2 else 6))
    grippers = ["left", "right"]
    robby = rng.choice(rooms)
    one_way = rng.random() < 0.4  # all balls from one room to one other, as often in AgentBoard
    way = rng.sample(rooms, 2)
    stay = rng.choice((0.0, 0.2, 0.5))  # how often a ball need not be moved
    init: list[Atom] = [("at-robby", robby)]
    init += [("room", room) for room in rooms] + [("ball", ball) for ball in balls]
    init += [("gripper", g) for g in grippers] + [("free", g) for g in grippers]
    goal: list[Atom] = []
    for ball in balls:
        here, there = way if one_way else rng.sample(rooms, 2)
        init.append(("at", ball, here))
        if rng.random() >= stay:
            goal.append(("at", ball, there))
        elif rng.random() < 0.2:
            goal.append(("at", ball, here))
    return dict.fromkeys([*rooms, *balls, *grippers], "object"), init, goal


def _blockworld(rng: random.Random) -> Parts:
    """Two to seven blocks, some or all pairs of the goal's towers."""
    blocks = _numbered("b", rng.randint(2, 7))
    init: list[Atom] = [("arm-empty",)]
    for tower in _towers(rng, blocks):
        init += [("on-table", tower[0]), ("clear", tower[-1]), *_pairs(tower)]
    goal = [pair for tower in _towers(rng, blocks) for pair in _pairs(tower)]
    if rng.random() < 0.4:
        goal = [pair for pair in goal if rng.random() < 0.5]
    return dict.fromkeys(blocks, "object"), init, sorted(goal)


def _towers(rng: random.Random, blocks: Sequence[str]) -> list[list[str]]:
    """The blocks in random towers, each listed from the table up."""
    towers: list[list[str]] = []
    new = rng.choice((0.1, 0.3, 0.5))
    for block in rng.sample(blocks, len(blocks)):
        if not towers or rng.random() < new:
            towers.append([block])
        else:
            rng.choice(towers).append(block)
    return towers


def _pairs(tower: Sequence[str]) -> list[Atom]:
    return [("on", upper, lower) for lower, upper in itertools.pairwise(tower)]


def _barman(rng: random.Random) -> Parts:
    """One shaker; up to 8 shots, 4 ingredients, 6 cocktails; up to 2 cocktails wanted."""
    ingredients = _numbered("ingredient", rng.choice((2, 3, 3, 4)))
    cocktails = _numbered("cocktail", rng.randint(1, 6))
    mixed, pure = rng.choice(((0, 1), (0, 2), (0, 3), (1, 0), (1, 0), (1, 1), (1, 2), (2, 0)))
    mixed = min(mixed, len(cocktails))
    shots = _numbered("shot", rng.randint(mixed + pure, 8))
    dispensers = _numbered("dispenser", len(ingredients))
    init: list[Atom] = [("ontable", "shaker1"), ("clean", "shaker1"), ("empty", "shaker1")]
    init += [("handempty", "left"), ("handempty", "right"), ("next", "l0", "l1")]
    init += [("next", "l1", "l2"), ("shaker-level", "shaker1", "l0")]
    init += [("shaker-empty-level", "shaker1", "l0")]
    init += [("dispenses", d, i) for d, i in zip(dispensers, ingredients, strict=True)]
    for cocktail in cocktails:
        first, second = rng.sample(ingredients, 2)
        init += [("cocktail-part1", cocktail, first), ("cocktail-part2", cocktail, second)]
    dirty = rng.choice((0.0, 0.0, 0.3))
    for shot in shots:
        init.append(("ontable", shot))
        if rng.random() >= dirty:
            init += [("clean", shot), ("empty", shot)]
            continue
        ingredient = rng.choice(ingredients)
        left_in = rng.random() < 0.5
        init += [("used", shot, ingredient)]
        init += [("contains", shot, ingredient) if left_in else ("empty", shot)]
    drinks = rng.sample(cocktails, mixed) + [rng.choice(ingredients) for _ in range(pure)]
    used = rng.sample(shots, len(drinks))
    goal = [("contains", *pair) for pair in zip(used, drinks, strict=True)]
    objects = {"shaker1": "shaker", "left": "hand", "right": "hand"}
    objects |= dict.fromkeys(shots, "shot") | dict.fromkeys(ingredients, "ingredient")
    objects |= dict.fromkeys(cocktails, "cocktail") | dict.fromkeys(dispensers, "dispenser")
    return objects | dict.fromkeys(("l0", "l1", "l2"), "level"), init, sorted(goal)


def _tyreworld(rng: random.Random) -> Parts:
    """One to four hubs with flat wheels w; intact wheels r in the boot; some of it done already."""
    numbers = range(1, rng.randint(1, 4) + 1)
    init: list[Atom] = [("unlocked", "boot")]
    lying = rng.choice((0.0, 0.0, 0.3))  # how often a tool is there already
    open_already = rng.random() < 0.3
    init.append(("isopen" if open_already else "closed", "boot"))
    init += [
        ("have", tool) if rng.random() < lying else ("in", tool, "boot")
        for tool in ("wrench", "jack", "pump")
    ]
    ready = rng.choice((0.0, 0.2, 0.5))
    for n in numbers:
        init += [("on", f"w{n}", f"the-hub{n}"), ("on-ground", f"the-hub{n}")]
        init += [("fastened", f"the-hub{n}"), ("intact", f"r{n}"), ("in", f"r{n}", "boot")]
        loose = rng.random() < ready
        init.append(("loose" if loose else "tight", f"nuts{n}", f"the-hub{n}"))
        init.append(("inflated" if rng.random() < ready else "not-inflated", f"r{n}"))
    goal: list[Atom] = []
    for n in rng.sample(numbers, rng.randint(1, min(3, len(numbers)))):
        swapped, inflated, away, tight = rng.choice(_WISHES)
        goal += [("on", f"r{n}", f"the-hub{n}")] * swapped + [("inflated", f"r{n}")] * inflated
        goal += [("in", f"w{n}", "boot")] * away + [("tight", f"nuts{n}", f"the-hub{n}")] * tight
    objects = {f"the-hub{n}": "hub" for n in numbers} | {f"nuts{n}": "nut" for n in numbers}
    objects |= {"boot": "container"} | {f"{w}{n}": "wheel" for n in numbers for w in "rw"}
    return objects, init, sorted(goal)


# What may be wanted of a wheel: the intact one on the hub, inflated; the flat one away; nuts tight.
_WISHES = (
    (False, True, False, False),
    (False, False, True, False),
    (True, False, False, False),
    (True, False, True, False),
    (True, True, False, False),
    (True, True, True, False),
    (True, True, True, True),
)
_DRAW = {
    "gripper": _gripper,
    "blockworld": _blockworld,
    "barman": _barman,
    "tyreworld": _tyreworld,
}
