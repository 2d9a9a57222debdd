"""ALFWorld's games as the real software plays them, without what an agent does not need.

The rules and the state are those of TextWorld: its translator turns the game's PDDL into a planning
task, its planner library (Fast Downward) holds the state. TextWorld's own environment translates
each game four times, twice of it for a planner, and writes the text of every possible command in
every step. Here a game is translated once and kept (in memory and in the cache folder), and a
command's text is written once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.alfworld.text import Grammar
from agentrm_jax.envs.data_directory import cache_directory

NOTHING_HAPPENS = "Nothing happens."
_FORMAT = 1  # of the kept translations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The parts of a game: two PDDL texts, its grammar, the sentence that states the task."""

    domain: str
    problem: str
    grammar: Grammar
    task: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
    """A translated game.

    Attributes:
      planning_task: In Fast Downward's format, with every action.
      facts: Those that are true at the beginning, each as predicate and objects.
      parameters: The parameters' names of each action.
      names: What the agent reads, for example `drawer 2`, for each object.
    """

    planning_task: bytes
    facts: Sequence[Sequence[str]]
    parameters: Mapping[str, Sequence[str]]
    names: Mapping[str, str]


@functools.lru_cache(maxsize=32)  # up to 2 megabytes each
def translate(domain: str, problem: str) -> Translation:
    """A game's translation, from memory or the cache folder if it was made before."""
    libraries = ("textworld", "fast-downward-textworld")
    made_of = [str(_FORMAT), *map(_version, libraries), domain, problem]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, zlib.error, TypeError, KeyError):
        return _kept(key)
    return _made_and_kept(key, domain, problem)


def displayed_names(objects: Sequence[str]) -> dict[str, str]:
    """The names that ALFWorld gives the objects: a kind and a number, counted down in the order of
    the objects' own names (`desk_bar__minus_00_...`)."""
    counts = Counter(filter(None, map(_kind_of, objects)))
    names = {}
    for one in sorted(objects):
        kind = _kind_of(one)
        if kind is None:
            names[one] = f"{one} "
            continue
        names[one] = f"{kind} {counts[kind]}"
        counts[kind] -= 1
    return names


class Game:
    """A game that can be played again and again; at any time one episode of it is in progress."""

    def __init__(self, library: Any, source: Source) -> None:
        self._library = library
        self._source = source
        self._translation = translate(source.domain, source.problem)
        self._commands: dict[str, str] = {}  # by action, they are the same at any time
        self.restart()

    def restart(self) -> None:
        self._library.load_sas(self._translation.planning_task)
        self.facts: dict[str, set[tuple[str, ...]]] = {}
        for predicate, *objects in self._translation.facts:
            self.facts.setdefault(predicate, set()).add(tuple(objects))

    @property
    def names(self) -> Mapping[str, str]:
        return self._translation.names

    @property
    def room(self) -> str:
        return self._source.grammar.room(self.facts, self.names)

    @property
    def task(self) -> str:
        return self._source.task

    @property
    def won(self) -> bool:
        return self._library.check_goal()

    def possible(self) -> list[str]:
        """Returns the commands that are possible now, sorted."""
        return sorted({self._command(operator.name) for operator in self._operators()})

    def act(self, command: str) -> str | None:
        """The answer to a command; None if it is not possible now."""
        import fast_downward

        for operator in self._operators():
            name = operator.name
            if self._command(name) == command:
                break
        else:
            return None
        effects = (fast_downward.Atom * operator.nb_effect_atoms)()
        self._library.apply_operator(operator.id, effects)
        for effect in effects:
            true, predicate, objects = _read_atom(effect.name)
            now, before = (predicate, f"not_{predicate}")[:: 1 if true else -1]
            self.facts.setdefault(before, set()).discard(objects)
            self.facts.setdefault(now, set()).add(objects)
        action, binding = self._meant(name)
        return self._source.grammar.answer(action, binding, self.names, self.facts)

    def _operators(self) -> Any:
        import fast_downward

        operators = (fast_downward.Operator * self._library.get_applicable_operators_count())()
        self._library.get_applicable_operators(operators)
        return operators

    def _command(self, name: str) -> str:
        if (command := self._commands.get(name)) is None:
            action, binding = self._meant(name)
            grammar = self._source.grammar
            command = grammar.command(action, binding, self.names, self.facts)
            self._commands[name] = command
        return command

    def _meant(self, name: str) -> tuple[str, dict[str, str]]:
        action, *objects = name.split()
        # The translator adds parameters for what only has to exist; they are not named.
        return action, dict(zip(self._translation.parameters[action], objects, strict=False))


