"""The states that a search of one task has reached, its live states, answers and costs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Literal

from agentrm_jax.core.protocols import Proposal, Scorer
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode

UNSCORED = -math.inf
"""The score of a state that was not scored or on which the reward model did not decide."""


@dataclasses.dataclass(slots=True, eq=False)
class State:
    """A state that a search reached, or a turn whose environment failed.

    Attributes:
      index: Its number among the states of its task; the root is 0.
      parent: Number of the state before the last step; -1 for the root.
      trajectory: The steps so far; of a failed turn, the steps before it.
      turn: The last turn; None for the root.
      handle: Its environment; None if the episode ended or the environment was released.
      score: The reward model's score; `UNSCORED` without one.
      visits: As in `SearchNode`.
      status: As in `SearchNode`.
    """

    index: int
    parent: int
    trajectory: Trajectory
    turn: Proposal | None = None
    handle: int | None = None
    score: float = UNSCORED
    visits: int = 1
    status: Literal["kept", "removed", "finished", "failed"] = "kept"

    @property
    def environment(self) -> int:
        """The handle of a state that has one."""
        assert self.handle is not None
        return self.handle

    def node(self, chosen: bool) -> SearchNode:
        """Returns the record of the state for reports.

        Args:
          chosen: Whether it is on the path to the answer.
        """
        trajectory, failed = self.trajectory, self.status == "failed"
        observation = trajectory.first_observation
        if self.turn is not None:
            observation = "" if failed else trajectory.steps[-1].transition.observation
        return SearchNode(
            parent=self.parent,
            reply=self.turn.reply if self.turn else "",
            action=self.turn.action if self.turn else "",
            observation=observation,
            outcome=trajectory.outcome,
            done=trajectory.done,
            success=trajectory.success,
            score=None if self.score == UNSCORED else self.score,
            visits=self.visits,
            status=self.status,
            chosen=chosen,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A turn to act on.

    Attributes:
      parent: The state for which it was sampled.
      proposal: The turn, the first of those with equal actions.
      count: How many samples have its action.
      score: Its score, if it is scored before it acts.
    """

    parent: State
    proposal: Proposal
    count: int = 1
    score: float = UNSCORED


@dataclasses.dataclass(slots=True, eq=False)
class TaskSearch:
    """The search of one task.

    Attributes:
      task: The task.
      began: When it began, as `time.monotonic` counts.
      states: All states, the root first.
      live: The states that are asked in the next step.
      finished: The possible answers.
      depth: Number of steps taken.
      attempt: Number of times that all turns of this step have failed.
      scored: Trajectories that the reward model has read.
      scored_replies: Tokens of replies that the reward model has read while they were decoded.
    """

    task: Task
    began: float
    states: list[State]
    live: list[State]
    finished: list[State] = dataclasses.field(default_factory=list)
    depth: int = 0
    attempt: int = 0
    scored: list[Trajectory] = dataclasses.field(default_factory=list)
    scored_replies: int = 0
    policy_tokens: int = 0
    truncated_steps: int = 0
    env_steps: int = 0
    failed_candidates: int = 0
    error: str | None = None

    def requests(self, name: str, states: Iterable[State]) -> list[Request]:
        """Returns a request for each state, with a purpose of its own.

        Args:
          name: First part of the purposes.
          states: Live states; a state that is there twice is asked twice.
        """
        again = f"/again/{self.attempt}" if self.attempt else ""
        return [(self, state, f"{name}/{self.depth}/{p}{again}") for p, state in enumerate(states)]

    def add(self, parent: State, turn: Proposal, trajectory: Trajectory) -> State:
        """Adds a state and returns it."""
        state = State(index=len(self.states), parent=parent.index, trajectory=trajectory, turn=turn)
        self.states.append(state)
        return state

    def settle(self, successors: Iterable[State], kept: Iterable[State]) -> list[State]:
        """Makes the kept successors live states or possible answers.

        Args:
          successors: All new states.
          kept: Those with which the search continues.

        Returns:
          The others, whose environments are no longer needed.
        """
        kept = list(kept)
        for state in kept:
            state.status = "finished" if state.trajectory.done else "kept"
            (self.finished if state.trajectory.done else self.live).append(state)
        removed = [state for state in successors if state not in kept]
        for state in removed:
            state.status = "removed"
        return removed

    def rollout(self, scorer: Scorer) -> Rollout:
        """Returns the possible answer with the best score, the first of equals."""
        answer = max(self.finished, key=lambda state: state.score)
        path, index = set(), answer.index
        while index >= 0:
            path.add(index)
            index = self.states[index].parent
        return Rollout(
            trajectory=answer.trajectory,
            policy_tokens=self.policy_tokens,
            truncated_steps=self.truncated_steps,
            env_steps=self.env_steps,
            failed_candidates=self.failed_candidates,
            reward_tokens=scorer.cost(self.scored) + self.scored_replies,
            wall_seconds=time.monotonic() - self.began,
            error=self.error,
            search=tuple(state.node(state.index in path) for state in self.states),
        )


Request = tuple[TaskSearch, State, str]
"""A request for turns: the search, one of its states, and the purpose (`Policy.submit`)."""


def best_first(states: Iterable[State]) -> list[State]:
    """Returns states by their score, the best first, equal ones in their order."""
    return sorted(states, key=lambda state: -state.score)
