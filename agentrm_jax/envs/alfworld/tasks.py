"""ALFWorld's tasks: the games as they are, and other goals in the rooms of train games."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.alfworld.files import GAME, game_names, games_folder, paper_names
from agentrm_jax.envs.alfworld.game import Source
from agentrm_jax.envs.alfworld.text import read_grammar, task_text

NAME = "alfworld"
KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("clean", "isClean", "cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("heat", "isHot", "heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("cool", "isCool", "coolable", "Fridge"),
}
"""For the kinds with a treatment: the verb, what it makes true, what it needs, and where."""
_MAX_STEPS = 40
_LAMPS = ("DeskLamp", "FloorLamp")
# ALFWorld's own sentences.
_SENTENCES = {
    "pick_and_place_simple": ("put a {o} in {r}", "put some {o} on {r}"),
    "look_at_obj_in_light": ("look at {o} under the {r}", "examine the {o} with the {r}"),
    "pick_clean_then_place_in_recep": (
        "put a clean {o} in {r}",
        "clean some {o} and put it in {r}",
    ),
    "pick_heat_then_place_in_recep": ("put a hot {o} in {r}", "heat some {o} and put it in {r}"),
    "pick_cool_then_place_in_recep": ("put a cool {o} in {r}", "cool some {o} and put it in {r}"),
    "pick_two_obj_and_place": ("put two {o} in {r}", "find two {o} and put them in {r}"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """The goal of a task.

    Attributes:
      kind: One of `KINDS`.
      thing: The kind of object, for example `ButterKnife`.
      place: The kind of receptacle, or of lamp where the thing is to be looked at.
    """

    kind: str
    thing: str
    place: str

    def sentence(self, variant: int) -> str:
        text = _SENTENCES[self.kind][variant % 2]
        return f"Your task is to: {text.format(o=self.thing.lower(), r=self.place.lower())}."

    def pddl(self) -> str:
        if self.kind == "look_at_obj_in_light":
            return (
                "(:goal (and (exists (?t - object ?r - receptacle ?a - agent ?l - location)"
                f" (and (objectType ?t {self.place}Type) (toggleable ?t) (isToggled ?t)"
                " (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r)))"
                f" (exists (?o - object ?a - agent) (and (objectType ?o {self.thing}Type)"
                " (holds ?a ?o)))))"
            )
        more = ""
        if self.kind in TREATMENTS:
            _, made_true, needed, _ = TREATMENTS[self.kind]
            more = f" ({needed} ?o) ({made_true} ?o)"
        if self.kind == "pick_two_obj_and_place":
            more = (
                f" (exists (?p - object) (and (not (= ?o ?p)) (objectType ?p {self.thing}Type)"
                " (inReceptacle ?p ?r)))"
            )
        return (
            "(:goal (exists (?r - receptacle) (exists (?o - object) (and"
            f" (receptacleType ?r {self.place}Type) (objectType ?o {self.thing}Type)"
            f" (inReceptacle ?o ?r){more}))))"
        )


class Room:
    """The places of all things at the beginning of a game, read from its PDDL."""

    def __init__(self, problem: str) -> None:
        beginning = _between(problem, "(:init", "(:goal")
        found = re.findall(r"\(\s*([A-Za-z]\w*(?:\s+[^\s()=]+)*)\s*\)", beginning)
        split = sorted({tuple(one.split()) for one in found})
        self.facts = [one for one in split if one[0] not in ("distance", "total-cost")]
        self.form = canonical_form(self.facts)
        self._about: dict[str, list[tuple[str, ...]]] = {}
        for predicate, *objects in self.facts:
            self._about.setdefault(predicate, []).append(tuple(objects))

    def goals(self, kind: str) -> list[Goal]:
        """The goals of a kind that are allowed here, not yet reached and can be reached.

        Everything that stands in or on a receptacle with a place can be had, since an agent can go
        to all of these and open them.
        """
        about = self._about
        kind_of = {o: k.removesuffix("Type") for o, k in about.get("objectType", ())}
        place_kinds = {r: k.removesuffix("Type") for r, k in about.get("receptacleType", ())}
        places = {r for r, _ in about.get("receptacleAtLocation", ())}
        there = {thing for thing, place in about.get("inReceptacle", ()) if place in places}
        things: dict[str, set[str]] = {}  # those that can be had, by kind
        for (thing,) in about.get("pickupable", ()):
            if thing in there and thing in kind_of:
                things.setdefault(kind_of[thing], set()).add(thing)
        near = {place_kinds[place] for place in places if place in place_kinds}
        if kind == "look_at_obj_in_light":
            lamps = {kind_of.get(t) for (t,) in about.get("toggleable", ()) if t in there}
            return [
                Goal(kind, thing, lamp)
                for thing, lamp in itertools.product(sorted(things), _LAMPS)
                if lamp in lamps and thing not in _LAMPS
            ]
        allowed = sorted(
            (thing.removesuffix("Type"), place.removesuffix("Type"))
            for place, thing in about.get("canContain", ())
        )
        found = []
        for thing, place in allowed:
            fitting = things.get(thing, set())
            ready = {one for one, its_kind in kind_of.items() if its_kind == thing}
            if kind in TREATMENTS:
                _, made_true, needed, where = TREATMENTS[kind]
                fitting = fitting & self._with(needed) if where in near else set()
                ready &= self._with(made_true)
            enough = 2 if kind == "pick_two_obj_and_place" else 1
            in_place = Counter(
                one
                for ready_thing, one in about.get("inReceptacle", ())
                if ready_thing in ready and place_kinds.get(one) == place
            )
            reached = any(count >= enough for count in in_place.values())
            if place in near and len(fitting) >= enough and not reached:
                found.append(Goal(kind, thing, place))
        return found

    def _with(self, predicate: str) -> set[str]:
        return {thing for (thing,) in self._about.get(predicate, ())}


def source_of(task: Task) -> Source:
    """The game of a task."""
    other = task.spec["goal"]
    goal = None if other is None else [task.kind, *other]
    return _source(games_folder(), task.spec["game"], json.dumps(goal))


def goal_of(task: Task) -> Goal:
    if task.spec["goal"] is not None:
        return Goal(task.kind, *task.spec["goal"])
    return _own_goal(_read(games_folder(), task.spec["game"])["pddl_problem"], task.spec["game"])


def walkthrough_of(task: Task) -> list[str] | None:
    """The commands stored in the game; None if there are none or the goal is another one."""
    if task.spec["goal"] is not None:
        return None
    return _read(games_folder(), task.spec["game"]).get("walkthrough") or None


def stored_tasks(split: Split, kinds: Sequence[str], seed: int) -> list[Iterator[Task]]:
    """For each kind the games as they are: in `paper` in ETO's order, else shuffled."""
    folder = games_folder()
    names = list(_names(split))
    if split != "paper":
        random.Random(f"{NAME}/{split}/{seed}").shuffle(names)
    by_kind = {kind: [name for name in names if _kind_of(name) == kind] for kind in kinds}
    return [_stored_tasks(folder, by_kind[kind], split) for kind in kinds]


