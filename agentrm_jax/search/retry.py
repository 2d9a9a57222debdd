"""Retries with reflection (Reflexion, arXiv 2303.11366), triggered by a low score.

The policy attempts the task. If the reward model's score of the attempt is low, the policy writes
what went wrong, and attempts the task again with its notes in front of the task. Reflexion itself
retries if the environment reports a failure, which nobody can read at test time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.proposals import scores_of
from agentrm_jax.core.protocols import (
    EnvironmentPool,
    LimitedPolicy,
    Policy,
    Proposal,
    Question,
    Scorer,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.attempts import attempt_text, shortened_attempt
from agentrm_jax.search.methods import UNDECIDED
from agentrm_jax.search.rollouts import Episode, Rollout, begin_episodes, play_turns
from agentrm_jax.search.search_nodes import SearchNode
from agentrm_jax.search.thresholds import check_thresholds
from agentrm_jax.search.turns import TurnSearch, run_turns

_QUESTION = """\
Below are a task and your attempt at it, which probably failed. Do not continue the attempt.

Task:
{task}

Attempt:
{attempt}

What went wrong in this attempt, and what will you do differently next time? Answer in two or \
three sentences."""

_REMINDER = """\
You have attempted this task before. Your notes on these attempts:
{notes}

{task}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """Retries with reflection, as in Reflexion, triggered by a low score.

    The first attempt is the first trajectory of best-of-n. The reward model scores attempts without
    the notes, as it was trained. An attempt whose environment failed is neither scored nor
    reflected on; it is the answer only if all attempts failed.

    Attributes:
      num_attempts: Most attempts at a task.
      memory: Number of notes, the newest, that the policy reads before an attempt.
      uses_score: Whether the score of an attempt decides if another one follows, and which one is
        the answer. With false, all attempts are made and the last one is the answer.
      retry_below: The score below which another attempt follows; default: what `agentrm calibrate`
        chose.
      concurrency: Tasks that run at the same time. It decides speed, never results.
    """

    scores_states: ClassVar[bool] = True
    thresholds: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "retry_below": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    }

    num_attempts: int = 3
    memory: int = 3
    uses_score: bool = True
    retry_below: float | None = None
    concurrency: int = 64

    def __post_init__(self) -> None:
        check_fields(self, num_attempts="[1, 100]", memory="[1, 100]", concurrency="[1, 100000]")
        if not self.uses_score:  # there is nothing to choose
            object.__setattr__(self, "thresholds", {})
            if self.retry_below is not None:
                raise UserError("must be left out because uses_score is false", field="retry_below")

    @property
    def uses_reward_model(self) -> bool:
        return self.uses_score

    def run(
        self,
        policy: Policy,
        scorer: Scorer,
        envs: EnvironmentPool,
        tasks: Sequence[Task],
        seed: int,
    ) -> Iterator[Rollout]:
        """Yields the answer to each task; see `Method.run`.

        Raises:
          UserError: `retry_below` has no value.
        """
        check_thresholds(self)
        fits = policy.fits if isinstance(policy, LimitedPolicy) else lambda state: True
        return run_turns(policy, _Retries(scorer, envs, tasks, self, fits), self.concurrency)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    """A finished attempt, the note that was written just before it, and its score."""

    rollout: Rollout
    note: str
    score: float | None


