"""Whether an environment keeps its contract: each promise tried on a few tasks.

The promises stand in `core.protocols.Environment` and `EnvironmentFamily`. What is tried is
drawn from the task's name, so a check finds the same each time.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import ComparesActions, Demonstration, EnvironmentFamily
from agentrm_jax.core.records import Split, Task, Transition, canonical_form
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs import contract
from agentrm_jax.envs.contract import ContractError, Episode, reason_of

_LISTED = 30  # tasks of each list that is compared
_SEEDS = (0, 1, 2)
_COMPARED: tuple[Split, ...] = ("train", "test")
_JUNK: tuple[str, ...] = (
    "", " ", "\x00", "\ufffd", "\U0001f600" * 20, "\u202e", "x" * 5000, "two\nlines", "[" * 300,
    "%s{}\\", "\x1b[2J", "help", "0", "-1", "f with Action Input: {", "search[a]]", "....",
)  # fmt: skip
_BLANKS = (" ", "  ", "\t", "\u00a0")

Parse = Callable[[str], str]
"""The action of a reply; empty if it has none."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One promise.

    Attributes:
      name: What was tried, a few words.
      broken: How it is broken, one line; empty if it is kept.
      skipped: Why it could not be tried; empty if it was.
    """

    name: str
    broken: str = ""
    skipped: str = ""


class _SkippedError(Exception):
    """A promise cannot be tried."""


def findings(
    family: EnvironmentFamily, parse: Parse, n: int = 3, split: Split = "train"
) -> Iterator[Finding]:
    """Tries every promise of an environment that is complete; yields one finding for each.

    Args:
      family: The environment.
      parse: Reads the action of a reply, as an agent's policy does.
      n: Tasks that are played.
      split: Where they are from, or from `test` if it has none.
    """
    trial = _Trial(family, parse, n, split)
    for name, promise in (
        ("lists of tasks are sound, and the same each time", trial.lists),
        ("a problem has one name, and train and test share none", trial.problems),
        ("the prompt's replies and the expert's hold their actions", trial.prompts),
        ("the same actions get the same answers", trial.replays),
        ("a fork and its parent do not touch each other", trial.forks),
        ("actions with equal keys get equal answers", trial.keys),
        ("no action raises, and texts and rewards are sound", trial.junk),
        ("an episode ends after max_steps", trial.limit),
    ):
        try:
            promise()
        except _SkippedError as error:
            yield Finding(name=name, skipped=str(error))
        except (ContractError, UserError) as error:
            yield Finding(name=name, broken=first_line(error, limit=500))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a stranger's environment raises
            yield Finding(name=name, broken=reason_of(error))
        else:
            yield Finding(name=name)


class _Trial:
    """The promises, each a method that raises a `ContractError` if it is broken."""

    def __init__(self, family: EnvironmentFamily, parse: Parse, n: int, split: Split) -> None:
        self._family, self._parse, self._n = family, parse, n
        self._split: Split = split

    def lists(self) -> None:
        for split in _COMPARED:
            tasks = self._listed(split)
            if tasks != self._listed(split):
                raise ContractError(f"{split}: another list the second time")
            if len({task.problem for task in tasks}) < len(tasks):
                raise ContractError(f"{split}: two tasks pose the same problem")
            if wrong := [task.task_id for task in tasks if task.split != split]:
                raise ContractError(f"{split}: task {wrong[0]!r} is of another split")
            unknown = {task.kind for task in tasks} - set(contract.kinds_of(self._family))
            if unknown:
                raise ContractError(f"{split}: kind {min(unknown)!r} is not in kinds()")
            longer = {task.task_id for task in self._listed(split, 2 * _LISTED)}
            if not longer.issuperset(task.task_id for task in tasks):
                raise ContractError(f"{split}: a longer list does not hold the shorter one's tasks")

    def problems(self) -> None:
        named: dict[str, Task] = {}
        splits: dict[str, Task] = {}
        for split in _COMPARED:
            for seed in _SEEDS:
                for task in self._listed(split, seed=seed):
                    form = canonical_form([task.kind, dict(task.spec)])
                    if (other := named.setdefault(form, task)).problem != task.problem:
                        raise ContractError(
                            f"tasks {other.task_id!r} and {task.task_id!r} have one spec and two "
                            "problems"
                        )
                    if (other := splits.setdefault(task.problem, task)).split != task.split:
                        raise ContractError(
                            f"tasks {other.task_id!r} of {other.split} and {task.task_id!r} of "
                            f"{task.split} pose the same problem"
                        )

    def prompts(self) -> None:
        prompt = contract.admit_prompt(self._family.prompt())
        for number, turn in enumerate(prompt.example):
            if number % 2 and not self._parse(turn):
                raise ContractError(f"prompt: turn {number} of the example holds no action")
        for task, plan in self._plans():
            for turn in plan:
                if self._parse(turn.reply) != turn.action.strip():
                    raise ContractError(
                        f"{task.task_id}: the expert's action {printable(turn.action)[:60]!r} is "
                        f"read as {printable(self._parse(turn.reply))[:60]!r}"
                    )

    def replays(self) -> None:
        for task, plan in self._plans():
            actions = _woven(task, plan)
            first, second = self._played(task, actions), self._played(task, actions)
            _compare(task, first, second, "played again")
            one, other = self._begun(task), self._begun(task)
            pairs = [
                (self._answer(one, [action]), self._answer(other, [action])) for action in actions
            ]
            for answers in zip(*pairs, strict=True):
                together = [answer for some in answers for answer in some]
                _compare(task, first[1:], together, "two episodes are played at the same time")

    def forks(self) -> None:
        """Every line of actions gets the answers that it gets alone, whatever others do."""
        for task, plan in self._plans():
            draw = random.Random(f"forks/{task.task_id}")
            actions = _woven(task, plan)
            alone = self._played(task, actions)
            at = draw.randrange(max(1, len(alone) - 1))
            parent = self._begun(task)
            for action in actions[:at]:
                parent.step(action)
            before = parent.fork()
            self._answer(parent.fork(), [*reversed(actions[at:]), "x"])  # a third one, elsewhere
            after = self._answer(parent, actions[at:])
            _compare(task, alone[1 + at :], after, "after its fork had acted")
            late = self._answer(before, actions[at:])
            _compare(task, alone[1 + at :], late, "in a fork whose parent had acted")

    def keys(self) -> None:
        family = self._family
        if not isinstance(family, ComparesActions):
            raise _SkippedError("it has no action_key: actions are compared exactly")
        for task, plan in self._plans():
            draw = random.Random(f"keys/{task.task_id}")
            episode = self._begun(task)
            for action in _woven(task, plan)[:4]:
                answers: dict[str, tuple[str, Transition]] = {}
                for form in [action, *(_varied(action, draw) for _ in range(6))]:
                    key = family.action_key(form)
                    if not isinstance(key, str) or key != family.action_key(form):
                        raise ContractError(f"action_key must return one str (got {key!r})")
                    if episode.done:
                        break
                    answer = episode.fork().step(form)
                    other, expected = answers.setdefault(key, (form, answer))
                    if answer != expected:
                        raise ContractError(
                            f"{task.task_id}: {other!r} and {form!r} have one key but two answers"
                        )
                if episode.done or episode.step(action).done:
                    break

    def junk(self) -> None:
        for task, plan in self._plans():
            draw = random.Random(f"junk/{task.task_id}")
            actions = [turn.action for turn in plan] or ["go"]
            for action in _JUNK:
                self._begun(task).step(action)
            episode = self._begun(task)
            while not episode.done:
                whole = draw.choice(actions)
                part, more = whole[: draw.randrange(len(whole) + 1)], draw.choice(_JUNK)
                episode.step(draw.choice([whole, part, whole + more, _varied(whole, draw)]))

    def limit(self) -> None:
        for whole in self._tasks():
            task = dataclasses.replace(whole, max_steps=min(whole.max_steps, 5))
            environment = self._family.create()
            contract.reset(environment, task)
            answers = (environment.step("") for _ in range(task.max_steps))
            if not any(answer.done for answer in answers):
                raise ContractError(
                    f"{task.task_id}: not done after {task.max_steps} steps; the pool ends it "
                    "nevertheless"
                )

    def _listed(self, split: Split, n: int = _LISTED, seed: int = 0) -> list[Task]:
        return contract.listed_tasks(self._family, split, n=n, seed=seed)

    def _tasks(self) -> list[Task]:
        tasks = self._listed(self._split, self._n) or self._listed("test", self._n)
        if not tasks:
            raise _SkippedError("it lists no tasks")
        return tasks

    def _plans(self) -> Iterator[tuple[Task, Sequence[Demonstration]]]:
        for task in self._tasks():
            yield task, self._family.demonstrate(task) or []

    def _begun(self, task: Task) -> Episode:
        return contract.reset(self._family.create(), task)[0]

    def _played(self, task: Task, actions: Sequence[str]) -> list[str | Transition]:
        episode, text = contract.reset(self._family.create(), task)
        return [text, *self._answer(episode, actions)]

    def _answer(self, episode: Episode, actions: Sequence[str]) -> list[str | Transition]:
        answers: list[str | Transition] = []
        for action in actions:
            if episode.done:
                break
            answers.append(episode.step(action))
        return answers


def _woven(task: Task, plan: Sequence[Demonstration]) -> list[str]:
    """The expert's actions, and some that nobody would say in between."""
    draw = random.Random(f"woven/{task.task_id}")
    actions = []
    for turn in plan[: task.max_steps]:
        if draw.random() < 0.2:
            actions.append(draw.choice(_JUNK))
        actions.append(turn.action)
    return (actions or draw.sample(_JUNK, 6))[: task.max_steps]


def _varied(action: str, draw: random.Random) -> str:
    match draw.randrange(5):
        case 0:
            return action.upper()
        case 1:
            return action.capitalize()
        case 2:
            return draw.choice(_BLANKS) + action + draw.choice(_BLANKS)
        case 3:
            return "".join(draw.choice(_BLANKS) if c == " " else c for c in action)
    return "".join(draw.choice((c.upper(), c.lower())) for c in action)


def _compare(
    task: Task,
    expected: Sequence[str | Transition],
    answers: Sequence[str | Transition],
    when: str,
) -> None:
    for number, (one, other) in enumerate(zip(expected, answers, strict=False)):
        if one != other:
            said = f"answer {number} of {len(expected)}"
            raise ContractError(f"{task.task_id}: {said} differs when {when}: {_brief(other)}")
    if len(expected) != len(answers):
        raise ContractError(f"{task.task_id}: the episode ends elsewhere when {when}")


def _brief(answer: str | Transition) -> str:
    text = answer if isinstance(answer, str) else answer.observation
    return repr(text[:60])
