r"""Regular expressions of an agent, searched without backtracking.

Python's `re` tries one way after another: a pattern with three `.*` takes 20 s on 800 letters. Here
Python parses the pattern, and decides what each single character and position matches; all ways
are then followed at the same time (Thompson's construction, its sets of states remembered). The
work grows with the length of the text alone. It is also counted: the same search gives up at the
same point on every machine, so that episodes can be played again.

What cannot be followed that way (references to groups, looking around, atomic groups) is refused.
Python's private parser is used because an agent writes Python's syntax: RE2 (`google-re2`) reads
`$`, `\d`, `\w` and `{,2}` in another way, refuses `(?x)` and `\Z`, and would find other cells.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 200
"""Characters of a pattern."""
MOST_STATES = 1000
MOST_WORK = 200_000
"""States that one search may visit: a few hundredths of a second."""

# Python's own parser and compiler of patterns; there is no public name for them.
_parser: Any = re._parser  # type: ignore[attr-defined]
_compiler: Any = re._compiler  # type: ignore[attr-defined]

_KINDS_OF_TEXT = int(re.ASCII | re.UNICODE | re.LOCALE)
_NAMES = {
    "GROUPREF": "references to groups",
    "GROUPREF_EXISTS": "references to groups",
    "ASSERT": "looking ahead or behind",
    "ASSERT_NOT": "looking ahead or behind",
    "FAILURE": "looking ahead or behind",
    "ATOMIC_GROUP": "atomic groups",
    "POSSESSIVE_REPEAT": "possessive repeats",
}


class PatternError(ValueError):
    """A pattern that cannot be used; the message says why."""


class Pattern:
    """A compiled pattern; it is shown as Python shows one.

    Raises:
      PatternError: It is no pattern, longer than `LONGEST`, or needs what is refused here.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > LONGEST:
            raise PatternError(f"a pattern has at most {LONGEST} characters")
        self._program = _program(text)

    def __repr__(self) -> str:
        return f"re.compile({self.text!r})"

    def searcher(self, *, whole: bool = False) -> Callable[[str], bool]:
        """A search whose texts share one limit of work: whether the pattern is found in a text, or
        (`whole`) is the text.

        The search raises a `PatternError` when the limit is reached.
        """
        return _Search(self._program, whole).search


class _Program:
    """States of an automaton: what leads from each to which others.

    Attributes:
      tests: Patterns of one character, or of a position.
      steps: For each state its kind (`character`, `position`, `split`, `found`), the number of
        its test, and the states that follow.
    """

    def __init__(self) -> None:
        self.tests: list[re.Pattern[str]] = []
        self.steps: list[tuple[str, int, tuple[int, ...]]] = []
        self.start = 0
        self._numbers: dict[str, int] = {}

    def state(self, kind: str, following: Sequence[int], test: int = -1) -> int:
        if len(self.steps) >= MOST_STATES:
            raise PatternError("the pattern is too large")
        self.steps.append((kind, test, tuple(following)))
        return len(self.steps) - 1

    def test(self, node: Any, flags: int) -> int:
        """The number of a one-node pattern, compiled by Python under these flags."""
        name = f"{flags} {node}"
        if name not in self._numbers:
            self._numbers[name] = len(self.tests)
            state = _parser.State()
            state.flags = flags
            self.tests.append(_compiler.compile(_parser.SubPattern(state, [node]), flags))
        return self._numbers[name]


@functools.lru_cache(maxsize=256)
def _program(text: str) -> _Program:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(text)  # also finds what only Python's compiler refuses
            tree = _parser.parse(text)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise PatternError(str(error)) from None
    program = _Program()
    flags = tree.state.flags & ~re.VERBOSE
    try:
        program.start = _built(program, tree, flags, program.state("found", ()))
    except RecursionError:
        raise PatternError("the pattern is nested too deep") from None
    return program