def new_tasks(kind: str, seed: int) -> Iterator[Task]:
    """Tasks of the kind with other goals in the rooms of the train games.

    One goal of each room, then another of each, until there are no more.
    """
    folder = games_folder()
    taken = {form for split in ("test", "paper", "train") for form in _forms(folder, split)}
    rng = random.Random(f"{NAME}/{kind}/{seed}")
    names = list(_names("train"))
    rng.shuffle(names)
    left: dict[str, list[Goal]] = {}
    for name in itertools.chain.from_iterable(itertools.repeat(names)):
        if name not in left:
            left[name] = list(_goals(folder, name, kind))
            rng.shuffle(left[name])
        if not left[name]:
            if not any(left.values()) and len(left) == len(names):
                return
            continue
        goal = left[name].pop()
        form = _form(_scene_form(folder, name), goal)
        if form not in taken:
            taken.add(form)
            yield _task(name, "train", form, goal)


def stored_count(split: Split) -> int:
    return len(_names(split))


def _names(split: Split) -> tuple[str, ...]:
    """The games of a split. `train` is the whole train folder where it is there, else the 200
    games chosen from it."""
    if split == "test":
        return game_names("valid_seen")
    if split == "train":
        return game_names("train") or game_names("valid_train")
    present = game_names("valid_unseen")
    listed = paper_names()
    if listed is None:
        return present
    if absent := sorted(set(listed) - set(present)):
        raise UserError(f"{games_folder()}: {absent[0]} of the paper's list is not there")
    return listed


