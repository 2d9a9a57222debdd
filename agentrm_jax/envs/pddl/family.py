"""Planning problems in four PDDL worlds as AgentBoard shows them (paper, held-out environments)."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, Transition, is_test_problem
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.data_directory import refuse_damaged, require
from agentrm_jax.envs.pddl import text as pddl_text
from agentrm_jax.envs.pddl.expert import explained
from agentrm_jax.envs.pddl.problems import (
    KINDS,
    PAPER_FORMS,
    domain,
    draw,
    from_spec,
    problem_form,
    to_spec,
)
from agentrm_jax.envs.pddl.strips import Action, Atom, Problem, ground
from agentrm_jax.envs.pddl.strips_parser import parse_problem
from agentrm_jax.envs.pddl.strips_search import find_plan
from agentrm_jax.envs.task_lists import check_kinds, in_turn

_PAPER_COUNTS = {"gripper": 20, "blockworld": 10, "barman": 20, "tyreworld": 10}
_PAPER_SOURCE = (
    "https://github.com/hkust-nlp/AgentBoard (agentboard/environment/pddl_env/pddlgym/pddl)"
)
_MAX_STEPS = 30  # AgentBoard's own setting
_DRAWS_WITHOUT_NEWS = 2000  # then a kind is held to have no more problems


class Pddl:
    """Gripper, blockworld, barman and tyreworld: STRIPS problems read and acted on as text."""

    name = "pddl"
    pooled = False
    metric = "progress rate"
    end_reveals_outcome = True  # "The goal is satisfied."

    def missing(self) -> None:
        """Returns None: only the split `paper` needs files (see `counts`)."""

    def counts(self) -> Mapping[Split, int | None]:
        counts: dict[Split, int | None] = {"train": None, "test": None}
        with contextlib.suppress(UserError):
            counts["paper"] = len(self.tasks("paper", kinds=KINDS, n=sum(_PAPER_COUNTS.values())))
        return counts

    def kinds(self) -> Sequence[str]:
        return KINDS

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn.

        `paper` lists all problems of AgentBoard, also the few that differ only in names and so
        have equal `problem`.

        Raises:
          UserError: For an unknown kind; in `paper`, where a file is missing or broken.
        """
        check_kinds(self.name, KINDS, kinds)
        if split == "paper":
            streams = [_paper_tasks(kind) for kind in kinds]
        else:
            streams = [_generated_tasks(kind, split, seed) for kind in kinds]
        return list(itertools.islice(in_turn(streams), n))

    def prompt(self) -> Prompt:
        return pddl_text.PROMPT

    def action_key(self, action: str) -> str:
        return pddl_text.action_key(action)

    def create(self) -> PddlEpisode:
        return PddlEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """A short plan, not always the shortest; None if none of `max_steps` was found."""
        game = _game(task)
        plan = find_plan(game.problem, game.actions, max_length=task.max_steps)
        return None if plan is None else explained(game.problem, plan)


