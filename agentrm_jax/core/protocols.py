"""What the floors ask of each other. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from agentrm_jax.core.records import Prompt, Split, Task, Trajectory, Transition


class Environment(Protocol):
    """One episode in progress. It may be mutable; `fork` makes an independent copy of it.

    An environment never raises for what an agent says: an action that is empty, unknown or
    impossible is answered by an observation that says so (`valid=False`) and uses up a step.
    """

    def reset(self, task: Task) -> str:
        """Starts the episode and returns the first observation (it states the goal)."""
        ...

    def step(self, action: str) -> Transition:
        """Performs one action. After `max_steps` the transition is `done`."""
        ...

    def fork(self) -> Environment:
        """An independent environment in the same state."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """One expert action with a short templated thought."""

    thought: str
    action: str

    @property
    def reply(self) -> str:
        return f"Thought: {self.thought}\nAction: {self.action}"


@runtime_checkable
class EnvironmentFamily(Protocol):
    """An environment as it is registered (entry point group `agentrm_jax.environments`).

    The entry point names a class that is created without arguments. Creating it must be cheap:
    packages and data are loaded by the methods, which raise `UserError` where one is missing.
    A family may also say which actions are the same: see `ComparesActions`.

    Attributes:
      name: The registered name.
      pooled: Whether a step is dear enough (well above 0.1 ms) to be run in a process pool.
      metric: What the mean return is called: `success rate`, `progress rate`, `reward`, ...
    """

    name: str
    pooled: bool
    metric: str

    def missing(self) -> str | None:
        """One line on what is to be installed, or put where, before this can be played; None
        where nothing is missing."""
        ...

    def counts(self) -> Mapping[Split, int | None]:
        """How many tasks each split has that can be listed; None: practically endless.

        Raises:
          UserError: Something is missing.
        """
        ...

    def kinds(self) -> Sequence[str]:
        """The levels or domains, in a fixed order."""
        ...

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Up to `n` tasks with distinct `problem`, spread evenly over `kinds`, the same each time.

        A longer list begins with the shorter one's tasks of each kind. Fewer than `n` come back
        only where the split has no more.
        """
        ...

    def prompt(self) -> Prompt: ...

    def create(self) -> Environment: ...

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """An expert's actions from reset to success, or None where the expert fails."""
        ...


@runtime_checkable
class ComparesActions(Protocol):
    """An environment family that says which actions are the same one. Optional.

    Without `action_key` two actions are the same if they are equal but for blanks at both ends.
    """

    def action_key(self, action: str) -> str:
        """Returns the environment's own normal form of an action.

        Two actions with equal keys get equal transitions in every state of every task. The method
        is cheap, needs no data and no package, and raises for no text.
        """
        ...


class EnvironmentPool(Protocol):
    """Many episodes at once, addressed by handles. One call for whatever forking means.

    All methods take lists and work on them in parallel where there are worker processes; results
    come in the order of the requests. An environment that raises, hangs or dies is restarted and
    its episode replayed; where that fails too the result is an `EnvironmentFailure`, and the
    handle is dead (further requests to it fail as well). Nothing is raised for it. The same holds
    for an environment that breaks its contract: transitions have plain types and valid texts, the
    sum of the rewards stays within 0 and 1, and after `max_steps` they are `done` in any case.
    """

    def reset(self, tasks: Sequence[Task]) -> list[tuple[int, str] | EnvironmentFailure]:
        """Starts an episode for each task: a new handle and the first observation."""
        ...

    def branch(
        self, requests: Sequence[tuple[int, str]]
    ) -> list[tuple[int, Transition] | EnvironmentFailure]:
        """For each (handle, action): forks the episode, acts in the copy; a new handle."""
        ...

    def step(self, requests: Sequence[tuple[int, str]]) -> list[Transition | EnvironmentFailure]:
        """For each (handle, action): acts in place."""
        ...

    def release(self, handles: Sequence[int]) -> None:
        """Forgets episodes. Unknown handles are ignored."""
        ...

    def action_key(self, task: Task, action: str) -> str:
        """Returns the form in which the task's environment compares actions.

        Actions with equal keys have equal transitions in the same state. Cheap, in this process.
        It never raises: an environment that offers no `action_key`, or whose `action_key` fails,
        compares actions exactly but for blanks at both ends.
        """
        ...

    def elsewhere(self, task: Task) -> bool:
        """Whether the task's environment works in another process: then this one has something
        to do meanwhile."""
        ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentFailure:
    """An environment that could not be brought to answer; `reason` is one line."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A turn that a policy proposes.

    Attributes:
      reply: The whole text.
      action: The parsed action; empty where the reply has none.
      token_ids: Tokens of the reply, the stop token excluded.
      log_probs: Of each token, and of the stop token where the policy ended the reply itself.
      stopped: Whether it did, rather than the length limit.
      dropped_steps: How many steps did not fit into the context: the oldest, which were left out,
        and those that were shortened.
    """

    reply: str
    action: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: bool = True
    dropped_steps: int = 0


class Question(NamedTuple):
    """What a policy is asked: n turns for a state; see `Policy.submit`. Those of lower rank are
    worked on first, equal ones in the order in which they came."""

    state: Trajectory
    purpose: str
    n: int
    rank: float = 0.0


class Policy(Protocol):
    """An agent's model seen from the search.

    It works while the caller does something else, for example moves environments.
    """

    def submit(self, questions: Sequence[Question]) -> list[int]:
        """Queues questions and sets the model to work.

        Randomness is drawn from the run's seed, the task's id and the purpose alone: the same
        question gets the same proposals, whatever is asked beside it. A purpose is used once for
        each thing that should be independent, for example `expand/12` or `sample/3/0`.

        Returns:
          A ticket for each question, at once.
        """
        ...

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        """Waits for the model; tickets and proposals of questions that are done, perhaps none."""
        ...

    def room(self) -> int:
        """For how many more turns its next batch has room, beside all that it was asked and is not
        done. A batch costs the same whether it is full or not."""
        ...


def propose(
    policy: Policy, requests: Sequence[tuple[Trajectory, str]], n: int
) -> list[list[Proposal]]:
    """Asks for n turns for each (state, purpose) and waits for all of them."""
    tickets = policy.submit([Question(state, purpose, n) for state, purpose in requests])
    found: dict[int, list[Proposal]] = {}
    while len(found) < len(tickets):
        found.update(policy.collect())
        policy.submit([])
    return [found[ticket] for ticket in tickets]


class Scorer(Protocol):
    """A reward model seen from the search: scores for a group of trajectories of one task.

    One that is also a `Selector` chooses a beam search's states itself.
    """

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """A score for each trajectory of each group. A judge ranks within the group.

        Not a number where the reward model could not decide: then for the whole group.
        """
        ...

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Tokens that scoring the group takes, where common beginnings are read once."""
        ...


@runtime_checkable
class Selector(Protocol):
    """A reward model that scores states and keeps the best in one go."""

    def select(
        self,
        tasks: Sequence[tuple[Sequence[Trajectory], Sequence[float]]],
        expansion_width: int,
        beam_width: int,
    ) -> list[list[tuple[int, float]]]:
        """Of each task's new states and the scores of its finished beams, the best `beam_width`.

        Returns:
          For each task (number, score), best first; the finished beams are numbered first, the
          states from `beam_width` on.
        """
        ...
