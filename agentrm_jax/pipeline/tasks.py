"""The tasks of a run: what the policy learns from, what is searched, what is tested."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Split, Task, Trajectory
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.envs.contract import kinds_of, listed_tasks, missing_of
from agentrm_jax.pipeline.config import EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.families import environment_family

_ALL = 1_000_000  # more tasks than the lists of the paper have


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of a run, listed when they are asked for.

    Attributes:
      config: The configuration of the run.
    """

    config: RunConfig

    @property
    def experts(self) -> list[Task]:
        """Train tasks that the expert is asked to solve."""
        return self._train[0]

    @property
    def explored(self) -> list[Task]:
        """Train tasks that get a search tree, other ones than those of the expert."""
        return self._train[1]

    @functools.cached_property
    def _train(self) -> tuple[list[Task], list[Task]]:
        """Returns the tasks of expert and search, the same for runs that start from others.

        Raises:
          UserError: The run trains something, and all kinds are held out.
        """
        experts: list[Task] = []
        explored: list[Task] = []
        config, trained = self.config, self._trained_environments
        learns = config.trains_policy or config.trains_reward or config.trains_implicit
        if learns and not trained:
            raise UserError("are all held out; nothing is left to learn from", field="environments")
        counts = (
            _spread(n, len(trained)) for n in (config.experts.num_tasks, config.explore.num_tasks)
        )
        for (environment, kinds), n, m in zip(trained, *counts, strict=True):
            tasks = self._listed(environment, "train", kinds, n + m)
            experts += tasks[:n]
            explored += tasks[n:]
        if config.explores and not experts:
            raise UserError("list no task of split train", field="environments")
        if config.explores and not explored:
            raise UserError(
                f"must be below {len(experts)}: it takes all train tasks that there are, and "
                "none is left to explore",
                field="experts.num_tasks",
            )
        return experts, explored

    @property
    def _trained_environments(self) -> list[tuple[EnvironmentConfig, Sequence[str]]]:
        """The environments that are trained on, with the kinds."""
        given = self.config.environments
        return [(each, kinds) for each in given if (kinds := _kinds(each)[0])]

    @functools.cached_property
    def calibration(self) -> list[Task]:
        """Train tasks on which thresholds of test-time methods are chosen.

        Their problems are not those of `experts` and `explored`. Only if the split has too few
        others, explored tasks follow, and then those of the expert.
        """
        used = [*self.explored, *self.experts]
        problems, found = {task.problem for task in used}, []
        config, trained = self.config, self._trained_environments
        counts = (
            _spread(n, len(trained))
            for n in (
                config.experts.num_tasks,
                config.explore.num_tasks,
                config.calibrate.num_tasks,
            )
        )
        for (environment, kinds), n, m, k in zip(trained, *counts, strict=True):
            listed = self._listed(environment, "train", kinds, n + m + k)
            others = [task for task in listed if task.problem not in problems]
            own = [task for task in used if task.environment == environment.registered]
            found += [*others, *own][:k]
        return found

    def imported_trajectories(self) -> Iterator[Trajectory]:
        """Yields the trajectories of `experts.imported`, in order.

        Raises:
          UserError: One is of an environment that the run does not train on.
        """
        names = {each.registered for each in self.config.environments if each.train}
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
    def test(self) -> list[Task]:
        """Test tasks, those of held-out kinds marked."""
        return self._test_tasks(self.config.evaluate.num_tasks)

    @property
    def beam(self) -> list[Task]:
        """The test tasks that beam search runs on."""
        most, n = self.config.evaluate.num_tasks, self.config.evaluate.beam_tasks
        wanted = {t.task_id for t in self._test_tasks(min(n, most) if n and most else n or most)}
        return [task for task in self.test if task.task_id in wanted]

    def _test_tasks(self, n: int) -> list[Task]:
        environments = self.config.environments
        total, split = n or _ALL * len(environments), self.config.evaluate.split
        found = []
        counts = _spread(total, len(environments))
        for environment, count in zip(environments, counts, strict=True):
            trained, held_out = _kinds(environment)
            tasks = self._listed(environment, split, [*trained, *held_out], count)
            found += [dataclasses.replace(t, held_out=t.kind in held_out) for t in tasks]
        return found

    def _listed(
        self, environment: EnvironmentConfig, split: Split, kinds: Sequence[str], n: int
    ) -> list[Task]:
        family, most = environment_family(environment), environment.max_steps
        if reason := missing_of(family):  # otherwise the first reset would fail
            raise UserError(reason)
        seed, of_tests = self.config.seed, self.config.evaluate.task_seed
        if split != "train" and of_tests is not None:
            seed = of_tests
        tasks = listed_tasks(family, split, kinds=kinds, n=n, seed=seed)
        return [dataclasses.replace(task, max_steps=most) for task in tasks] if most else tasks

    def overlap(self) -> int:
        """Returns the number of test tasks whose problem is trained on or explored; 0 is right.

        Problems on which thresholds are chosen count as well.
        """
        calibration = self.calibration if self.config.evaluate.calibrates else ()
        trained = {task.problem for task in (*self.experts, *self.explored, *calibration)}
        return sum(task.problem in trained for task in self.test)

    def check_overlap(self) -> None:
        """Refuses to test on problems that are trained on.

        Raises:
          UserError: There are some.
        """
        if overlap := self.overlap():
            raise UserError(
                f"{overlap} test tasks have problems that are trained on or explored; an "
                "environment must list other problems for test than for train"
            )


def _spread(n: int, environments: int) -> list[int]:
    """n tasks spread evenly over the environments."""
    return [n // environments + (i < n % environments) for i in range(environments)]


def _kinds(environment: EnvironmentConfig) -> tuple[Sequence[str], Sequence[str]]:
    """The kinds that are trained on, and the kinds that are tested only.

    Raises:
      UserError: The configuration names one that does not exist.
    """
    known = kinds_of(environment_family(environment))
    for kind in (*environment.kinds, *environment.held_out):
        if kind not in known:
            raise UserError(
                f"{environment.name} has no kind {kind!r}; known are {', '.join(known)}",
                field="environments",
            )
    named = environment.kinds or [kind for kind in known if kind not in environment.held_out]
    return (named, environment.held_out) if environment.train else ([], named)
