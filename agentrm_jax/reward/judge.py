"""A language model as a judge: it reads several attempts at a task and names the best (paper
section 3.3). Nothing is trained."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

from agentrm_jax.clients.config import server_url
from agentrm_jax.clients.connection import ServedModelConfig
from agentrm_jax.core.addresses import is_url
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import AdmittedPolicy
from agentrm_jax.core.protocols import Policy, propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.attempts import shortened_attempt

_QUESTION = """\
Several attempts were made at one task. Decide which attempt got furthest in doing what the task \
asks for. An attempt that reached the goal beats one that did not; of equals, take the one that \
wasted fewer steps.

Task:
{task}

{attempts}

Which of the {n} attempts is the best? Give your reasons in a few words, then end with a line of \
the form
Best: NUMBER"""
_ANSWER = re.compile(r"(?:^|\n)\s*Best:\s*([0-9]{1,9})\s*\.?\s*\Z")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The judge.

    Attributes:
      policy: A Hugging Face directory, a `model/` directory of a run, or the address of a server
        (`http://HOST:PORT`); without one the policy that acts also judges.
      server: How the server is asked, if `policy` is an address.
      form: `choice`: the judge writes which of several attempts is the best, and the score is the
        rounds of a tournament that an attempt survives. `log_probs`: the judge is asked about two
        attempts, and the score is its expected answer by the probabilities of the answers' tokens
        (`reward.log_prob_judge`).
      max_tokens: Most tokens of an answer; for `choice`.
      most: Attempts in one question; more are asked about in rounds, as in a tournament; for
        `choice`.
      num_pivots: Attempts with which every attempt is compared; for `log_probs`.
      grades: Number of answers from "attempt 1 is better" to "attempt 2 is better", for
        `log_probs`. 2 are the answers A and B, 20 are A to T.
    """

    policy: str | None = None
    server: ServedModelConfig = dataclasses.field(default_factory=ServedModelConfig)
    form: Literal["choice", "log_probs"] = "choice"
    max_tokens: int = 128
    most: int = 8
    num_pivots: int = 4
    grades: int = 2

    def __post_init__(self) -> None:
        check_fields(
            self,
            max_tokens="[1, inf)",
            most="[2, 100000]",
            num_pivots="[1, 100000]",
            grades="[2, 26]",
        )
        check_choice("form", self.form, ("choice", "log_probs"))
        if self.policy is not None and is_url(self.policy):
            server_url(self.policy, "policy")
            if self.form != "choice":
                raise UserError("must be choice because policy is a server", field="form")