class _Game:
    """A problem and its ground actions, shared by all its episodes."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.goal = frozenset(problem.goal)
        self.actions = ground(problem)
        self.named: dict[str, dict[tuple[str, ...], Action]] = {
            name: {} for name in problem.domain.schemas
        }
        for action in self.actions:
            self.named[action.name][action.arguments] = action


def _game(task: Task) -> _Game:
    return _cached_game(task.kind, json.dumps(task.spec))


@functools.lru_cache(maxsize=128)  # a barman's actions take half a megabyte
def _cached_game(kind: str, spec: str) -> _Game:
    return _Game(from_spec(kind, json.loads(spec)))


class PddlEpisode:
    """One episode.

    Progress is the share of the goal's atoms that are true, at its best after any action so far.
    The reward is what a step adds to it, so the return is AgentBoard's progress rate.
    """

    _kind: str
    _game: _Game
    _state: frozenset[Atom]
    _progress: float
    _steps_left: int

    def reset(self, task: Task) -> str:
        self._kind, self._game = task.kind, _game(task)
        self._state = self._game.problem.init
        # What is true from the start counts from the first action that changes something.
        self._progress = 0.0
        self._steps_left = task.max_steps
        goal = pddl_text.goal_text(self._game.problem.goal)
        return f"{goal}\n{pddl_text.state_text(self._state)}"

    def step(self, action: str) -> Transition:
        self._steps_left -= 1
        said = action.lower()
        if "check" in said:
            possible = [a for a in self._game.actions if a.precondition <= self._state]
            names = [(a.name, *a.arguments) for a in possible]
            return self._answer(pddl_text.actions_text(self._kind, names))
        if "look around" in said:
            return self._answer(pddl_text.state_text(self._state))
        chosen = self._understood(pddl_text.words_of(action))
        if isinstance(chosen, str):
            return self._answer(chosen, valid=False)
        following = chosen.apply(self._state)
        if following == self._state:
            return self._answer(pddl_text.NOT_POSSIBLE, valid=False)
        return self._moved(following)

    def fork(self) -> PddlEpisode:
        return copy.copy(self)  # nothing that it holds is ever changed

    def _understood(self, words: Sequence[str]) -> Action | str:
        """The possible action that is meant, or the answer that says why there is none.

        Its name is the first word that names an action possible now with whatever objects; its
        objects are the first objects named, before or after it.
        """
        game, state = self._game, self._state
        named = [word for word in words if word in game.problem.objects]
        for word in words:
            choices = game.named.get(word, {})
            count = len(game.problem.domain.schemas[word].parameters) if choices else 0
            meant = choices.get(tuple(named[:count]))
            if meant is not None and meant.precondition <= state:
                return meant
            if any(choice.precondition <= state for choice in choices.values()):
                few = len(named) < count
                return pddl_text.NOT_UNDERSTOOD if few else pddl_text.NOT_POSSIBLE
        return pddl_text.NOT_UNDERSTOOD

    def _moved(self, following: frozenset[Atom]) -> Transition:
        shown = following
        if self._kind in pddl_text.CHANGES_ONLY:
            shown = following - self._state
        self._state = following
        goal = self._game.goal
        progress = max(self._progress, len(goal & following) / len(goal))
        reward, self._progress = progress - self._progress, progress
        success = goal <= following
        text = pddl_text.state_text(shown) + (pddl_text.SATISFIED if success else "")
        return self._answer(text, reward=reward, success=success)

    def _answer(
        self, text: str, *, reward: float = 0.0, success: bool = False, valid: bool = True
    ) -> Transition:
        return Transition(
            observation=text,
            reward=reward,
            done=success or self._steps_left <= 0,
            success=success,
            valid=valid,
        )


def _paper_tasks(kind: str) -> Iterator[Task]:
    """AgentBoard's problems in its order: by file name, `problem10` before `problem2`."""
    folder = require(f"pddl/{kind}", _PAPER_SOURCE)
    files = sorted(folder.glob("*.pddl"))
    if len(files) != _PAPER_COUNTS[kind]:
        raise UserError(
            f"{folder}: holds {len(files)} problem files, not {_PAPER_COUNTS[kind]}; "
            f"get them from {_PAPER_SOURCE}"
        )
    for file in files:
        refuse_damaged(file, f"pddl/{kind}/{file.name}")
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {first_line(error)}") from None
        problem = parse_problem(text, str(file), domain(kind))
        yield _task(kind, file.stem, "paper", problem, problem_form(problem))


def _generated_tasks(kind: str, split: Split, seed: int) -> Iterator[Task]:
    """Tasks of new problems that belong to the split."""
    seen: set[str] = set(PAPER_FORMS)
    without_news = 0
    for number in itertools.count():
        problem = draw(kind, f"pddl/{kind}/{seed}/{number}")
        form = problem_form(problem) if problem is not None else ""
        if problem is None or form in seen or is_test_problem(form) != (split == "test"):
            without_news += 1
            if without_news == _DRAWS_WITHOUT_NEWS:
                return
            continue
        without_news = 0
        seen.add(form)
        yield _task(kind, f"{seed}-{number}", split, problem, form)


def _task(kind: str, name: str, split: Split, problem: Problem, form: str) -> Task:
    return Task(
        environment=Pddl.name,
        task_id=f"{Pddl.name}/{kind}/{name}",
        kind=kind,
        split=split,
        problem=form,
        max_steps=_MAX_STEPS,
        spec=to_spec(problem),
    )
