"""The interfaces between packages: environments, policies, reward models. No JAX."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from agentrm_jax.core.records import Prompt, Split, Step, Task, Trajectory, Transition


class Environment(Protocol):
    """One episode in progress. It may be mutable; `fork` makes an independent copy of it.

    An environment never raises for what an agent says: an action that is empty, unknown or
    impossible is answered by an observation that says so (`valid=False`) and uses up a step.
    """

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Args:
          task: The task; `task.spec` holds what the episode is made from.

        Returns:
          The first observation, which states the goal.
        """
        ...

    def step(self, action: str) -> Transition:
        """Performs one action.

        Args:
          action: Any text; one that is not understood is answered by a text that says so.

        Returns:
          The answer. After `max_steps` actions it is `done`.
        """
        ...

    def fork(self) -> Environment:
        """Copies the episode.

        Returns:
          An independent environment in the same state, never `self`.
        """
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
    packages and data are loaded by the methods, which raise `UserError` if one is missing.
    A family may also define which actions are equal (`ComparesActions`), and whether the last
    observation of an episode tells its outcome (`DeclaresOutcome`).

    Attributes:
      name: The registered name.
      pooled: Whether a step takes long enough (well above 0.1 ms) to run in a worker process.
      metric: What the mean return is called: `success rate`, `progress rate`, `reward`, ...
    """

    name: str
    pooled: bool
    metric: str

    def missing(self) -> str | None:
        """Returns one line: the package to install, or the data and its folder. None if nothing is
        missing."""
        ...

    def counts(self) -> Mapping[Split, int | None]:
        """Returns the number of tasks that each split can list; None: practically endless.

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
        only if the split has no more.
        """
        ...

    def prompt(self) -> Prompt: ...

    def create(self) -> Environment: ...

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """Returns an expert's actions from reset to success, or None if the expert fails."""
        ...


@runtime_checkable
class ComparesActions(Protocol):
    """An environment family that says which actions are the same one. Optional.

    Without `action_key` two actions are the same if they are equal except for blanks at both ends.
    """

    def action_key(self, action: str) -> str:
        """Returns the environment's own normal form of an action.

        Two actions with equal keys get equal transitions in every state of every task. The method
        is cheap, needs no data and no package, and raises for no text.
        """
        ...


@runtime_checkable
class DeclaresOutcome(Protocol):
    """An environment family that says whether its last observation tells the outcome. Optional.

    Reports show it next to what the probe measures (`evaluation.probe`) and warn if they disagree.

    Attributes:
      end_reveals_outcome: True if the last observation of an episode says whether the task was
        solved, False if it does not, None if it is not known: then only the probe decides.
    """

    end_reveals_outcome: bool | None