class JudgeScorer:
    """Ranks the trajectories of a group: the score is how many rounds of a tournament it survived.

    Attempts that do not fit into one question, or are more than `most`, are asked about in parts,
    whose winners meet in the next round. An attempt too long for half of a question loses its
    oldest steps, which the question says. Where an answer names no attempt the group is undecided:
    all its scores are NaN.

    Args:
      policy: Answers questions; a question is the first observation of a conversation without
        steps.
      count: Tokens of a text.
      limit: Most tokens of a question.
      most: Most attempts in it.
    """

    def __init__(
        self, policy: Policy, count: Callable[[str], int], *, limit: int, most: int
    ) -> None:
        self._policy, self._count = AdmittedPolicy(policy), count
        self._limit, self._most = limit, most
        self._costs: dict[str, int] = {}  # of the groups scored last, by task
        self.tokens_read = 0

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        scores = [[0.0] * len(group) for group in groups]
        contenders = [list(range(len(group))) for group in groups]
        texts = [self._texts(group) for group in groups]
        rounds = 0
        while open_groups := [g for g, left in enumerate(contenders) if len(left) > 1]:
            questions = [
                (g, part) for g in open_groups for part in self._parts(texts[g], contenders[g])
            ]
            answers = iter(
                self._ask(
                    [
                        (groups[g][0], self._question(groups[g][0], [texts[g][i] for i in part]))
                        for g, part in questions
                        if len(part) > 1
                    ],
                    rounds,
                )
            )
            winners: dict[int, list[int]] = {g: [] for g in open_groups}
            for g, part in questions:
                choice = 1 if len(part) == 1 else parse_choice(next(answers), len(part))
                if choice is None:
                    scores[g] = [math.nan] * len(groups[g])
                else:
                    winners[g].append(part[choice - 1])
            rounds += 1
            for g, left in winners.items():
                undecided = math.isnan(scores[g][0])
                contenders[g] = [] if undecided else left
                for i in contenders[g]:
                    scores[g][i] = float(rounds)
        return scores

    def cost(self, group: Sequence[Trajectory]) -> int:
        return self._costs.get(group[0].task.task_id, 0) if group else 0

    def _ask(self, questions: Sequence[tuple[Trajectory, str]], number: int) -> list[str]:
        """The replies to questions about the attempts at a task, each given by one of them."""
        requests = []
        for i, (attempt, text) in enumerate(questions):
            task = attempt.task
            tokens = self._count(text)
            self.tokens_read += tokens
            self._costs[task.task_id] = tokens + (self._costs.get(task.task_id, 0) if number else 0)
            requests.append((Trajectory(task=task, first_observation=text), f"judge/{number}/{i}"))
        return [proposal.reply for [proposal] in propose(self._policy, requests, 1)]

    def _texts(self, group: Sequence[Trajectory]) -> list[str]:
        """Each attempt in words, of which two fit into a question."""
        if not group:
            return []
        frame = self._count(self._question(group[0], ["", ""]))
        return pair_texts(group, self._count, limit=self._limit, frame=frame)

    def _parts(self, texts: Sequence[str], contenders: Sequence[int]) -> list[list[int]]:
        """Contenders in order, as many in a part as a question holds; two always fit."""
        parts: list[list[int]] = [[]]
        taken = 0
        room = self._limit - self._count(_QUESTION) - self._most * self._count(_heading(99))
        for i in contenders:
            size = self._count(texts[i])
            if len(parts[-1]) >= 2 and (len(parts[-1]) == self._most or taken + size > room):
                parts.append([])
                taken = 0
            parts[-1].append(i)
            taken += size
        return parts

    def _question(self, attempt: Trajectory, texts: Sequence[str]) -> str:
        attempts = "\n\n".join(_heading(i) + text for i, text in enumerate(texts, start=1))
        return _QUESTION.format(task=attempt.first_observation, attempts=attempts, n=len(texts))


def _heading(number: int) -> str:
    return f"Attempt {number}:\n"


def pair_texts(
    group: Sequence[Trajectory], count: Callable[[str], int], *, limit: int, frame: int
) -> list[str]:
    """Returns each attempt at a task in words, so short that any two fit into one question.

    Args:
      group: The attempts, at least one.
      count: Returns the tokens of a text.
      limit: Most tokens of a question.
      frame: Tokens of a question without attempts.

    Raises:
      UserError: Not even a note that all steps are left out fits.
    """
    room, task_id = (limit - frame) // 2, group[0].task.task_id
    if room < 1:
        raise UserError(
            f"must be larger: the task {task_id} alone fills a question of the judge, {limit} "
            "tokens",
            field="engine.context",
        )
    texts = []
    for attempt in group:
        text = shortened_attempt(attempt, lambda text: count(text) <= room)
        if text is None:
            raise UserError(
                f"must be larger: no step of an attempt at {task_id} fits into half of a question "
                f"of the judge, {limit} tokens",
                field="engine.context",
            )
        texts.append(text)
    return texts


def parse_choice(answer: str, n: int) -> int | None:
    """The attempt that an answer names in its last line, `Best: NUMBER`; None if it does not, or
    names one that is not among 1 to n."""
    found = _ANSWER.search(answer)
    if found is None or not 1 <= int(found[1]) <= n:
        return None
    return int(found[1])
