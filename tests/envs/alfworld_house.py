"""A small house of our own as an ALFWorld game, with the installed package's rules and texts."""

from __future__ import annotations

import json
import re
from pathlib import Path

# Kind of place, what it may hold.
_ALLOWED = {
    "Cabinet": ("Mug", "Spoon", "Book"),
    "CounterTop": ("Mug", "Spoon", "Bread", "Book", "DeskLamp"),
    "Fridge": ("Mug", "Bread"),
    "Microwave": ("Mug", "Bread"),
    "SinkBasin": ("Mug", "Spoon"),
}
_PLACES = tuple(_ALLOWED)
_OPENABLE = ("Cabinet", "Fridge", "Microwave")
_CAN = {
    "cleanable": ("Mug", "Spoon"),
    "heatable": ("Mug", "Bread"),
    "coolable": ("Mug", "Bread"),
}
THINGS = {"Bread": ("CounterTop",), "Mug": ("CounterTop",), "Spoon": ("CounterTop",)}


def own_name(kind: str, number: int = 0) -> str:
    name = f"{kind.removesuffix('Basin')}_bar__plus_0{number}_dot_00_bar__plus_00_dot_50"
    return f"{name}_bar_{kind}" if kind.endswith("Basin") else name


def problem(goal: str, things: dict[str, tuple[str, ...]] = THINGS) -> str:
    """The house with things (kind: the places where one of it stands)."""
    kinds = sorted(set(things) | {kind for kinds in _ALLOWED.values() for kind in kinds})
    objects = [
        (kind, own_name(kind, i), at) for kind in things for i, at in enumerate(things[kind])
    ]
    places = {kind: own_name(kind) for kind in _PLACES}
    declared = [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in kinds),
        *(f"{kind}Type - rtype" for kind in _PLACES),
        *(f"{name} - object" for _, name, _ in objects),
        *(f"{name} - receptacle" for name in places.values()),
        *(f"loc{i} - location" for i in range(len(places) + 1)),
    ]
    facts = ["(atLocation agent1 loc0)", "(= (total-cost) 0)"]
    for i, (kind, name) in enumerate(places.items(), start=1):
        facts += [f"(receptacleType {name} {kind}Type)", f"(receptacleAtLocation {name} loc{i})"]
        facts += [f"(openable {name})"] * (kind in _OPENABLE)
        facts += [f"(canContain {kind}Type {thing}Type)" for thing in _ALLOWED[kind]]
    for kind, name, at in objects:
        facts += [f"(objectType {name} {kind}Type)", f"(inReceptacle {name} {places[at]})"]
        facts += [f"(objectAtLocation {name} loc{1 + _PLACES.index(at)})"]
        facts += [f"({'toggleable' if kind == 'DeskLamp' else 'pickupable'} {name})"]
        facts += [f"({can} {name})" for can, able in _CAN.items() if kind in able]
    lines = "\n".join
    return (
        f"(define (problem house)\n(:domain alfred)\n(:objects\n{lines(declared)}\n)\n"
        f"(:init\n{lines(facts)}\n)\n(:goal {goal})\n)\n"
    )


def simple_goal(thing: str, place: str, more: str = "") -> str:
    return (
        "(and (exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) "
        f"(objectType ?o {thing}Type) (receptacleType ?r {place}Type) {more}))))"
    )


def write_game(
    folder: Path,
    name: str,
    goal: str,
    task: str,
    things: dict[str, tuple[str, ...]] = THINGS,
    walkthrough: list[str] | None = None,
) -> None:
    """A game file under `folder/json_2.1.1/NAME`."""
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

    grammar = re.sub(r"UNKNOWN GOAL\.", task, Path(ALFRED_TWL2_PATH).read_text())
    game = {
        "pddl_domain": Path(ALFRED_PDDL_PATH).read_text(),
        "grammar": grammar,
        "pddl_problem": problem(goal, things),
        "solvable": True,
    }
    if walkthrough is not None:
        game["walkthrough"] = walkthrough
    path = folder / "json_2.1.1" / name / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(game))


def write_house(folder: Path) -> None:
    """A train game, a test game and a paper game."""
    clean = simple_goal("Mug", "Cabinet", "(cleanable ?o) (isClean ?o)")
    example = "pick_clean_then_place_in_recep-Mug-None-Cabinet-1/trial_1"
    write_game(folder, f"valid_unseen/{example}", clean, "put a clean mug in cabinet.")
    write_game(
        folder,
        "valid_seen/pick_and_place_simple-Spoon-None-Cabinet-1/trial_1",
        simple_goal("Spoon", "Cabinet"),
        "put a spoon in cabinet.",
        walkthrough=[
            f"go to {own_name('CounterTop').lower()}",
            f"take {own_name('Spoon').lower()} from {own_name('CounterTop').lower()}",
            f"go to {own_name('Cabinet').lower()}",
            f"open {own_name('Cabinet').lower()}",
            f"move {own_name('Spoon').lower()} to {own_name('Cabinet').lower()}",
        ],
    )
    things = {
        "Mug": ("CounterTop", "Fridge"),
        "Book": ("CounterTop",),
        "Bread": ("Fridge",),
        "DeskLamp": ("CounterTop",),
        "Spoon": ("SinkBasin",),
    }
    write_game(
        folder,
        "valid_train/pick_and_place_simple-Book-None-Cabinet-1/trial_1",
        simple_goal("Book", "Cabinet"),
        "put some book on cabinet.",
        things,
    )