class EnvironmentPool(Protocol):
    """Many episodes at once, addressed by handles.

    All methods take lists and work on them in parallel if there are worker processes; results come
    in the order of the requests. An environment that raises, hangs or dies is restarted and its
    episode replayed; if that fails too, the result is an `EnvironmentFailure`, nothing is raised,
    and further requests to the handle fail as well. The same holds for an environment that breaks
    its contract: transitions have plain types and valid texts, the sum of the rewards stays within
    0 and 1, and after `max_steps` they are `done`.
    """

    def reset(self, tasks: Sequence[Task]) -> list[tuple[int, str] | EnvironmentFailure]:
        """Starts an episode for each task; returns a new handle and the first observation."""
        ...

    def branch(
        self, requests: Sequence[tuple[int, str]]
    ) -> list[tuple[int, Transition] | EnvironmentFailure]:
        """Forks the episode of each (handle, action) and acts in the copy; returns its handle."""
        ...

    def step(self, requests: Sequence[tuple[int, str]]) -> list[Transition | EnvironmentFailure]:
        """Acts in the episode of each (handle, action)."""
        ...

    def release(self, handles: Sequence[int]) -> None:
        """Forgets episodes. Unknown handles are ignored."""
        ...

    def action_key(self, task: Task, action: str) -> str:
        """Returns the form in which the task's environment compares actions.

        Actions with equal keys have equal transitions in the same state. Cheap, in this process.
        It never raises: an environment that offers no `action_key`, or whose `action_key` fails,
        compares actions exactly, except for blanks at both ends.
        """
        ...

    def elsewhere(self, task: Task) -> bool:
        """Returns whether the task's environment works in another process than this one."""
        ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentFailure:
    """The failure of an environment, in place of its answer.

    Attributes:
      reason: One line with the environment, the task and the reason.
    """

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A turn that a policy proposes.

    Attributes:
      reply: The whole text.
      action: The parsed action; empty if the reply has none.
      token_ids: Tokens of the reply, the stop token excluded.
      log_probs: Log-probability of each token, and of the stop token if the policy ended the reply.
      stopped: Whether the policy ended the reply; False if it reached the length limit.
      truncated_steps: Number of steps that did not fit into the context: the oldest, which were
        removed, and those that were shortened.
      completion_tokens: Tokens that were decoded. None: one for each of `log_probs`.
      prompt_tokens: Tokens of the state that the policy read. If several turns were sampled after
        one reading, the first of them has it and the others have 0.
      cached_tokens: Those of `prompt_tokens` that came from a prefix cache.
      failure: The reason why the policy gave no turn, in one line. A failed turn has no text, no
        environment acts on it, and searches treat it as a turn whose environment failed.
    """

    reply: str
    action: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: bool = True
    truncated_steps: int = 0
    completion_tokens: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failure: str | None = None

    @classmethod
    def failed(cls, reason: str) -> Proposal:
        """Returns a turn that failed.

        Args:
          reason: Why the policy gave no turn, in one line.
        """
        return cls(reply="", action="", token_ids=(), log_probs=(), failure=reason)

    @property
    def tokens(self) -> int:
        """The number of tokens that were decoded."""
        return len(self.log_probs) if self.completion_tokens is None else self.completion_tokens

    def as_step(self, transition: Transition) -> Step:
        """Returns the turn as a step of a trajectory.

        Args:
          transition: The environment's answer to `action`.
        """
        step = Step(
            reply=self.reply,
            action=self.action,
            transition=transition,
            token_ids=self.token_ids,
            log_probs=self.log_probs,
        )
        if step.token_ids and step.cut_off == self.stopped:
            return dataclasses.replace(step, stopped=self.stopped)
        return step


class Question(NamedTuple):
    """A request for n turns from one state; see `Policy.submit`.

    Attributes:
      state: The trajectory so far.
      purpose: Names the request within its task; part of the random seed.
      n: Number of turns.
      rank: Requests of lower rank are served first, equal ones in the order of `submit`.
    """

    state: Trajectory
    purpose: str
    n: int
    rank: float = 0.0


class Policy(Protocol):
    """An agent's model, as a search uses it.

    It may work while the caller does something else, for example while environments act. A plain
    loop needs nothing but these two calls:

        tickets = policy.submit(questions)
        while open_tickets:
            for ticket, proposals in policy.collect(): ...
    """

    def submit(self, questions: Sequence[Question]) -> list[int]:
        """Queues requests and may start the model on them. It does not wait.

        Randomness is drawn from the run's seed, the task's id and the purpose alone: equal requests
        get equal proposals, whatever else is requested. A purpose is used once for each thing that
        should be independent, for example `expand/12` or `sample/3/0`.

        Args:
          questions: The requests.

        Returns:
          A ticket for each request.
        """
        ...

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        """Waits until at least one request is answered, and starts whatever it waits for.

        Returns:
          Tickets and proposals of answered requests, in any order: at least one while a request is
          open, none if no request is open.
        """
        ...

    def room(self) -> int:
        """Returns the number of turns that fit into the next batch next to all open requests.

        A batch costs the same whether it is full or not.
        """
        ...


class BackgroundPolicy(abc.ABC):
    """A policy whose model works in the background: a base class that is asked for by type.

    `Policy.collect` starts the model if need be. A search starts it earlier, with `start`, if it
    has environments to move meanwhile.
    """

    @abc.abstractmethod
    def start(self) -> None:
        """Starts the model on open requests, unless it works already. It does not wait."""


@runtime_checkable
class LimitedPolicy(Protocol):
    """A policy that says whether it can read a state as a whole. Optional.

    A policy without `fits` is asked any question at full length.
    """

    def fits(self, state: Trajectory) -> bool:
        """Returns whether the policy reads the whole state: no text is left out or shortened."""
        ...


def propose(
    policy: Policy, requests: Sequence[tuple[Trajectory, str]], n: int
) -> list[list[Proposal]]:
    """Asks a policy for turns and waits for all of them.

    Args:
      policy: The policy.
      requests: (state, purpose) of each; see `Policy.submit`.
      n: Turns for each request.

    Returns:
      n turns for each request, in order.
    """
    if not requests:
        return []
    tickets = policy.submit([Question(state, purpose, n) for state, purpose in requests])
    answers: dict[int, list[Proposal]] = {}
    while len(answers) < len(tickets):
        answers.update(policy.collect())
    return [answers[ticket] for ticket in tickets]


class Scorer(Protocol):
    """A reward model, as a search uses it: scores for a group of trajectories of one task.

    One that derives from `SelectingScorer` also selects the next beam of a beam search.
    """

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns a score for each trajectory of each group. A judge ranks within the group.

        Args:
          groups: Each holds trajectories of one task.

        Returns:
          For each group a score for each trajectory. NaN for the whole group means that the reward
          model could not decide.
        """
        ...

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns the number of tokens that scoring a group reads.

        Args:
          group: Trajectories of one task.

        Returns:
          The tokens, a common beginning counted once.
        """
        ...
