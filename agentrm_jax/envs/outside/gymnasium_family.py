"""Gymnasium environments by name: `gymnasium`, or `gymnasium@LABEL` with a label of the user's."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Environment, Prompt
from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.envs.outside.gymnasium_env import GymnasiumOptions, SpecifiedEnv
from agentrm_jax.envs.outside.options import read_options
from agentrm_jax.envs.task_lists import check_kinds

NAME = "gymnasium"
_KIND = "default"
_FIRST_TEST_SEED = 1_000_000


class Gymnasium:
    """Any Gymnasium environment whose observations and actions are texts.

    Args:
      label: Distinguishes several of them in one run.
      options: The options of a configuration; None if none were given.
    """

    pooled = True
    metric = "mean return"

    def __init__(self, label: str = "", options: GymnasiumOptions | None = None) -> None:
        self.name = f"{NAME}@{label}" if label else NAME
        self._label, self._options = label, options

    def form(self, name: str) -> Gymnasium:
        """Returns the environment under a label.

        Args:
          name: The label, letters, digits, `_` and `-`.

        Raises:
          UserError: It is no such name, or the environment has a label already.
        """
        if self._label or not name.replace("-", "_").isidentifier():
            raise UserError(f"environment {self.name!r}: {name!r} is no label; write {NAME}@LABEL")
        return Gymnasium(name)

    def configured(self, options: Mapping[str, Any]) -> Gymnasium:
        """Returns the environment with the options of a configuration (`GymnasiumOptions`)."""
        return Gymnasium(self._label, read_options(GymnasiumOptions, options))

    def missing(self) -> str | None:
        if importlib.util.find_spec("gymnasium") is None:
            return f"{self.name} needs gymnasium; pip install 'agentrm-jax[gymnasium]'"
        if self._options is None:
            return (
                f"{self.name} needs options: {{id: NAME-v0, reward: {{low: 0, high: 1}}}} in "
                "`environments` of a configuration"
            )
        return None

    def counts(self) -> Mapping[Split, int | None]:
        options = self._check()
        return {"train": options.train_seeds, "test": options.test_seeds, "paper": 0}

    def kinds(self) -> Sequence[str]:
        return (_KIND,)

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Returns tasks with seeds of a split, in an order that `seed` decides."""
        check_kinds(self.name, self.kinds(), kinds)
        options = self._check()
        spec = {
            "id": options.id,
            "make": options.make,
            "kwargs": dict(options.kwargs),
            "actions": {text.lower(): action for text, action in options.actions.items()},
            "fork_by": options.fork_by,
            "reward": dataclasses.asdict(options.reward),
        }
        first = 0 if split == "train" else _FIRST_TEST_SEED
        count = (self.counts().get(split) or 0) if kinds else 0
        order = list(range(first, first + count))
        random.Random(f"{self.name}/{split}/{seed}").shuffle(order)
        return [
            Task(
                environment=self.name,
                task_id=f"{self.name}/{number}",
                kind=_KIND,
                split=split,
                problem=canonical_form([self.name, spec, number]),
                max_steps=options.max_steps,
                spec={**spec, "seed": number},
            )
            for number in order[:n]
        ]

    def prompt(self) -> Prompt:
        listed = ", ".join(self._options.actions) if self._options else ""
        actions = f" The actions are: {listed}." if listed else ""
        return Prompt(
            instruction=f"Act in an environment, one action in each turn.{actions}\nReply with two "
            "lines:\nThought: <why>\nAction: <one action>"
        )

    def action_key(self, action: str) -> str:
        return action.strip()

    def create(self) -> Environment:
        return SpecifiedEnv()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """Returns None: Gymnasium has no experts."""
        return None

    def _check(self) -> GymnasiumOptions:
        if reason := self.missing():
            raise UserError(reason)
        assert self._options is not None
        return self._options
