"""The workspace of a run: its configuration, and what its stages share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time

import jax
from jax.sharding import Mesh

from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.measured_pool import MeasuredPool
from agentrm_jax.pipeline.prompts import RunPrompts
from agentrm_jax.pipeline.run_models import RunModels
from agentrm_jax.pipeline.tasks import Tasks
from agentrm_jax.runtime.buckets import Bucket, open_bucket
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.processes import is_first
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.sharding import make_mesh
from agentrm_jax.runtime.trackers import Tracker, open_tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workspace:
    """A configuration with the files, devices, environments, tasks and models of its run.

    Attributes:
      config: The configuration.
      directory: The folder of the run.
      began: `time.monotonic()` at which the command began, from which `budget.hours` count.
    """

    config: RunConfig
    directory: pathlib.Path
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.directory)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices of all processes, which train together."""
        return make_mesh(self.config.mesh)

    @functools.cached_property
    def engine_mesh(self) -> Mesh:
        """The devices of this process: each process has its own engines and environments."""
        return make_mesh(self.config.mesh, jax.local_devices())

    @functools.cached_property
    def pool(self) -> MeasuredPool:
        config = self.config
        return MeasuredPool(EnvPool(workers=config.workers, step_seconds=config.step_seconds))

    @functools.cached_property
    def prompts(self) -> RunPrompts:
        return RunPrompts(self.config.environments)

    @functools.cached_property
    def tasks(self) -> Tasks:
        return Tasks(self.config)

    @functools.cached_property
    def bucket(self) -> Bucket | None:
        """The bucket of `leases.store`, None without one."""
        url = self.config.leases.store
        return None if url is None else open_bucket(url)

    @property
    def models(self) -> RunModels:
        return RunModels(
            config=self.config, paths=self.paths, mesh=self.mesh, engine_mesh=self.engine_mesh
        )

    def metrics(self, stage: str) -> MetricWriter | None:
        """Returns the writer of a stage's metrics, None in processes that write none."""
        if not is_first():
            return None
        return MetricWriter(self.paths.metrics, stage, self._trackers)

    @functools.cached_property
    def _trackers(self) -> list[Tracker]:
        config = plain(self.config)
        return [open_tracker(name, self.directory, config) for name in self.config.trackers]

    def close(self) -> None:
        """Ends the environments, if there are any."""
        if "pool" in self.__dict__:
            self.pool.close()
