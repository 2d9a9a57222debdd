"""Environments in other words: renamed and reordered actions, another instruction.

A `Wording` says how each action is said instead. `perturbed(family, wording)` is the family in that
wording: the agent reads and speaks it, the environment inside hears its own actions. So it measures
whether an agent, or a reward model, has learned the task or its words.

In a configuration an environment in a wording is named `NAME@WORDING`, or by `wording: WORDING`. A
family offers its wordings by an attribute `wordings`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import (
    ComparesActions,
    Demonstration,
    Environment,
    EnvironmentFamily,
    Prompt,
)
from agentrm_jax.core.records import Split, Task, Transition

SEPARATOR = "@"
SILENT = "silent"
"""`NAME@silent` is the environment whose end does not tell the outcome, if it has such a form."""
_LONGEST = 2000  # characters of an action with several slots
_SLOT = re.compile(r"\{(\w+)\}")
_REPLY = re.compile(r"(.*?Action:\s*)(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """Other words for the actions and the instruction of an environment.

    Attributes:
      name: What it is called.
      actions: Pairs of an action as the environment understands it and as it is said instead, with
        the same slots: `("take {o} from {r}", "from {r} take {o}")`. The first pair that fits an
        action is taken. What fits none is said as it is.
      texts: Pairs of a text and what stands in its place in all that the agent reads, after the
        actions in it have been put into the wording.
      instruction: In place of the environment's own instruction (put into the wording as well).
    """

    name: str
    actions: tuple[tuple[str, str], ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    instruction: str | None = None

    def __post_init__(self) -> None:
        for old, new in self.actions:
            if sorted(_SLOT.findall(old)) != sorted(_SLOT.findall(new)):
                raise UserError(f"wording {self.name}: {old!r} and {new!r} have different slots")


def said(action: str, wording: Wording) -> str:
    """An action of the environment as it is said in the wording."""
    for old, new in wording.actions:
        if (filled := _filled(old, new, action)) is not None:
            return filled
    return action


def understood(action: str, wording: Wording) -> str:
    """Returns an action of the wording as an action of the environment.

    An action that the wording says differently is not understood in its old form: the result is
    then empty, which no environment takes for an action.
    """
    for old, new in wording.actions:
        if (filled := _filled(new, old, action)) is not None:
            return filled
    return (
        "" if any(_filled(old, new, action) is not None for old, new in wording.actions) else action
    )


def shown(text: str, wording: Wording) -> str:
    """A text of the environment as it is shown in the wording: the actions that it names."""
    for pattern, new in _patterns(wording):
        text = pattern.sub(lambda found, new=new: new.format(**found.groupdict()), text)
    for old, new in wording.texts:
        text = text.replace(old, new)
    return text


def reworded(prompt: Prompt, wording: Wording) -> Prompt:
    """The prompt in the wording, the replies of its example included."""
    instruction = prompt.instruction if wording.instruction is None else wording.instruction
    return Prompt(
        instruction=shown(instruction, wording),
        example=tuple(
            _reply(turn, wording) if number % 2 else shown(turn, wording)
            for number, turn in enumerate(prompt.example)
        ),
    )


def perturbed(family: EnvironmentFamily, wording: Wording) -> EnvironmentFamily:
    """The family in another wording, under the name `NAME@WORDING`."""
    return _Perturbed(family, wording)


def find_wording(family: EnvironmentFamily, name: str) -> Wording:
    """One of the family's wordings.

    Raises:
      UserError: It has none of this name.
    """
    wordings: Mapping[str, Wording] = getattr(family, "wordings", {})
    if name not in wordings:
        known = f"choose from {', '.join(wordings)}" if wordings else "it has none"
        raise UserError(f"environment {family.name!r}: no wording {name!r}; {known}")
    return wordings[name]


class _Perturbed:
    """A family whose tasks, prompt and expert are another's in a wording."""

    def __init__(self, family: EnvironmentFamily, wording: Wording) -> None:
        self._family, self._wording = family, wording
        self.name = f"{family.name}{SEPARATOR}{wording.name}"
        self.pooled, self.metric = family.pooled, family.metric
        self.end_reveals_outcome = getattr(family, "end_reveals_outcome", None)

    def missing(self) -> str | None:
        return self._family.missing()

    def counts(self) -> Mapping[Split, int | None]:
        return self._family.counts()

    def kinds(self) -> Sequence[str]:
        return self._family.kinds()

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        tasks = self._family.tasks(split, kinds=kinds, n=n, seed=seed)
        return [renamed(task, self._family.name, self.name) for task in tasks]

    def prompt(self) -> Prompt:
        return reworded(self._family.prompt(), self._wording)

    def action_key(self, action: str) -> str:
        own = understood(action, self._wording)
        family = self._family
        return family.action_key(own) if isinstance(family, ComparesActions) else own.strip()

    def create(self) -> Environment:
        return _PerturbedEpisode(self._family.create(), self._family.name, self._wording)

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        turns = self._family.demonstrate(renamed(task, self.name, self._family.name))
        if turns is None:
            return None
        return [
            Demonstration(
                thought=shown(turn.thought, self._wording), action=said(turn.action, self._wording)
            )
            for turn in turns
        ]


