"""Checks of the answers of policies and reward models as they enter a search."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import BackgroundPolicy, Policy, Proposal, Question, Scorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import admit_text, first_line, printable


class AdmittedPolicy:
    """A policy whose answers are checked (`core.protocols.Policy`).

    Every policy may be a plug-in. Its proposals become valid text of bounded length and plain
    Python numbers; an answer of the wrong form is one error that names the task.

    Raises:
      UserError: From `submit`, `collect` and `room`, if the policy breaks the protocol.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._open: dict[int, Question] = {}

    def submit(self, questions: Sequence[Question]) -> list[int]:
        tickets = self._policy.submit(questions)
        if not isinstance(tickets, Sequence) or len(tickets) != len(questions):
            raise UserError(
                f"policy: submit must return {len(questions)} tickets (got {_short(tickets)})"
            )
        for ticket, question in zip(tickets, questions, strict=True):
            if not isinstance(ticket, int | np.integer) or ticket in self._open:
                raise UserError(
                    f"policy: tickets must be distinct whole numbers (got {_short(ticket)})"
                )
            self._open[int(ticket)] = question
        return [int(ticket) for ticket in tickets]

    def start(self) -> None:
        """Starts the model if the policy is a `BackgroundPolicy`."""
        if isinstance(self._policy, BackgroundPolicy):
            self._policy.start()

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        answers = self._policy.collect()
        try:
            pairs = [(ticket, proposals) for ticket, proposals in answers]
        except (TypeError, ValueError):
            raise UserError(
                "policy: collect must return pairs of a ticket and its proposals "
                f"(got {_short(answers)})"
            ) from None
        if not pairs and self._open:
            raise UserError(
                f"policy: collect must return at least one answer while {len(self._open)} requests "
                "are open (got none); wait for the model in collect"
            )
        return [(int(ticket), self._admitted(ticket, proposals)) for ticket, proposals in pairs]

    def room(self) -> int:
        room = self._policy.room()
        if not _all_are([room], int | np.integer):
            raise UserError(f"policy: room must return a whole number (got {_short(room)})")
        return int(room)

    def _admitted(self, ticket: Any, proposals: Any) -> list[Proposal]:
        if not isinstance(ticket, int | np.integer) or ticket not in self._open:
            raise UserError(f"policy: collect returned an unknown ticket ({_short(ticket)})")
        question = self._open.pop(int(ticket))
        task_id = question.state.task.task_id
        if not isinstance(proposals, Sequence) or len(proposals) != question.n:
            count = len(proposals) if isinstance(proposals, Sequence) else _short(proposals)
            raise UserError(
                f"policy: must propose {question.n} turns for task {printable(task_id)} "
                f"(got {count})"
            )
        return [admitted(proposal, task_id) for proposal in proposals]


_COUNTS = ("truncated_steps", "completion_tokens", "prompt_tokens", "cached_tokens")


def admitted(proposal: Any, task_id: str) -> Proposal:
    """Returns a proposal with valid texts of bounded length and plain numbers.

    Raises:
      UserError: A field has another type or is out of range; names the field and the task.
    """
    if not isinstance(proposal, Proposal):
        raise _mistake("proposals", "be Proposal", proposal, task_id)
    for name, kind in (("reply", str), ("action", str), ("stopped", bool | np.bool_)):
        if not isinstance(value := getattr(proposal, name), kind):
            raise _mistake(name, f"be {'text' if kind is str else 'true or false'}", value, task_id)
    for name, kind in (
        ("token_ids", int | np.integer),
        ("log_probs", int | float | np.integer | np.floating),
    ):
        if not _all_are(value := getattr(proposal, name), kind):
            raise _mistake(name, "hold numbers", value, task_id)
    for token in proposal.token_ids:
        if not 0 <= token < 2**31:
            raise _mistake("token_ids", "be at least 0 and below 2^31", token, task_id)
    for value in proposal.log_probs:
        if not _is_finite(value):
            raise _mistake("log_probs", "be finite", value, task_id)
    counts = {name: getattr(proposal, name) for name in _COUNTS}
    if counts["completion_tokens"] is None:
        del counts["completion_tokens"]
    for name, count in counts.items():
        if not _all_are([count], int | np.integer) or count < 0:
            raise _mistake(name, "be at least 0", count, task_id)
    if not isinstance(proposal.failure, str | None):
        raise _mistake("failure", "be text or None", proposal.failure, task_id)
    return dataclasses.replace(
        proposal,
        reply=admit_text(proposal.reply),
        action=admit_text(proposal.action),
        token_ids=tuple(map(int, proposal.token_ids)),
        log_probs=tuple(map(float, proposal.log_probs)),
        stopped=bool(proposal.stopped),
        failure=None if proposal.failure is None else printable(admit_text(proposal.failure, 1000)),
        **{name: int(count) for name, count in counts.items()},
    )


def scores_of(scorer: Scorer, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
    """Returns the scores of a reward model, one for each trajectory of each group.

    A score that is not finite becomes NaN: the reward model did not decide.

    Raises:
      UserError: The reward model returns another number of scores, or something else.
    """
    scores = scorer.score(groups)
    wanted = [len(group) for group in groups]
    try:
        found = [[float(score) for score in own] for own in scores]
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"reward model: score must return a list of numbers for each group (got "
            f"{_short(scores)})"
        ) from None
    if [len(own) for own in found] != wanted:
        raise UserError(
            f"reward model: score must return {wanted[:5]} scores for these groups (got "
            f"{[len(own) for own in found][:5]})"
        )
    return [[score if math.isfinite(score) else math.nan for score in own] for own in found]


def _all_are(values: Any, kind: Any) -> bool:
    return (
        isinstance(values, Iterable)
        and not isinstance(values, str | bytes | dict)
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
    )


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        return False


def _mistake(name: str, must: str, value: Any, task_id: str) -> UserError:
    return UserError(
        f"policy: {name} of a turn for task {printable(task_id)} must {must} (got {_short(value)})"
    )


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = first_line(error)
    text = printable(admit_text(text, 1000))
    return text if len(text) <= 60 else text[:57] + "..."
