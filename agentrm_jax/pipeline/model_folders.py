"""Folders that hold a model: of a run, of `train_reward_model`, or in the form of Hugging Face.

A model folder lies in a run, whose configuration says how states are rendered, or next to a
`prompts.json`, or nothing is known but what the caller gives.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.records import Prompt, Task
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.model.hugging_face import Kind
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.models import is_model_directory, stored_shape
from agentrm_jax.pipeline.prompts import RunPrompts
from agentrm_jax.pipeline.run_models import policy_directory, reward_directory
from agentrm_jax.runtime.run_directory import RESOLVED
from agentrm_jax.runtime.run_paths import EXPLICIT_MODEL, MODEL, POLICY_MODEL, RunPaths
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

PROMPTS_FILE = "prompts.json"
CONVERSATION = "conversation"
"""Environment of conversations that are read as they are, without a prompt before them."""
_WORDS: dict[Kind, tuple[str, str]] = {
    "policy": ("policy", POLICY_MODEL),
    "reward": ("reward model", EXPLICIT_MODEL),
}
_DEFAULT_CONTEXT = 2048
_DEFAULT_CACHE = 32  # conversations of full length


class Prompts:
    """The prompts of a model's environments; called with a task.

    Args:
      given: By environment; None for a model without a prompt. They come first.
      config: The configuration of the run that the model is of.
    """

    def __init__(self, given: Mapping[str, Prompt | None], config: RunConfig | None = None) -> None:
        check_prompts(given)
        self.given = dict(given)
        environments = () if config is None else config.environments
        self._of_a_run = config is not None
        self._names = {environment.registered for environment in environments}
        self._of_run = RunPrompts(environments)

    def known(self) -> dict[str, Prompt]:
        """Returns the prompts that are known, by environment.

        An environment of the run is left out if it has no prompt or its package is not installed.
        """
        found = dict(self.given)
        for name in self._names - found.keys():
            try:
                found[name] = self(Task(environment=name, task_id=name, max_steps=1))
            except UserError:
                continue
        return {name: prompt for name, prompt in found.items() if prompt is not None}

    def __call__(self, task: Task) -> Prompt | None:
        """Returns the prompt of a task, None if the model reads none.

        Raises:
          UserError: No prompt is known for the task's environment.
        """
        name = task.environment
        if name in self.given:
            return self.given[name]
        if name in self._names:
            return self._of_run(task)
        raise UserError(
            f"task {task.task_id}: the model was not trained on the environment {name}, so its "
            f'prompt must be given: prompts={{"{name}": Prompt(instruction="...")}}'
            + (
                f"; on the command line, `environments` of the configuration does not name {name}"
                if self._of_a_run
                else ""
            )
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A folder with a model, and the settings by which the model reads states.

    Attributes:
      directory: The folder with the model's files.
      config: Configuration of the run that it is of, None if it is of none.
      prompts: Prompts by task.
    """

    directory: pathlib.Path
    config: RunConfig | None
    prompts: Prompts

    def engine(self, kind: Kind) -> EngineConfig:
        """Returns the sizes of the run's engine; without a run those of a small one."""
        if self.config is not None:
            return self.config.engine
        context = min(_DEFAULT_CONTEXT, stored_shape(self.directory, kind).longest)
        return EngineConfig(context=context, cache_tokens=_DEFAULT_CACHE * context)

    def mesh(self) -> Mesh:
        """Returns the run's mesh over the devices of this process; without a run one device."""
        if self.config is not None:
            return make_mesh(self.config.mesh, jax.local_devices())
        return make_mesh(MeshConfig(), jax.local_devices()[:1])

    def dtype(self) -> str:
        """Returns the dtype of the parameters."""
        return "float32" if self.config is None else self.config.dtype


def find_model(
    path: str | os.PathLike[str],
    kind: Kind,
    prompts: Mapping[str, Prompt | None] | None = None,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> ModelFolder:
    """Returns the model of a folder.

    Args:
      path: A run, a folder of `train_reward_model`, a model folder, or a Hugging Face directory.
      kind: `policy` or `reward`.
      prompts: Prompts by environment, in place of those that are known.
      config: File of a configuration in place of the run's.
      overrides: `--KEY=VALUE` of the configuration.

    Raises:
      UserError: There is no such model.
    """
    directory = pathlib.Path(path)
    if config is None and (runs := [d for d in _above(directory) if (d / RESOLVED).exists()]):
        config = runs[0] / RESOLVED
    loaded = None if config is None else load_config(pathlib.Path(config), overrides)
    if is_model_directory(directory):
        model = directory
    elif is_model_directory(directory / MODEL):
        model = directory / MODEL
    elif loaded is not None and (directory / RESOLVED).exists():
        directory_of = reward_directory if kind == "reward" else policy_directory
        model = directory_of(loaded, RunPaths(directory))
    else:
        what, folder = _WORDS[kind]
        raise UserError(
            f"{directory}: no {what} here; give the folder of a run, its {folder}, or a folder "
            "that `agentrm export` wrote"
        )
    known = {**_stored_prompts(model), **(prompts or {})}
    return ModelFolder(directory=model, config=loaded, prompts=Prompts(known, loaded))


def check_prompts(prompts: Mapping[str, Any]) -> None:
    """Refuses prompts by environment of which one is neither a `Prompt` nor None."""
    for name, prompt in prompts.items():
        if prompt is not None and not isinstance(prompt, Prompt):
            raise UserError(
                f"prompts[{printable(repr(name))}] must be a Prompt or None (got "
                f'{type(prompt).__name__}); write Prompt(instruction="...")'
            )


def write_prompts(directory: pathlib.Path, prompts: Mapping[str, Prompt | None]) -> None:
    """Writes the prompts that a model was trained with next to its folder."""
    values = {name: prompt and dataclasses.asdict(prompt) for name, prompt in prompts.items()}
    text = json.dumps(values, indent=1, sort_keys=True)
    (directory / PROMPTS_FILE).write_text(text, encoding="utf-8")


def _stored_prompts(model: pathlib.Path) -> dict[str, Prompt | None]:
    path = model.resolve().parent / PROMPTS_FILE
    if not path.exists():
        return {}
    try:
        stored: dict[str, Any] = parse_json(path.read_bytes())
        return {
            name: None if value is None else from_json(Prompt, value)
            for name, value in stored.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); restore the file") from None


def _above(directory: pathlib.Path) -> list[pathlib.Path]:
    """The folder and the three above it: a model of a run lies three folders deep."""
    return [directory, *directory.resolve().parents[:3]]