class _PerturbedEpisode:
    """An episode that is spoken to in the wording."""

    def __init__(self, inner: Environment, name: str, wording: Wording) -> None:
        self._inner, self._name, self._wording = inner, name, wording

    def reset(self, task: Task) -> str:
        own = renamed(task, f"{self._name}{SEPARATOR}{self._wording.name}", self._name)
        return shown(self._inner.reset(own), self._wording)

    def step(self, action: str) -> Transition:
        transition = self._inner.step(understood(action, self._wording))
        return dataclasses.replace(
            transition, observation=shown(transition.observation, self._wording)
        )

    def fork(self) -> _PerturbedEpisode:
        return _PerturbedEpisode(self._inner.fork(), self._name, self._wording)


def renamed(task: Task, old: str, new: str) -> Task:
    """Returns a task of the environment `old` as a task of the environment `new`."""
    return dataclasses.replace(task, environment=new, task_id=new + task.task_id.removeprefix(old))


def _reply(turn: str, wording: Wording) -> str:
    parts = _REPLY.fullmatch(turn)
    if parts is None:
        return shown(turn, wording)
    return shown(parts[1], wording) + said(parts[2], wording)


def _filled(pattern: str, template: str, action: str) -> str | None:
    """The template with what stands in the pattern's slots, if the action fits the pattern."""
    action = " ".join(action.split())
    if len(action) > _LONGEST and len(_SLOT.findall(pattern)) > 1:
        return None  # the time to place several slots grows with a power of the length
    found = _whole(pattern).fullmatch(action)
    return template.format(**found.groupdict()) if found else None


@functools.cache
def _whole(pattern: str) -> re.Pattern[str]:
    """The pattern of whole actions; a slot holds any words, as few as fit."""
    return re.compile(_slotted(pattern, r".+?"), re.IGNORECASE)


@functools.cache
def _patterns(wording: Wording) -> tuple[tuple[re.Pattern[str], str], ...]:
    """The pattern of actions inside texts.

    A slot is `(thing)`, `{thing}`, `<thing>`, a few words that end with a number, or one word and
    its article.
    """
    word = r"[\w'-]+"
    numbered = r"[a-z][\w'-]*(?: [a-z][\w'-]*){0,3}? \d+"
    bracketed = r"\([^()\n]+\)|\{[^{}\n]+\}|<[^<>\n]+>"
    slot = rf"(?:{bracketed}|{numbered}|(?:(?:the|an?) )?{word})"
    return tuple(
        (re.compile(rf"(?<!\w){_slotted(old, slot)}(?!\w)", re.IGNORECASE), new)
        for old, new in wording.actions
    )


def _slotted(pattern: str, slot: str) -> str:
    parts = _SLOT.split(pattern)  # literal, name, literal, name, ..., literal
    return "".join(
        f"(?P<{part}>{slot})" if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    )