def _built(program: _Program, nodes: Any, flags: int, after: int) -> int:
    """Adds the states of a sequence of nodes that ends in `after`; returns the first state."""
    for node in reversed(list(nodes)):
        after = _built_node(program, node, flags, after)
    return after


def _built_node(program: _Program, node: Any, flags: int, after: int) -> int:
    kind, value = node
    match str(kind):
        case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY":
            return program.state("character", (after,), program.test(node, flags))
        case "AT":
            return program.state("position", (after,), program.test(node, flags))
        case "BRANCH":
            ways = [_built(program, branch, flags, after) for branch in value[1]]
            return program.state("split", ways)
        case "SUBPATTERN":
            _, added, removed, inner = value
            if added & _KINDS_OF_TEXT:  # of (?a:...) and (?u:...) one holds
                flags &= ~_KINDS_OF_TEXT
            return _built(program, inner, (flags | added) & ~removed, after)
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _repeated(program, value, flags, after)
    what = _NAMES.get(str(kind), str(kind).lower())
    raise PatternError(f"{what} cannot be used in a pattern here")


def _repeated(program: _Program, value: Any, flags: int, after: int) -> int:
    least, most, inner = value
    if most == _parser.MAXREPEAT:
        loop = program.state("split", ())
        again = _built(program, inner, flags, loop)
        program.steps[loop] = ("split", -1, (again, after))
        after = loop
    else:
        end = after
        for _ in range(most - least):
            after = program.state("split", (_built(program, inner, flags, after), end))
    for _ in range(least):
        after = _built(program, inner, flags, after)
    return after


class _Search:
    """A running automaton and the transitions that it has computed so far."""

    def __init__(self, program: _Program, whole: bool) -> None:
        self._program, self._whole = program, whole
        self._positions = sorted({step[1] for step in program.steps if step[0] == "position"})
        self._closed: dict[Any, tuple[frozenset[int], bool]] = {}
        self._moved: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._matches: dict[tuple[int, str], bool] = {}
        self._work = 0

    def search(self, text: str) -> bool:
        """Returns whether the pattern matches the text, as a whole or anywhere in it."""
        tests, whole = self._program.tests, self._whole
        states = frozenset((self._program.start,))
        for at in range(len(text) + 1):
            true = tuple(t for t in self._positions if tests[t].match(text, at))
            self._count(len(self._positions) / 4)
            closed, found = self._closure(states, true)
            if found and (not whole or at == len(text)):
                return True
            if at < len(text):
                states = self._after(closed, text[at])
        return False

    def _closure(
        self, states: frozenset[int], true: tuple[int, ...]
    ) -> tuple[frozenset[int], bool]:
        """The states before a character that are reached without one, and whether it is found."""
        key = (states, true)
        if key not in self._closed:
            steps, waiting = self._program.steps, list(states)
            seen: set[int] = set()
            while waiting:
                state = waiting.pop()
                if state in seen:
                    continue
                seen.add(state)
                kind, test, following = steps[state]
                if kind == "split" or (kind == "position" and test in true):
                    waiting.extend(following)
            self._count(len(seen))
            ends = any(steps[state][0] == "found" for state in seen)
            characters = frozenset(state for state in seen if steps[state][0] == "character")
            self._closed[key] = characters, ends
        return self._closed[key]

    def _after(self, states: frozenset[int], character: str) -> frozenset[int]:
        key = (states, character)
        if key not in self._moved:
            self._count(len(states))
            after = frozenset(
                following
                for state in states
                if self._takes(self._program.steps[state][1], character)
                for following in self._program.steps[state][2]
            )
            self._moved[key] = after if self._whole else after | {self._program.start}
        return self._moved[key]

    def _takes(self, test: int, character: str) -> bool:
        key = (test, character)
        if key not in self._matches:
            self._matches[key] = self._program.tests[test].fullmatch(character) is not None
        return self._matches[key]

    def _count(self, states: float) -> None:
        self._work += states
        if self._work > MOST_WORK:
            raise PatternError("the pattern takes too much work on this sheet")
