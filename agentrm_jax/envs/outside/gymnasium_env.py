"""Gymnasium environments with text observations and actions, as environments of a search."""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.core.text import described
from agentrm_jax.envs.contract import ContractError
from agentrm_jax.envs.outside.returns import Earned, RewardRule, is_success
from agentrm_jax.envs.replay import ReplayDiffersError

NOT_UNDERSTOOD = "This action is not understood."
"""The observation after a text that `GymnasiumEnv.action` refuses."""


class GymnasiumEnv(abc.ABC):
    """Base class of environments that are made of a Gymnasium environment.

    A subclass sets `reward` and defines `make`; it is then given to a pool like any other class:

        class Lake(arm.GymnasiumEnv):
            reward = arm.RewardRule(low=0, high=1)

            def make(self, task):
                return gymnasium.make("Lake-v0", size=task.spec["size"])

        with arm.EnvPool({"lake": Lake}, workers=2) as envs: ...

    An episode is copied with `copy.deepcopy` or, if that fails, by resetting another environment
    and playing its actions again; answers that differ then are an error. An environment whose copy
    shares state with it needs `fork_by = "replay"`.

    Attributes:
      reward: The rule that maps the rewards of an episode to its return.
      fork_by: `copy`, `replay`, or `auto`: `copy` if it works, else `replay`.
    """

    reward: RewardRule
    fork_by: Literal["auto", "copy", "replay"] = "auto"

    @abc.abstractmethod
    def make(self, task: Task) -> Any:
        """Returns a Gymnasium environment.

        Args:
          task: The task of the episode.
        """

    def seed(self, task: Task) -> int | None:
        """Returns the seed of the reset: `task.spec["seed"]`, None without one.

        Args:
          task: The task of the episode.
        """
        return task.spec.get("seed")

    def text(self, observation: Any, info: Mapping[str, Any]) -> str:
        """Returns an observation as the text that the agent reads.

        An observation that is no text is shown by `render`, if the environment was made with
        `render_mode="ansi"`.

        Args:
          observation: What the environment returned.
          info: What it returned as well.

        Raises:
          ContractError: The observation is no text, and there is nothing else to show.
        """
        if isinstance(observation, str):
            return observation
        if getattr(self._made, "render_mode", None) == "ansi":
            return str(self._made.render())
        raise ContractError(
            f"an observation must be a text (got {type(observation).__name__}); define text() or "
            'make the environment with render_mode="ansi"'
        )

    def action(self, text: str) -> Any:
        """Returns the action that a text means; None if it means none.

        For None the environment is not asked: the agent reads `This action is not understood.`

        Args:
          text: The action of the agent, without blanks at both ends.
        """
        return text

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Args:
          task: The task.

        Returns:
          The first observation.

        Raises:
          UserError: The class has no rule for its rewards.
        """
        if not isinstance(getattr(self, "reward", None), RewardRule):
            raise UserError(
                f"{type(self).__name__}.reward is missing; write, for example, "
                "reward = arm.RewardRule(low=0, high=1) in the class"
            )
        self._task, self._steps, self._earned = task, 0, Earned()
        self._played: tuple[tuple[str, Transition], ...] = ()
        self._made = self.make(task)
        observation, info = self._made.reset(seed=self.seed(task))
        self._first = self.text(observation, info)
        return self._first

    def step(self, action: str) -> Transition:
        """Performs one action.

        Args:
          action: Any text.

        Returns:
          The answer; `success` is `info["success"]` or `info["is_success"]` if there is one of
          them, else it follows from the return.
        """
        if self._made is None:
            self._replay()
        said = action.strip()
        answer = self._answer(said)
        self._played = (*self._played, (said, answer))
        return answer

    def fork(self) -> GymnasiumEnv:
        """Returns an independent episode in the same state."""
        other = copy.copy(self)
        other._made = None if self.fork_by == "replay" else self._copied()
        return other

    def _copied(self) -> Any:
        """A copy of the Gymnasium environment, None if it must be replayed."""
        try:
            return copy.deepcopy(self._made)
        except Exception as error:  # an open file, a lock, a handle of a library
            if self.fork_by == "copy":
                raise ContractError(
                    f"cannot be copied ({described(error)}); set fork_by to replay"
                ) from error
            return None

    def _answer(self, said: str) -> Transition:
        meant = self.action(said) if said else None
        self._steps += 1
        over = self._steps >= self._task.max_steps
        before = self._earned
        if meant is None:
            if self.reward.of == "sum":  # the return of nothing is not 0 if `low` is below 0
                self._earned = before.after(0.0, self.reward)
            return Transition(
                observation=NOT_UNDERSTOOD,
                reward=self._earned.paid - before.paid,
                done=over,
                success=False,
                valid=False,
            )
        observation, reward, terminated, truncated, info = self._made.step(meant)
        self._earned = before.after(float(reward), self.reward)
        ended = bool(terminated) or bool(truncated)
        said_success = info.get("success", info.get("is_success"))
        if said_success is None:
            success = ended and is_success(self._earned, self.reward)
        else:
            success = ended and bool(said_success)
        return Transition(
            observation=self.text(observation, info),
            reward=self._earned.paid - before.paid,
            done=ended or over,
            success=success,
            valid=bool(info.get("valid", True)),
        )

    def _replay(self) -> None:
        """Brings another environment to where this episode stands.

        Raises:
          ReplayDiffersError: It answers otherwise than before.
        """
        played, first = self._played, self._first
        if (text := self.reset(self._task)) != first:
            raise ReplayDiffersError(f"the first observation was {first!r}, now {text!r}")
        for number, (said, before) in enumerate(played, start=1):
            if (answer := self._answer(said)) != before:
                raise ReplayDiffersError(
                    f"step {number}, {said!r}, was answered by {before}, now by {answer}"
                )
        self._played = played


class SpecifiedEnv(GymnasiumEnv):
    """An environment that the `spec` of its task describes: see `gymnasium_family`."""

    def make(self, task: Task) -> Any:
        spec, kwargs = task.spec, dict(task.spec["kwargs"])
        if spec["make"]:
            return maker(spec["make"])(**kwargs)
        import gymnasium

        return gymnasium.make(spec["id"], disable_env_checker=True, **kwargs)

    def reset(self, task: Task) -> str:
        self.reward = RewardRule(**task.spec["reward"])
        self.fork_by = task.spec["fork_by"]
        return super().reset(task)

    def action(self, text: str) -> Any:
        actions = self._task.spec["actions"]
        return actions.get(text.lower()) if actions else text


@functools.cache
def maker(path: str) -> Any:
    """Returns the function `MODULE:FUNCTION`.

    Raises:
      UserError: It cannot be imported.
    """
    import importlib

    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot be imported ({described(error)}); write MODULE:FUNCTION of a module that is "
            "installed or on PYTHONPATH",
            field="options.make",
            value=path,
        ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class GymnasiumOptions:
    """The options of a Gymnasium environment in a configuration.

    Attributes:
      reward: The rule that maps the rewards of an episode to its return: `{low: 0, high: 1}`.
      id: Its name for `gymnasium.make`, `MODULE:NAME` if a module registers it.
      make: In place of `id`: a function `MODULE:FUNCTION` that returns the environment.
      kwargs: Arguments of either.
      actions: Actions by the text that the agent writes; empty passes the text itself.
      fork_by: See `GymnasiumEnv`.
      train_seeds: The number of train tasks; their seeds are 0, 1, 2 and so on.
      test_seeds: The number of test tasks; their seeds begin at 1,000,000.
      max_steps: Steps of an episode.
    """

    reward: RewardRule
    id: str = ""
    make: str = ""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    actions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fork_by: Literal["auto", "copy", "replay"] = "auto"
    train_seeds: int = 100_000
    test_seeds: int = 100_000
    max_steps: int = 50

    def __post_init__(self) -> None:
        if bool(self.id) == bool(self.make):
            raise UserError("must be given, or make in its place, and not both of them", field="id")
        if self.fork_by not in ("auto", "copy", "replay"):
            raise UserError(
                field="fork_by", value=self.fork_by, expected="one of auto, copy, replay"
            )
        for name in ("train_seeds", "test_seeds"):
            if not 0 <= getattr(self, name) <= 1_000_000:
                value = getattr(self, name)
                raise UserError(field=name, value=value, expected="from 0 to 1000000")
        if not 1 <= self.max_steps <= 100_000:
            raise UserError(field="max_steps", value=self.max_steps, expected="from 1 to 100000")