@dataclasses.dataclass(slots=True, eq=False)
class _Retrying:
    """A task at work.

    Attributes:
      notes: What the policy wrote, empty texts left out.
      episode: The attempt that is being made; None while the policy writes a note.
      note: The note that was written just before this attempt.
      policy_tokens: Tokens of notes.
      truncated_steps: Truncated steps of the questions for notes.
    """

    task: Task
    began: float
    notes: list[str] = dataclasses.field(default_factory=list)
    attempts: list[_Attempt] = dataclasses.field(default_factory=list)
    episode: Episode | None = None
    note: str = ""
    policy_tokens: int = 0
    truncated_steps: int = 0

    def reminded(self, trajectory: Trajectory, memory: int) -> Trajectory:
        """Returns a state as the policy reads it: with the newest notes before the task."""
        if not self.notes:
            return trajectory
        notes = "\n".join(f"- {note}" for note in self.notes[-memory:])
        text = _REMINDER.format(notes=notes, task=trajectory.first_observation)
        return dataclasses.replace(trajectory, first_observation=text)

    def reflection(self, memory: int, fits: Callable[[Trajectory], bool]) -> Trajectory:
        """Returns the question for a note on the last attempt."""
        attempt = self.attempts[-1].rollout.trajectory
        task_text = self.reminded(attempt, memory).first_observation

        def asked(text: str) -> Trajectory:
            question = _QUESTION.format(task=task_text, attempt=text)
            return Trajectory(task=self.task, first_observation=question)

        text = shortened_attempt(attempt, lambda text: fits(asked(text)))
        return asked(attempt_text(attempt, len(attempt.steps)) if text is None else text)

    def reflect(self, proposal: Proposal) -> None:
        """Keeps the policy's note on the last attempt."""
        self.policy_tokens += proposal.tokens
        self.truncated_steps += proposal.truncated_steps
        self.note = " ".join(proposal.reply.split())
        if self.note:
            self.notes.append(self.note)

    def chosen(self, uses_score: bool) -> int:
        """Returns the number of the attempt that is the answer."""
        whole = [i for i, a in enumerate(self.attempts) if a.rollout.error is None]
        if not whole or not uses_score:
            return (whole or range(len(self.attempts)))[-1]
        return max(whole, key=lambda i: _or_least(self.attempts[i].score))

    def answer(self, uses_score: bool, scorer: Scorer) -> Rollout:
        """Returns the answer with the costs of all attempts."""
        number = self.chosen(uses_score)
        chosen, all_rollouts = self.attempts[number], [a.rollout for a in self.attempts]
        scored = [a.rollout.trajectory for a in self.attempts if a.score is not None]
        undecided = chosen.score is not None and math.isnan(chosen.score)
        return Rollout(
            trajectory=chosen.rollout.trajectory,
            policy_tokens=self.policy_tokens + sum(r.policy_tokens for r in all_rollouts),
            truncated_steps=self.truncated_steps + sum(r.truncated_steps for r in all_rollouts),
            env_steps=sum(r.env_steps for r in all_rollouts),
            wall_seconds=time.monotonic() - self.began,
            failed_candidates=sum(r.failed_candidates for r in all_rollouts),
            reward_tokens=scorer.cost(scored) if scored else 0,
            error=UNDECIDED if undecided else chosen.rollout.error,
            search=_nodes(self.attempts, number),
        )


