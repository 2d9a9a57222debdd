"""The prompts of the environments that a run names."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task
from agentrm_jax.envs.contract import admit_prompt, blaming
from agentrm_jax.envs.perturbations import find_wording, reworded
from agentrm_jax.envs.prompts import read_prompt
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.config import EnvironmentConfig
from agentrm_jax.pipeline.families import environment_family


class RunPrompts:
    """Finds the prompt of a task, for the environments of a run. Each prompt is read once.

    Args:
      environments: The environments of the run.
    """

    def __init__(self, environments: Sequence[EnvironmentConfig]) -> None:
        self._environments = {each.registered: each for each in environments}
        self._read: dict[tuple[str, str], Prompt | None] = {}

    def __call__(self, task: Task) -> Prompt | None:
        """Returns the prompt of a task, None if the run gives its environment no prompt.

        Raises:
          UserError: The run does not name the environment of the task, or the prompt is broken.
        """
        key = (task.environment, task.kind)
        if key not in self._read:
            if task.environment not in self._environments:
                raise UserError(
                    f"task {task.task_id}: `environments` does not name {task.environment}, so "
                    "no prompt is known there"
                )
            self._read[key] = _prompt(self._environments[task.environment], task.kind)
        return self._read[key]


def _prompt(environment: EnvironmentConfig, kind: str) -> Prompt | None:
    if not environment.prompt:
        return None
    if environment.instruction:
        return Prompt(instruction="\n".join(environment.instruction))
    if environment.prompt_dir is not None:
        name, wording = environment.name, environment.wording
        prompt = read_prompt(pathlib.Path(environment.prompt_dir), name, kind)
        return reworded(prompt, find_wording(load_family(name), wording)) if wording else prompt
    name = environment.registered
    with blaming(f"environment {name!r}: prompt"):
        prompt = environment_family(environment).prompt()
    with blaming(f"environment {name!r}"):
        return admit_prompt(prompt)
