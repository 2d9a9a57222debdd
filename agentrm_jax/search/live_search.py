"""Methods that move all live states of their tasks one step at a time: what they share.

Beam search, DVTS, look-ahead, SMC and adaptive expansion sample turns for the live states of all
running tasks in one request, act in copies of their environments, and score all successors in one
call. A method decides for which states it samples and which successors are the next live states.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence

from agentrm_jax.core.proposals import AdmittedPolicy, scores_of
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Scorer,
    propose,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search.environments import act_on_turns
from agentrm_jax.search.live_states import UNSCORED, Request, State, TaskSearch, Turn
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.turns import ATTEMPTS, StepSearch, TurnKey, turn_key

Moved = list[tuple[TaskSearch, list[State]]]
"""Searches that took a step, each with its new states."""


class LiveStateSearch(StepSearch[Rollout]):
    """A method that moves all states of its tasks one step at a time.

    A method defines `advance`. States that have no environment any more are released by it; what it
    leaves is released at the end, also after an error.

    Args:
      policy: Proposes turns.
      scorer: Scores states.
      pool: The environments.
      tasks: The tasks.
    """

    def __init__(
        self, policy: Policy, scorer: Scorer, pool: EnvironmentPool, tasks: Sequence[Task]
    ) -> None:
        self.policy, self.scorer, self.pool = AdmittedPolicy(policy), scorer, pool
        self.running: list[TaskSearch] = []
        self._waiting = list(reversed(tasks))

    @abc.abstractmethod
    def advance(self) -> None:
        """Takes one step of each search in `running`: sets its live states and possible answers."""

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self.running)

    def begin(self, count: int) -> Iterator[Rollout]:
        tasks = [self._waiting.pop() for _ in range(count)]
        for task, answer in zip(tasks, self.pool.reset(tasks) if tasks else [], strict=True):
            failed = isinstance(answer, EnvironmentFailure)
            trajectory = Trajectory(task=task, first_observation="" if failed else answer[1])
            root = State(index=0, parent=-1, trajectory=trajectory)
            search = TaskSearch(task, time.monotonic(), [root], [root])
            if failed:
                root.status, search.error, search.finished = "failed", answer.reason, [root]
                yield search.rollout(self.scorer)
            else:
                root.handle = answer[0]
                self.running.append(search)

    def step(self) -> Iterator[Rollout]:
        self.advance()
        ended = [search for search in self.running if not search.live]
        self.running = [search for search in self.running if search.live]
        yield from (search.rollout(self.scorer) for search in ended)

    def close(self) -> None:
        for search in self.running:
            self.release(search.states)

    def release(self, states: Iterable[State]) -> None:
        """Releases the environments of states, if they have any."""
        having = [state for state in states if state.handle is not None]
        self.pool.release([state.environment for state in having])
        for state in having:
            state.handle = None

    def sample(self, requests: Sequence[Request], n: int) -> list[list[Turn]]:
        """Samples n turns for each request and counts their costs.

        Args:
          requests: The requests of all searches.
          n: Turns for each.

        Returns:
          The turns of each request, in order.
        """
        asked = [(state.trajectory, purpose) for _, state, purpose in requests]
        turns = []
        for (search, state, _), proposals in zip(
            requests, propose(self.policy, asked, n), strict=True
        ):
            search.policy_tokens += sum(proposal.tokens for proposal in proposals)
            search.truncated_steps += sum(proposal.truncated_steps for proposal in proposals)
            turns.append([Turn(parent=state, proposal=proposal) for proposal in proposals])
        return turns

    def sample_merged(self, requests: Sequence[Sequence[Request]], n: int) -> list[list[Turn]]:
        """Samples n turns for each request and merges equal actions of a state.

        Args:
          requests: The requests of each search in `running`.
          n: Turns for each.

        Returns:
          The distinct turns of each search, in the order in which they were sampled first.
        """
        turns = iter(self.sample([request for own in requests for request in own], n))
        return [
            self.merged(search, [turn for _ in own for turn in next(turns)])
            for search, own in zip(self.running, requests, strict=True)
        ]

    def merged(self, search: TaskSearch, turns: Iterable[Turn]) -> list[Turn]:
        """Merges turns of one state with equal actions; the first one stands for all."""
        distinct: dict[tuple[int, TurnKey], Turn] = {}
        for turn in turns:
            own = turn_key(search.task, turn.proposal, self.pool.action_key)
            key = (turn.parent.index, own)
            if key in distinct:
                count = distinct[key].count + turn.count
                distinct[key] = dataclasses.replace(distinct[key], count=count)
            else:
                distinct[key] = turn
        return list(distinct.values())

    def attempt_turns(
        self, turns: Sequence[tuple[TaskSearch, Turn]], fork: bool
    ) -> list[State | EnvironmentFailure]:
        """Acts on turns; adds a state for each, also for those that fail.

        Args:
          turns: The turns, each with its search.
          fork: Whether to act in a copy of the parent's environment. If not, the environment
            becomes that of the new state.

        Returns:
          For each turn its new state, or the failure of the environment.
        """
        acts = [(turn.parent.environment, turn.proposal, fork) for _, turn in turns]
        outcomes: list[State | EnvironmentFailure] = []
        for (search, turn), answer in zip(turns, act_on_turns(self.pool, acts), strict=True):
            parent = turn.parent
            if isinstance(answer, EnvironmentFailure):
                search.failed_candidates += 1
                search.add(parent, turn.proposal, parent.trajectory).status = "failed"
                outcomes.append(answer)
                continue
            handle, transition = answer
            search.env_steps += 1
            trajectory = parent.trajectory.extended(turn.proposal.as_step(transition))
            state = search.add(parent, turn.proposal, trajectory)
            state.handle, state.score, state.visits = handle, turn.score, turn.count
            if not fork:
                parent.handle = None
            if transition.done:
                self.release([state])
            outcomes.append(state)
        return outcomes

    def act(self, turns: Sequence[Sequence[Turn]]) -> Moved:
        """Acts on the turns of each search and removes its live states.

        A turn whose environment fails costs itself. If all turns of a search fail and it has no
        possible answer, its live states stay and are asked again, `ATTEMPTS` times in all; then
        the task ends as an error.

        Args:
          turns: The turns of each search in `running`.

        Returns:
          The searches that took a step, each with its new states.
        """
        flat = [
            (search, turn) for search, own in zip(self.running, turns, strict=True) for turn in own
        ]
        outcomes = iter(self.attempt_turns(flat, fork=True))
        moved: Moved = []
        for search, own in zip(self.running, turns, strict=True):
            states, failure = [], None
            for _ in own:
                outcome = next(outcomes)
                if isinstance(outcome, EnvironmentFailure):
                    failure = outcome.reason
                else:
                    states.append(outcome)
            if self._leave(search, bool(states), failure):
                moved.append((search, states))
        return moved

    def _leave(self, search: TaskSearch, has_successors: bool, failure: str | None) -> bool:
        """Removes the live states and returns whether the search took a step."""
        left = bool(search.finished) or has_successors
        if not left and search.attempt + 1 < ATTEMPTS and failure is not None:
            search.attempt += 1
            return False
        self.release(search.live)
        search.depth, search.attempt = search.depth + 1, 0
        if not left:
            search.finished = search.live[:1]
            search.error = failure or "no candidate could be scored"
        search.live = []
        return left

    def score(self, moved: Moved) -> None:
        """Scores the new states of all searches in one call.

        A state on which the reward model does not decide stays `UNSCORED`: it comes last.
        """
        moved = [(search, states) for search, states in moved if states]
        if not moved:
            return
        groups = [[state.trajectory for state in states] for _, states in moved]
        for (search, states), scores in zip(moved, scores_of(self.scorer, groups), strict=True):
            search.scored += [state.trajectory for state in states]
            for state, score in zip(states, scores, strict=True):
                state.score = UNSCORED if math.isnan(score) else score
