"""A run: its configuration, its folder, and what the stages share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentPool, Prompt
from agentrm_jax.core.records import Split, Task, Trajectory
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.envs.contract import (
    admit_prompt,
    blaming,
    kinds_of,
    listed_tasks,
    missing_of,
)
from agentrm_jax.envs.perturbations import SEPARATOR, find_wording, reworded
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.prompts import read_prompt
from agentrm_jax.envs.registry import load_family
from agentrm_jax.model.heads import head_to_json
from agentrm_jax.model.hugging_face import Kind
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.config import EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.models import Model
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.processes import is_first
from agentrm_jax.runtime.run_directory import RESOLVED as RESOLVED
from agentrm_jax.runtime.sharding import make_mesh
from agentrm_jax.runtime.trackers import Tracker, open_tracker

Summary = dict[str, Any]
"""What a stage tells people of what it did."""

DATASET = "dataset"  # beside the stage's own record

_ALL = 1_000_000  # more tasks than the paper's lists have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A configuration at work in a folder."""

    config: RunConfig
    directory: pathlib.Path

    @property
    def policy_directory(self) -> pathlib.Path:
        """Where the policy is that acts: the trained one, or the given one as it is."""
        if self.config.train_policy:
            return self.directory / "sft" / "model"
        assert self.config.policy is not None  # RunConfig demands it
        return pathlib.Path(self.config.policy)

    @property
    def reward_directory(self) -> pathlib.Path:
        if self.config.reward_model is not None:
            return pathlib.Path(self.config.reward_model)
        return self.directory / "reward" / "explicit" / "model"

    @property
    def implicit_directory(self) -> pathlib.Path:
        return self.directory / "reward" / "implicit" / "model"

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices of all processes, which train together."""
        return make_mesh(self.config.mesh)

    @functools.cached_property
    def engine_mesh(self) -> Mesh:
        """This process's own devices: each has engines, and environments, of its own."""
        return make_mesh(self.config.mesh, jax.local_devices())

    @functools.cached_property
    def pool(self) -> EnvironmentPool:
        return EnvPool(workers=self.config.workers, step_seconds=self.config.step_seconds)

    def close(self) -> None:
        if "pool" in self.__dict__:
            self.pool.close()

    def acting_policy(self) -> Model:
        """The policy that acts, for an engine."""
        return models.load_policy(self.policy_directory, self.config.dtype, self.engine_mesh)

    def policy(self, dtype: str) -> Model:
        """The same for training that starts from it."""
        return models.load_policy(self.policy_directory, dtype, self.mesh)

    def reward_init(self, dtype: str) -> Model:
        """What reward training starts from, where that is given.

        Raises:
          UserError: It has another head than the one that is to be trained.
        """
        assert self.config.reward_init is not None
        found = models.load_reward(pathlib.Path(self.config.reward_init), dtype, self.mesh)
        if found.head != self.config.train_rm.head:
            raise UserError(
                f"must be that of reward_init, {head_to_json(found.head)}",
                field="train_rm.head",
            )
        return found

    def reward_model(self) -> Model:
        return models.load_reward(self.reward_directory, self.config.dtype, self.engine_mesh)

    def check_given_models(self) -> None:
        """Refuses given models that cannot read what the run would have them read.

        Raises:
          UserError: One is not there, or `engine.context` is too long for it.
        """
        given: tuple[tuple[Kind, str | None], ...] = (
            ("policy", self.config.policy), ("reward", self.config.reward_model),
        )  # fmt: skip
        for kind, directory in given:
            if directory is not None:
                shape = models.stored_shape(pathlib.Path(directory), kind)
                shape.check_length("engine.context", self.config.engine.context, directory)

    def implicit_model(self) -> Model:
        return models.load_policy(self.implicit_directory, self.config.dtype, self.engine_mesh)

    def metrics(self, stage: str) -> MetricWriter | None:
        """None in the processes that write none."""
        if not is_first():
            return None
        return MetricWriter(self.directory / "metrics.jsonl", stage, self._trackers)

    @functools.cached_property
    def _trackers(self) -> list[Tracker]:
        config = plain(self.config)
        return [open_tracker(name, self.directory, config) for name in self.config.trackers]

    def prompt_of(self, task: Task) -> Prompt | None:
        key = (task.environment, task.kind)
        if key not in self._prompts:
            found = [e for e in self._named if e.registered == task.environment]
            if not found:
                raise UserError(
                    f"task {task.task_id}: `environments` does not name {task.environment}, so "
                    "nothing says what a model is told there"
                )
            self._prompts[key] = _prompt(found[0], task.kind)
        return self._prompts[key]

    @functools.cached_property
    def _prompts(self) -> dict[tuple[str, str], Prompt | None]:
        return {}

    @property
    def _named(self) -> Sequence[EnvironmentConfig]:
        return self.config.environments

    @functools.cached_property
    def train_tasks(self) -> tuple[list[Task], list[Task]]:
        """Train tasks that the expert is asked to solve, and others, which get a tree.

        They are the same for runs that start from models of other runs.

        Raises:
          UserError: The run trains something, and all kinds are held out.
        """
        experts: list[Task] = []
        explored: list[Task] = []
        trained = [(each, kinds) for each in self._named if (kinds := _kinds(each)[0])]
        config = self.config
        learns = config.train_policy or config.trains_reward or config.trains_implicit
        if learns and not trained:
            raise UserError("are all held out; nothing is left to learn from", field="environments")
        shares = (
            _shares(n, len(trained)) for n in (config.experts.num_tasks, config.explore.num_tasks)
        )
        for (environment, kinds), n, m in zip(trained, *shares, strict=True):
            tasks = self._tasks(environment, "train", kinds, n + m)
            experts += tasks[:n]
            explored += tasks[n:]
        return experts, explored

    def imported_trajectories(self) -> Iterator[Trajectory]:
        """Those of `experts.imported`, in order.

        Raises:
          UserError: One is of an environment that the run does not train on.
        """
        names = {each.registered for each in self._named if each.train}
        for folder in self.config.experts.imported:
            for trajectory in open_trajectories(pathlib.Path(folder), made_by="import"):
                if trajectory.task.environment not in names:
                    raise UserError(
                        f"names {folder}, which holds trajectories of "
                        f"{trajectory.task.environment}, on which `environments` does not train",
                        field="experts.imported",
                    )
                yield trajectory

    @functools.cached_property
    def test_tasks(self) -> list[Task]:
        """Test tasks, those of held-out kinds marked."""
        return self._test_tasks(self.config.evaluate.num_tasks)

    @property
    def beam_tasks(self) -> list[Task]:
        """The test tasks that beam search runs on."""
        most, n = self.config.evaluate.num_tasks, self.config.evaluate.beam_tasks
        wanted = {t.task_id for t in self._test_tasks(min(n, most) if n and most else n or most)}
        return [task for task in self.test_tasks if task.task_id in wanted]

    def _test_tasks(self, n: int) -> list[Task]:
        total, split = n or _ALL * len(self._named), self.config.evaluate.split
        found = []
        for environment, share in zip(self._named, _shares(total, len(self._named)), strict=True):
            trained, held_out = _kinds(environment)
            tasks = self._tasks(environment, split, [*trained, *held_out], share)
            found += [dataclasses.replace(t, held_out=t.kind in held_out) for t in tasks]
        return found

    def _tasks(
        self, environment: EnvironmentConfig, split: Split, kinds: Sequence[str], n: int
    ) -> list[Task]:
        family, most = load_family(environment.registered), environment.max_steps
        if reason := missing_of(family):  # a run would else find out at the first reset
            raise UserError(reason)
        tasks = listed_tasks(family, split, kinds=kinds, n=n, seed=self.config.seed)
        return [dataclasses.replace(task, max_steps=most) for task in tasks] if most else tasks

    def overlap(self) -> int:
        """How many test tasks pose a problem that was trained on or explored. It must be 0."""
        trained = {task.problem for tasks in self.train_tasks for task in tasks}
        return sum(task.problem in trained for task in self.test_tasks)

    def check_overlap(self) -> None:
        """Refuses to test on problems that are trained on.

        Raises:
          UserError: There are some.
        """
        if overlap := self.overlap():
            raise UserError(f"evaluate: {overlap} test tasks pose problems that are trained on")