class Simulator:
    """Plays one episode at a time (`envs.replay.Simulator`)."""

    def __init__(self, source_of: Callable[[Task], Source]) -> None:
        import fast_downward

        self._source_of = source_of
        self._library = fast_downward.load_lib()
        self._game: Game | None = None
        self._source: Source | None = None
        self._steps_left = 0

    def reset(self, task: Task) -> str:
        game = self.start(self._source_of(task))
        self._steps_left = task.max_steps
        return f"{game.room}\n{game.task}"

    def start(self, source: Source) -> Game:
        """The game at its beginning."""
        if self._game is not None and self._source is source:
            self._game.restart()
        else:
            self._game, self._source = Game(self._library, source), source
        return self._game

    def step(self, action: str) -> Transition:
        assert self._game is not None, "step before reset"
        self._steps_left -= 1
        answer = self._game.act(as_command(action))
        success = answer is not None and self._game.won
        return Transition(
            observation=NOTHING_HAPPENS if answer is None else answer.strip(),
            reward=float(success),
            done=success or self._steps_left <= 0,
            success=success,
            valid=answer is not None,
        )


def as_command(action: str) -> str:
    """Returns an agent's text as a command: case, spaces and a last full stop do not matter, and
    `put ... in ...` or `put ... on ...` means `put ... in/on ...`."""
    words = action.lower().strip().rstrip(".").split()
    if words and words[0] == "put":
        words = ["in/on" if word in ("in", "on") else word for word in words]
    return " ".join(words)


def _kept(key: str) -> Translation:
    with (_folder() / f"{key}.json.z").open("rb") as file:
        value = json.loads(zlib.decompress(file.read()))
    return Translation(
        planning_task=value["planning_task"].encode(),
        facts=tuple(map(tuple, value["facts"])),
        parameters=value["parameters"],
        names=value["names"],
    )


def _made_and_kept(key: str, domain: str, problem: str) -> Translation:
    made = _translate(domain, problem)
    value = dataclasses.asdict(made) | {"planning_task": made.planning_task.decode()}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        _folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=_folder(), delete=False) as file:
            file.write(zlib.compress(json.dumps(value).encode()))
        os.replace(file.name, _folder() / f"{key}.json.z")
    return made


def _folder() -> Any:
    return cache_directory() / "alfworld" / "translated"


def _translate(domain: str, problem: str) -> Translation:
    import fast_downward

    task, text = _pddl2sas(domain, problem)
    library = _scratch_library()
    library.load_sas(text.encode())
    atoms = (fast_downward.Atom * library.get_state_size())()
    library.get_state(atoms)
    facts = {tuple(fact) for fact in _initial_facts(task)}
    for atom in atoms:
        true, predicate, objects = _read_atom(atom.name)
        if true:
            facts.add((predicate, *objects))
    types = {one.name for one in task.objects}
    objects = sorted({one for fact in facts for one in fact[1:] if one in types})
    return Translation(
        planning_task=text.encode(),
        facts=tuple(sorted(facts)),
        parameters={a.name: [p.name.strip("?") for p in a.parameters] for a in task.actions},
        names=displayed_names(objects),
    )


def _initial_facts(task: Any) -> Iterator[Sequence[str]]:
    """The problem's own facts except for equalities, costs and distances."""
    for atom in task.init:
        predicate = getattr(atom, "predicate", "=")
        if predicate != "=":
            yield (predicate, *atom.args)


@functools.cache
def _scratch_library() -> Any:
    import fast_downward

    return fast_downward.load_lib()


def _pddl2sas(domain: str, problem: str) -> tuple[Any, str]:
    """TextWorld's translator, which writes over the command line of the process."""
    import fast_downward

    arguments = sys.argv
    translator: Any = fast_downward.pddl2sas  # its own annotation says str
    try:
        return translator(domain, problem)
    finally:
        sys.argv = arguments


@functools.lru_cache(maxsize=65536)
def _read_atom(text: str) -> tuple[bool, str, tuple[str, ...]]:
    """`Atom p(x, y)` or `NegatedAtom p(x, y)`."""
    kind, _, rest = text.partition(" ")
    predicate, _, objects = rest.partition("(")
    return (
        kind != "NegatedAtom",
        predicate,
        tuple(one for one in objects[:-1].split(", ") if one),
    )


def _kind_of(name: str) -> str | None:
    """`sink_bar__minus_..._bar_sinkbasin` is a sinkbasin."""
    kind, bar, _ = name.partition("_bar_")
    if not bar:
        return None
    return f"{kind}basin" if "basin" in name else kind


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
