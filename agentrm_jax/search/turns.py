"""The turn loop: the one loop in which a policy proposes turns and environments act on them.

Exploration, rollouts and test-time searches are driven by it. Two forms of it exist:

- `run_turns` never waits for all: while the model decodes for some players, the environments of
  others act. Exploration and rollouts.
- `run_steps` waits for all turns of a step, because they are compared. Beam search and the other
  methods of `search.live_search`.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from agentrm_jax.core.proposals import AdmittedPolicy
from agentrm_jax.core.protocols import Policy, Proposal, Question
from agentrm_jax.core.records import Task

ATTEMPTS = 3
"""Number of times that turns are sampled if the environments of all of them fail."""

TurnKey = tuple[bool, str]
"""Whether a turn failed, and its action in the form in which the environment compares actions."""

Player = TypeVar("Player")
Result = TypeVar("Result")


class Search(abc.ABC, Generic[Result]):
    """A search over many tasks of which some run at the same time.

    Attributes:
      num_waiting: Number of tasks that have not begun.
      num_running: Number of tasks that have begun and are not finished.
    """

    num_waiting: int
    num_running: int

    @abc.abstractmethod
    def begin(self, count: int) -> Iterable[Result]:
        """Resets environments for the next `count` tasks; yields those that end at once."""

    @abc.abstractmethod
    def close(self) -> None:
        """Releases the environments of tasks that are still running: an error ended the search."""


class TurnSearch(Search[Result], Generic[Player, Result]):
    """A search whose players (a trajectory, a tree) ask for turns independently of each other."""

    @abc.abstractmethod
    def questions(self) -> list[tuple[Player, Question]]:
        """Returns the requests that became ready since the last call, each with its player."""

    @abc.abstractmethod
    def play(self, answers: Sequence[tuple[Player, list[Proposal]]]) -> Iterable[Result]:
        """Lets environments act on proposed turns; yields what ends by it."""

    @abc.abstractmethod
    def overlaps(self, player: Player) -> bool:
        """Returns whether the player's environment works in another process.

        Only then can it act while the model decodes.
        """


class StepSearch(Search[Result]):
    """A search that takes one step for all of its running tasks at once."""

    @abc.abstractmethod
    def step(self) -> Iterable[Result]:
        """Takes a step for every running task; yields what ends by it."""


def run_turns(
    policy: Policy, search: TurnSearch[Player, Result], concurrency: int
) -> Iterator[Result]:
    """Runs a search to its end and yields its results as they come.

    Players enter in two cohorts: the model decodes for one while the environments of the other act.

    Args:
      policy: Proposes turns; its answers are checked.
      search: The search.
      concurrency: Number of tasks that run at the same time, at most.
    """
    policy = AdmittedPolicy(policy)
    cohort = -(-concurrency // 2)
    asked: dict[int, Player] = {}
    answered: list[tuple[Player, list[Proposal]]] = []

    def submit(questions: Sequence[tuple[Player, Question]]) -> None:
        if questions:
            tickets = policy.submit([question for _, question in questions])
            asked.update(zip(tickets, (player for player, _ in questions), strict=True))

    with contextlib.closing(search):
        while search.num_waiting or search.num_running:
            # As many environments act first as it takes to fill the model's next batch.
            questions = search.questions()
            while answered and (room := policy.room() - _num_turns(questions)) > 0:
                acting, answered = answered[:room], answered[room:]
                yield from search.play(acting)
                questions += search.questions()
            submit(questions)
            policy.start()
            # The other environments act, and new ones are reset, while the model decodes.
            yield from search.play(answered)
            free = min(concurrency - search.num_running, search.num_waiting)
            yield from search.begin(min(free, cohort))
            answered = []
            if not asked:  # the model has no work yet: it starts before the next cohort is reset
                continue
            submit(search.questions())
            answers = [(asked.pop(ticket), proposals) for ticket, proposals in policy.collect()]
            answered = [answer for answer in answers if search.overlaps(answer[0])]
            yield from search.play([answer for answer in answers if not search.overlaps(answer[0])])


def run_steps(search: StepSearch[Result], concurrency: int) -> Iterator[Result]:
    """Runs a search to its end, one step of all running tasks after the other.

    Args:
      search: The search.
      concurrency: Number of tasks that run at the same time, at most.
    """
    with contextlib.closing(search):
        while search.num_waiting or search.num_running:
            yield from search.begin(min(concurrency - search.num_running, search.num_waiting))
            if search.num_running:
                yield from search.step()


def turn_key(task: Task, turn: Proposal, key_of: Callable[[Task, str], str]) -> TurnKey:
    """Returns the key by which equal turns are merged; a failed turn equals failed turns alone.

    Args:
      task: The task.
      turn: The turn.
      key_of: `EnvironmentPool.action_key`.
    """
    return turn.failure is not None, key_of(task, turn.action)


def _num_turns(questions: Sequence[tuple[Player, Question]]) -> int:
    return sum(question.n for _, question in questions)
