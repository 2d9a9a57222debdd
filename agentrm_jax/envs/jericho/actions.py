"""The answer to `check valid actions`: commands that do something, found by trying them.

Jericho's own list needs a language model of spaCy to find the things in the text, and tries
thousands of commands, which takes up to ten seconds. Here the things are read from the game's
memory, the verbs are the game's own, those first that people use most, and a few hundred
commands are tried.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from agentrm_jax.envs.jericho.simulator import Simulator, State
from agentrm_jax.envs.jericho.text import is_refused

_MOST_THINGS = 12
_MOST_VERBS = 40  # that take one thing
_MOST_PAIRS = 120
_MOST_NEARBY = 60  # more is not a room but the object that holds all rooms


@functools.lru_cache(maxsize=512)  # a search asks in the same state again and again
def possible_actions(simulator: Simulator, state: State) -> tuple[str, ...]:
    """One command for each different effect, in a fixed order."""
    if state.over or state.origin is not None:  # a menu waits for a key, not for a command
        return ()
    found: dict[bytes, str] = {}
    for said in _candidates(simulator, state):
        after = simulator.play(state, said)
        if "(Taken)" in after.text:  # it took something on the way, so it is two commands
            continue
        if not after.changed and not after.over and after.score == state.score:
            continue
        found.setdefault(simulator.world(after), said)
    return tuple(found.values())


def _candidates(simulator: Simulator, state: State) -> Iterator[str]:
    alone, one, two = _templates(simulator)
    carried, near = _things(simulator, state)
    things = [*carried, *near][:_MOST_THINGS]
    commands = [
        *alone,
        *(verb.replace("OBJ", thing) for thing in [*things, "all"] for verb in one[:_MOST_VERBS]),
        *_pairs(two, carried, things),
    ]
    words, length = vocabulary(simulator)
    return (said for said in commands if not is_refused(said, words, length))


def _pairs(two: Sequence[str], carried: Sequence[str], things: Sequence[str]) -> list[str]:
    pairs = [
        verb.replace("OBJ", first, 1).replace("OBJ", second, 1)
        for verb in two
        for first in carried
        for second in things
        if first != second
    ]
    return pairs[:_MOST_PAIRS]


@functools.cache
def _templates(simulator: Simulator) -> tuple[list[str], list[str], list[str]]:
    """The game's sentences without, with one and with two things, much used verbs first."""
    from jericho.util import verb_usage_count

    known = simulator.emulator.act_gen.templates
    ordered = sorted(dict.fromkeys(known), key=lambda text: (-verb_usage_count(text), text))
    alone, one, two = ([t for t in ordered if t.count("OBJ") == n] for n in range(3))
    return alone, one, two


@functools.cache
def vocabulary(simulator: Simulator) -> tuple[frozenset[str], int]:
    """Words of commands about the game, and how many letters of a word the game reads."""
    words = simulator.emulator.get_dictionary()
    return (
        frozenset(word.word for word in words if word.is_meta),
        simulator.emulator.bindings["max_word_length"],
    )


@functools.cache
def _words(simulator: Simulator) -> frozenset[str]:
    return frozenset(word.word for word in simulator.emulator.get_dictionary())


def _things(simulator: Simulator, state: State) -> tuple[list[str], list[str]]:
    """Names of what is carried and of what is near."""
    simulator.stand(state)
    emulator = simulator.emulator
    tree = emulator.get_world_objects()
    player = emulator.player_obj_num
    place = tree[player].parent
    if tree[place].parent and len(_inside(tree, tree[place].parent)) <= _MOST_NEARBY:
        place = tree[place].parent  # on or in something that stands in a room
    carried = _inside(tree, player)
    near = [n for n in _inside(tree, place) if n != player and n not in carried]
    length = emulator.bindings["max_word_length"]

    def names(numbers: Sequence[int]) -> list[str]:
        known: dict[str, list[str]] = {}
        for number in numbers:
            words = re.findall(r"[a-z']+", tree[number].name.lower())
            words = [word for word in words if word[:length] in _words(simulator)]
            if words:
                known.setdefault(words[-1], []).append(" ".join(words))
        # One word is enough, except for two doors.
        named = (whole if len(whole) > 1 else [last] for last, whole in known.items())
        return list(dict.fromkeys(itertools.chain.from_iterable(named)))

    mine = names(carried)
    return mine, [name for name in names(near) if name not in mine]


def _inside(tree: Sequence, holder: int) -> list[int]:
    """All that is in or on a thing, also in what is in it."""
    found: list[int] = []
    waiting = [tree[holder].child]
    while waiting:
        number = waiting.pop()
        if 0 < number < len(tree) and number not in found:
            found.append(number)
            waiting += [tree[number].sibling, tree[number].child]
    return found
