"""A policy from a plain function: a server's client, a script, a model of another library."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Policy, Proposal, Question
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.seeds import derived_seed
from agentrm_jax.core.text import admit_text, printable

PolicyFunction = Callable[[Trajectory, int, int], Sequence[str]]
"""`function(state, n, seed) -> n texts`."""


@runtime_checkable
class SeededPolicy(Protocol):
    """A policy that takes the seed of a run from the search that uses it."""

    def with_seed(self, seed: int) -> Policy:
        """Returns the policy with the seed of a run, without open requests."""
        ...


class FunctionPolicy:
    """The policy of a plain function that returns texts.

    The seed of a call follows from the run's seed, the task and the purpose of the turn alone: the
    same question has the same seed in every run, whatever else is asked.

    Args:
      function: `function(state, n, seed)` returns n replies to a state (`Trajectory`), each a text
        in the form "Thought: ... Action: ...", or a `Proposal` with token ids and
        log-probabilities. `seed` is an integer from 0 to 2**31 - 1.
      seed: Seed of the run. None: that of the search (`best_of_n(..., seed=0)`).
      concurrency: Calls that run at the same time, in threads: use more than 1 for servers. With 1
        the function is called in the caller's thread, one call after another.

    Raises:
      UserError: The function is not callable or `concurrency` is below 1. From `collect`: the
        function returns another number of replies, or something that is no text.
    """

    def __init__(
        self, function: PolicyFunction, *, seed: int | None = None, concurrency: int = 1
    ) -> None:
        if not callable(function):
            raise UserError(
                "policy must be a function (state, n, seed) -> list of texts, or have the methods "
                f"submit, collect and room (got {type(function).__name__})"
            )
        if concurrency < 1:
            raise UserError(f"concurrency must be at least 1 (got {concurrency})")
        self.function, self.seed, self.concurrency = function, seed, concurrency
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._open: dict[int, Question] = {}
        self._running: dict[concurrent.futures.Future[Any], int] = {}
        self._last_ticket = 0

    def with_seed(self, seed: int) -> FunctionPolicy:
        """Returns a policy of the same function with the seed of a run.

        Args:
          seed: Ignored if the policy has a seed of its own.

        Returns:
          A new policy without open requests.
        """
        own = seed if self.seed is None else self.seed
        return FunctionPolicy(self.function, seed=own, concurrency=self.concurrency)

    def submit(self, questions: Sequence[Question]) -> list[int]:
        """Queues requests; with several threads their calls start at once.

        Args:
          questions: States and how many replies each gets.

        Returns:
          A ticket for each request.
        """
        tickets = list(range(self._last_ticket + 1, self._last_ticket + 1 + len(questions)))
        self._last_ticket += len(questions)
        self._open.update(zip(tickets, questions, strict=True))
        if self.concurrency > 1:
            if self._threads is None:
                self._threads = concurrent.futures.ThreadPoolExecutor(self.concurrency)
            for ticket in sorted(tickets, key=lambda ticket: self._open[ticket].rank):
                self._running[self._threads.submit(self._answer, self._open[ticket])] = ticket
        return tickets

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        """Calls the function, or waits for a running call.

        Returns:
          (ticket, replies) of at least one request if any is open.
        """
        if self.concurrency > 1:
            try:
                return self._collect_running()
            except BaseException:
                self._cancel()
                raise
        tickets = sorted(self._open, key=lambda ticket: self._open[ticket].rank)
        return [(ticket, self._answer(self._open.pop(ticket))) for ticket in tickets]

    def _collect_running(self) -> list[tuple[int, list[Proposal]]]:
        done, _ = concurrent.futures.wait(
            self._running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        answers = []
        for future in sorted(done, key=self._running.__getitem__):
            ticket = self._running.pop(future)
            del self._open[ticket]
            answers.append((ticket, future.result()))
        return answers

    def _cancel(self) -> None:
        """Forgets all open requests, so that no more calls are made after one has failed."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = None
        self._running.clear()
        self._open.clear()

    def room(self) -> int:
        """Returns how many more requests run at once.

        Returns:
          The number of idle threads; 0 without threads.
        """
        return max(0, self.concurrency - len(self._open)) if self.concurrency > 1 else 0

    def _answer(self, question: Question) -> list[Proposal]:
        state, purpose, n = question.state, question.purpose, question.n
        task_id = state.task.task_id
        try:
            replies = self.function(state, n, call_seed(self.seed or 0, task_id, purpose))
        except Exception as error:
            error.add_note(f"raised by the policy function for task {printable(task_id)}")
            raise
        where = f"policy: {_name(self.function)} must return"
        if isinstance(replies, str) or not isinstance(replies, Sequence):
            raise UserError(
                f"{where} a list of {n} texts for task {printable(task_id)} "
                f"(got {type(replies).__name__})"
            )
        if len(replies) != n:
            raise UserError(f"{where} {n} texts for task {printable(task_id)} (got {len(replies)})")
        return [_proposal(reply, where, task_id) for reply in replies]


def as_policy(policy: Policy | PolicyFunction, seed: int) -> Policy:
    """Returns a policy from a policy or a plain function.

    Args:
      policy: An object with the methods of `Policy`, or a function `(state, n, seed) -> texts`.
      seed: Seed of the run, for a function or a `SeededPolicy`.

    Raises:
      UserError: It is neither.
    """
    if isinstance(policy, SeededPolicy):
        return policy.with_seed(seed)
    if all(hasattr(policy, method) for method in ("submit", "collect", "room")):
        return policy  # pyright: ignore[reportReturnType]
    return FunctionPolicy(policy, seed=seed)  # pyright: ignore[reportArgumentType]


def call_seed(seed: int, task_id: str, purpose: str) -> int:
    """Returns the seed of one call, from 0 to 2**31 - 1: equal names give equal seeds."""
    return derived_seed(seed, task_id, purpose)


def _proposal(reply: object, where: str, task_id: str) -> Proposal:
    if isinstance(reply, Proposal):
        return reply
    if not isinstance(reply, str):
        raise UserError(
            f"{where} texts for task {printable(task_id)} (got {type(reply).__name__} among them)"
        )
    text = admit_text(reply)
    return Proposal(reply=text, action=parse_action(text), token_ids=(), log_probs=())


def _name(function: object) -> str:
    return printable(getattr(function, "__name__", type(function).__name__))[:60]