class _Retries(TurnSearch[_Retrying, Rollout]):
    """Retries as the turn loop drives them. The attempts of different tasks run together."""

    def __init__(
        self,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        config: Retry,
        fits: Callable[[Trajectory], bool],
    ) -> None:
        self._scorer, self._pool, self._config, self._fits = scorer, pool, config, fits
        self._waiting = list(reversed(tasks))
        self._ready: list[_Retrying] = []
        self._running: set[_Retrying] = set()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def begin(self, count: int) -> Iterator[Rollout]:
        now = time.monotonic()
        entering = [_Retrying(self._waiting.pop(), now) for _ in range(count)]
        self._running.update(entering)
        yield from self._start(entering)

    def questions(self) -> list[tuple[_Retrying, Question]]:
        ready, self._ready = self._ready, []
        return [(player, self._question(player)) for player in ready]

    def _question(self, player: _Retrying) -> Question:
        memory, episode = self._config.memory, player.episode
        if episode is not None:
            return Question(player.reminded(episode.trajectory, memory), episode.purpose, 1)
        purpose = f"reflect/{len(player.attempts) - 1}"
        return Question(player.reflection(memory, self._fits), purpose, 1)

    def overlaps(self, player: _Retrying) -> bool:
        return self._pool.elsewhere(player.task)

    def play(self, answers: Sequence[tuple[_Retrying, list[Proposal]]]) -> Iterator[Rollout]:
        acting: list[_Retrying] = []
        turns: list[tuple[Episode, Proposal]] = []
        reflected: list[_Retrying] = []
        for player, [proposal] in answers:
            if player.episode is None:
                player.reflect(proposal)
                reflected.append(player)
            else:
                acting.append(player)
                turns.append((player.episode, proposal))
        ended: list[tuple[_Retrying, Rollout]] = []
        for player, rollout in zip(acting, play_turns(self._pool, turns), strict=True):
            if rollout is None:
                self._ready.append(player)
            else:
                player.episode = None
                ended.append((player, rollout))
        yield from self._start(reflected)
        yield from self._judge(ended)

    def _start(self, players: Sequence[_Retrying]) -> Iterator[Rollout]:
        """Begins an attempt of each player."""
        failed: list[tuple[_Retrying, Rollout]] = []
        begun = begin_episodes(self._pool, [(p.task, len(p.attempts)) for p in players])
        for player, episode in zip(players, begun, strict=True):
            if isinstance(episode, Rollout):
                failed.append((player, episode))
            else:
                player.episode = episode
                self._ready.append(player)
        yield from self._judge(failed)

    def _judge(self, ended: Sequence[tuple[_Retrying, Rollout]]) -> Iterator[Rollout]:
        """Scores attempts that have ended; yields the answers of tasks that are done with them."""
        if not ended:
            return
        config, whole = self._config, [rollout for _, rollout in ended if rollout.error is None]
        groups = [[rollout.trajectory] for rollout in whole] if config.uses_score else []
        scores = iter(scores_of(self._scorer, groups) if groups else ())
        again: list[_Retrying] = []
        done: list[_Retrying] = []
        for player, rollout in ended:
            score = next(scores)[0] if groups and rollout.error is None else None
            player.attempts.append(_Attempt(rollout=rollout, note=player.note, score=score))
            player.note = ""
            if len(player.attempts) == config.num_attempts or self._is_enough(score):
                done.append(player)
            elif rollout.error is None:
                self._ready.append(player)  # to write a note
            else:
                again.append(player)
        for player in done:
            self._running.remove(player)
            yield player.answer(config.uses_score, self._scorer)
        yield from self._start(again)

    def _is_enough(self, score: float | None) -> bool:
        """Returns whether no attempt follows one with this score; None: it was not scored."""
        if score is None:
            return False
        assert self._config.retry_below is not None  # `run` has checked it
        return score >= self._config.retry_below

    def close(self) -> None:
        self._pool.release([p.episode.handle for p in self._running if p.episode is not None])


def _or_least(score: float | None) -> float:
    """The score as a number that compares; one that is undecided comes last."""
    return -math.inf if score is None or math.isnan(score) else score


def _nodes(attempts: Sequence[_Attempt], chosen: int) -> tuple[SearchNode, ...]:
    """Returns a chain of nodes for each attempt below the root.

    A chain begins with the note that was written before the attempt, as a reply without action.
    """
    first = max((a.rollout.trajectory.first_observation for a in attempts), key=len)
    nodes = [SearchNode(parent=-1, observation=first, visits=len(attempts), chosen=True)]
    for number, attempt in enumerate(attempts):
        parent, own = 0, number == chosen
        chain = [SearchNode(parent=0, reply=attempt.note)] if attempt.note else []
        chain += _steps(attempt)
        for node in chain:
            nodes.append(dataclasses.replace(node, parent=parent, chosen=own))
            parent = len(nodes) - 1
    return tuple(nodes)


def _steps(attempt: _Attempt) -> list[SearchNode]:
    """Returns a node for each step of an attempt, and one for the failure that ended it."""
    nodes, outcome, steps = [], 0.0, attempt.rollout.trajectory.steps
    for step in steps:
        outcome += step.transition.reward
        nodes.append(
            SearchNode(
                parent=0,
                reply=step.reply,
                action=step.action,
                observation=step.transition.observation,
                outcome=outcome,
                done=step.transition.done,
                success=step.transition.success,
            )
        )
    if attempt.rollout.error is not None:
        failure = attempt.rollout.error
        return [*nodes, SearchNode(parent=0, observation=failure, outcome=outcome, status="failed")]
    score = attempt.score
    finite = None if score is None or math.isnan(score) else score
    return [*nodes[:-1], dataclasses.replace(nodes[-1], score=finite, status="finished")]