def _shares(n: int, environments: int) -> list[int]:
    """n spread evenly over the environments."""
    return [n // environments + (i < n % environments) for i in range(environments)]


def _prompt(environment: EnvironmentConfig, kind: str) -> Prompt | None:
    if not environment.prompt:
        return None
    if environment.prompt_dir is not None:
        name, _, wording = environment.registered.partition(SEPARATOR)
        prompt = read_prompt(pathlib.Path(environment.prompt_dir), name, kind)
        return reworded(prompt, find_wording(load_family(name), wording)) if wording else prompt
    name = environment.registered
    with blaming(f"environment {name!r}: prompt"):
        prompt = load_family(name).prompt()
    with blaming(f"environment {name!r}"):
        return admit_prompt(prompt)


def _kinds(environment: EnvironmentConfig) -> tuple[Sequence[str], Sequence[str]]:
    """The kinds that are trained on, and those that are tested only.

    Raises:
      UserError: The configuration names one that does not exist.
    """
    known = kinds_of(load_family(environment.registered))
    for kind in (*environment.kinds, *environment.held_out):
        if kind not in known:
            raise UserError(
                f"{environment.name} has no kind {kind!r}; known are {', '.join(known)}",
                field="environments",
            )
    named = environment.kinds or [kind for kind in known if kind not in environment.held_out]
    return (named, environment.held_out) if environment.train else ([], named)