def _kind_of(name: str) -> str:
    """`valid_seen/pick_and_place_simple-Mug-None-Desk-308/trial_...`."""
    return name.split("/")[1].partition("-")[0]


def _stored_tasks(folder: Path, names: Sequence[str], split: Split) -> Iterator[Task]:
    return (_stored_task(folder, name, split) for name in names)


def _stored_task(folder: Path, name: str, split: Split) -> Task:
    return _task(name, split, _own_form(folder, name), None)


def _task(name: str, split: Split, form: str, goal: Goal | None) -> Task:
    kind = _kind_of(name) if goal is None else goal.kind
    short = name.partition("/")[2]
    if goal is not None:
        short += f"/{goal.thing}-{goal.place}"
    return Task(
        environment=NAME,
        task_id=f"{NAME}/{kind}/{short}",
        kind=kind,
        split=split,
        problem=form,
        max_steps=_MAX_STEPS,
        spec={"game": name, "goal": None if goal is None else [goal.thing, goal.place]},
    )


def _read(folder: Path, name: str) -> dict:
    path = folder / name / GAME
    try:
        game = parse_json(path.read_bytes())
        texts = [game["pddl_domain"], game["pddl_problem"], game["grammar"]]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("domain, problem and grammar must be texts")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no game: {first_line(error)}") from error
    return game


@functools.lru_cache(maxsize=64)
def _source(folder: Path, name: str, goal: str) -> Source:
    game = _read(folder, name)
    problem, task = game["pddl_problem"], task_text(game["grammar"])
    if (other := json.loads(goal)) is not None:
        kind, thing, place = other
        new = Goal(kind, thing, place)
        problem = problem[: problem.index("(:goal")] + new.pddl() + "\n)"
        digest = hashlib.sha256(f"{name}/{goal}".encode()).digest()
        task = new.sentence(digest[0])
    grammar = read_grammar(game["grammar"])
    return Source(domain=game["pddl_domain"], problem=problem, grammar=grammar, task=task)


@functools.lru_cache(maxsize=4096)
def _own_form(folder: Path, name: str) -> str:
    problem = _read(folder, name)["pddl_problem"]
    return _form(Room(problem).form, _own_goal(problem, name))


@functools.lru_cache(maxsize=16)
def _forms(folder: Path, split: Split) -> frozenset[str]:
    return frozenset(_own_form(folder, name) for name in _names(split))


@functools.lru_cache(maxsize=4096)
def _scene_form(folder: Path, name: str) -> str:
    return _room(folder, name).form


@functools.lru_cache(maxsize=8)
def _room(folder: Path, name: str) -> Room:
    return Room(_read(folder, name)["pddl_problem"])


@functools.lru_cache(maxsize=8192)
def _goals(folder: Path, name: str, kind: str) -> tuple[Goal, ...]:
    return tuple(_room(folder, name).goals(kind))


def _form(scene: str, goal: Goal) -> str:
    return canonical_form([scene, *dataclasses.astuple(goal)])


def _own_goal(problem: str, name: str) -> Goal:
    """The goal that the game came with, read from its PDDL."""
    goal = problem[problem.index("(:goal") :]
    things = dict(re.findall(r"\(objectType \?(\w+) (\w+)Type\)", goal))
    places = re.findall(r"\(receptacleType \?\w+ (\w+)Type\)", goal)
    kind = _kind_of(name)
    try:
        if kind == "look_at_obj_in_light":
            return Goal(kind, things["o"], things["ot"])
        return Goal(kind, things.get("o") or things["o1"], places[0])
    except (KeyError, IndexError) as error:
        raise UserError(f"{name}: the goal of the game is not understood") from error


def _between(text: str, begin: str, end: str) -> str:
    return text[text.index(begin) + len(begin) : text.index(end)]
