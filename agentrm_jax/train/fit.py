"""The training loop: batches, metrics, checkpoints, resuming."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from agentrm_jax.core.errors import Stopped, UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.data.pipeline import batches
from agentrm_jax.model.attention import BACKENDS, check_device
from agentrm_jax.model.options import REMAT
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.processes import ended_with_others
from agentrm_jax.runtime.sharding import named_sharding
from agentrm_jax.train.held_out import make_measure
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import Sums, TrainState, make_state, make_train_step
from agentrm_jax.train.stopping import Stopping
from agentrm_jax.train.trainable import Trainable


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the training loop.

    Attributes:
      num_updates: Number of updates; if 0, it follows from `epochs`.
      epochs: Passes over the rows if `num_updates` is 0.
      batch_size: Rows of a batch.
      length: Tokens of a row.
      accumulation: Micro-batches of a batch; must divide `batch_size`.
      remat: The activations of a layer that the backward pass recomputes to save memory: `none`,
        `dots` (all but the products with its matrices) or `block` (all).
      attention: The attention backend: `xla` runs everywhere, `triton` on NVIDIA GPUs (head_dim
        must be 16, 32, 64, 128 or 256), as well as `cudnn` (it rounds to bfloat16 and reads a mask
        of all pairs of a row), `pallas` on TPUs (head_dim must be a multiple of 64).
      metrics_every: Updates between two rows of metrics.
      checkpoint_every: Updates between two checkpoints.
      keep: Number of newest checkpoints that are kept until the stage has ended.
      held_out: Fraction of the tasks that is not trained on. The loss on them is measured at every
        checkpoint and at the end, and the model with the smallest one is kept. 0: none is held out.
    """

    num_updates: int = 0
    epochs: float = 3.0
    batch_size: int = 16
    length: int = 4096
    accumulation: int = 1
    remat: str = "none"
    attention: str = "xla"
    metrics_every: int = 10
    checkpoint_every: int = 200
    keep: int = 2
    held_out: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_updates="[0, inf)",
            epochs="[0, 1e6]",
            batch_size="[1, inf)",
            length="[1, inf)",
            accumulation="[1, inf)",
            metrics_every="[1, inf)",
            checkpoint_every="[1, inf)",
            keep="[1, inf)",
            held_out="[0, 1)",
        )
        check_choice("attention", self.attention, BACKENDS)
        check_choice("remat", self.remat, REMAT)
        if self.batch_size % self.accumulation:
            raise UserError(
                f"must divide batch_size, {self.batch_size}",
                field="accumulation",
                value=self.accumulation,
            )
        if not self.num_updates and not self.epochs:
            raise UserError(field="epochs", value=0, expected="above 0 if num_updates is 0")

    def check_mesh(self, mesh: Mesh) -> None:
        """Refuses micro-batches that do not divide among the devices, and unsupported attention.

        Args:
          mesh: The devices.

        Raises:
          UserError: The batch size or the attention backend does not suit the mesh.
        """
        check_device("attention", self.attention, mesh)
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        if self.batch_size // self.accumulation % ways:
            raise UserError(
                f"must be a multiple of {self.accumulation * ways}: {self.accumulation} "
                f"micro-batches of fit.accumulation for {ways} devices (mesh.data * mesh.fsdp)",
                field="batch_size",
                value=self.batch_size,
            )

    def total(self, num_rows: int) -> int:
        """Returns the number of updates of a training.

        Args:
          num_rows: Number of rows that are trained on.
        """
        return self.num_updates or max(1, math.ceil(self.epochs * num_rows / self.batch_size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitInputs:
    """One training run: what is trained on which rows, and what is written where.

    Attributes:
      model: The parameters and the loss. The parameters are consumed.
      rows: The rows that are trained on.
      config: Settings of the loop.
      optimizer: Settings of the optimizer.
      directory: The folder of the checkpoints.
      mesh: The devices.
      seed: Decides the order of the rows.
      metrics: Gets the rows of metrics; None in processes that write none.
      held_out: Rows that decide which checkpoint is the best one; None if the last one is.
      describe: Turns the weighted means of the loss's sums into a row of metrics.
      on_update: Called with (finished updates, all updates, metrics) after each row of metrics.
      stop_at: `time.monotonic()` after which training stops as after SIGTERM.
    """

    model: Trainable
    rows: PackedRows
    config: FitConfig
    optimizer: OptimizerConfig
    directory: pathlib.Path
    mesh: Mesh
    seed: int
    metrics: MetricWriter | None = None
    held_out: PackedRows | None = None
    describe: Callable[[dict[str, float]], dict[str, float]] = dict
    on_update: Callable[[int, int, dict[str, float]], None] = lambda update, total, row: None
    stop_at: float = math.inf


def fit(inputs: FitInputs) -> tuple[Any, dict[str, float]]:
    """Trains a model, and resumes from the newest checkpoint with the same result to the bit.

    After SIGTERM, or at `stop_at`, the updates in flight end, at most two, and a checkpoint is
    saved. Of several processes one may get the signal; all stop at the same update, the next or
    the one after it.

    Args:
      inputs: The model, the rows and the settings.

    Returns:
      The trained parameters, those of the best checkpoint if there are held-out rows; and a
      summary: the last row of metrics (absent if no update was left to do) with `updates`, with
      `tokens_per_second` and `compile_seconds` if this call did two updates or more, and with
      `best_update` if there are held-out rows.

    Raises:
      UserError: The loss is not finite, the batch does not fit the mesh, or the checkpoint is of
        another model.
      Stopped: By SIGTERM or at `stop_at`; everything is saved.
    """
    config = inputs.config
    config.check_mesh(inputs.mesh)
    checkpoints = TrainingCheckpoints(inputs.directory, config.keep)
    stopping = Stopping(inputs.mesh, inputs.stop_at)
    try:
        loop = _Loop(inputs, checkpoints)
        with ended_with_others(), stopping:
            while loop.update < loop.total:
                loop.run_update()
                stop, last = stopping.agreed(), loop.update == loop.total
                checkpoint_due = loop.update % config.checkpoint_every == 0
                if stop or last or checkpoint_due or loop.update % config.metrics_every == 0:
                    # A stop is not measured, so that it changes no result.
                    loop.report(with_held_out=checkpoint_due or last)
                if stop or checkpoint_due:
                    checkpoints.save(loop.update, loop.state, loop.row.get("held_out_loss"))
                if stop:
                    raise Stopped(
                        f"stopped at update {loop.update} of {loop.total}, which was saved"
                    )
        return loop.result()
    except Stopped as stopped:
        checkpoints.close()  # waits until the checkpoint is on the disk
        raise Stopped(f"{stopped} {stopping.cause}") from None
    finally:
        checkpoints.close()


class _Loop:
    """The state of a training run and the steps of its loop.

    Attributes:
      state: Parameters and optimizer after the last update.
      update: Number of finished updates, those before this call included.
      total: Number of all updates.
      row: The last row of metrics; empty before the first one.
    """

    def __init__(self, inputs: FitInputs, checkpoints: TrainingCheckpoints) -> None:
        self._inputs, self._checkpoints = inputs, checkpoints
        config, model, mesh = inputs.config, inputs.model, inputs.mesh
        self.total = config.total(len(inputs.rows))
        optimizer = make_optimizer(inputs.optimizer, self.total)
        self.state = make_state(model.params, optimizer, mesh)
        placed = _shardings(self.state)
        if checkpoints.latest is not None:
            self.state = checkpoints.restore(_abstract(self.state))
        self.update = int(self.state.update)
        self.row: dict[str, float] = {}
        self._step = make_train_step(
            model.loss_fn, optimizer, placed, mesh, config.accumulation, _shardings(model.frozen)
        )
        self._measure = None
        if inputs.held_out is not None:
            micro_batch = config.batch_size // config.accumulation
            self._measure = make_measure(model.loss_fn, inputs.held_out, micro_batch, mesh)
        self._batches = _placed(inputs.rows, config.batch_size, inputs.seed, self.update, mesh)
        self._clock = _Clock(inputs.rows, config.batch_size)
        self._sums: list[Sums] = []  # on the device until a report: fetching would stall it

    def run_update(self) -> None:
        """Starts the next update and waits for the one before it."""
        self.state, sums = self._step(self.state, next(self._batches), self._inputs.model.frozen)
        self.update += 1
        self._clock.updated(sums)
        if self._sums:  # two updates in flight keep the device busy; more would delay a stop
            jax.block_until_ready(self._sums[-1])
        self._sums.append(sums)

    def report(self, *, with_held_out: bool) -> None:
        """Makes and writes the row of metrics of the updates since the last report.

        Raises:
          UserError: A loss or gradient is not finite.
        """
        inputs = self._inputs
        means, norm = _means(self._sums, self.update)
        self._sums.clear()
        self.row = {**inputs.describe(means), "grad_norm": norm}
        if self._measure is not None and with_held_out:
            measured = inputs.describe(self._measure(self.state.params, inputs.model.frozen))
            self.row |= {f"held_out_{name}": value for name, value in measured.items()}
        if inputs.metrics is not None:
            inputs.metrics.write(self.update, self.row)
        inputs.on_update(self.update, self.total, self.row)

    def result(self) -> tuple[Any, dict[str, float]]:
        """Returns the parameters and the summary of a run whose updates are all done."""
        jax.block_until_ready(self.state.params)
        summary: dict[str, float] = {"updates": self.total, **self.row, **self._clock.summary()}
        if self._measure is None:
            return self.state.params, summary
        last_loss, best = self.row.get("held_out_loss", math.inf), self._checkpoints.best
        if best is None or best[1] >= last_loss:
            return self.state.params, summary | {"best_update": self.total}
        state = self._checkpoints.restore(_abstract(self.state), best[0])
        return state.params, summary | {"best_update": best[0], "held_out_loss": best[1]}


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _placed(
    rows: PackedRows, batch_size: int, seed: int, start: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Yields global batches; this process reads only the rows that its devices hold."""
    sharding = named_sharding(mesh, ("batch", "length"))
    indices = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    local = sorted({row for index in indices if index for row in range(batch_size)[index[0]]})
    for batch in batches(rows, batch_size, seed, start_update=start, positions=local):
        yield {name: _global(value, batch_size, sharding, local) for name, value in batch.items()}


def _global(
    value: np.ndarray, rows: int, sharding: NamedSharding, local: Sequence[int]
) -> jax.Array:
    """Returns an array of all processes of which this process holds the rows `local`."""

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        row_indices = range(rows)[index[0]] if index else range(rows)
        return value[np.searchsorted(local, row_indices)]

    return jax.make_array_from_callback((rows, *value.shape[1:]), sharding, shard)


def _means(sums_of_updates: Sequence[Sums], update: int) -> tuple[dict[str, float], float]:
    """Returns the weighted means of the sums of some updates, and the mean norm of the gradients.

    Args:
      sums_of_updates: The sums of consecutive updates.
      update: The number of the last one.

    Raises:
      UserError: A loss or gradient is not finite.
    """
    host = [
        {name: float(v) for name, v in sums.items()} for sums in jax.device_get(sums_of_updates)
    ]
    for number, sums in enumerate(host, start=update - len(host) + 1):
        if not (math.isfinite(sums["loss"]) and math.isfinite(sums["grad_norm"])):
            raise UserError(
                f"the loss is not finite at update {number}: take a smaller "
                "optimizer.learning_rate; the checkpoints before it are sound"
            )
    totals = {name: math.fsum(sums[name] for sums in host) for name in host[0]}
    weight = max(totals.pop("weight"), 1e-6)
    norm = totals.pop("grad_norm") / len(host)
    return {name: value / weight for name, value in totals.items()}, norm


class _Clock:
    """Times the updates; the first one, which compiles, is timed apart from the others."""

    def __init__(self, rows: PackedRows, batch_size: int) -> None:
        self._batch_tokens = batch_size * float((rows.segments > 0).sum()) / len(rows)
        self._began, self._first, self._updates = time.monotonic(), 0.0, 0

    def updated(self, sums: Sums) -> None:
        self._updates += 1
        if self._updates == 1:
            jax.block_until_ready(sums)
            self._first = time.monotonic()

    def summary(self) -> dict[str, float]:
        """Returns the speed and the seconds of compilation; nothing if there was one update."""
        if self._updates < 2:
            return {}
        seconds = time.monotonic() - self._first
        return {
            "tokens_per_second": (self._updates - 1) * self._batch_tokens / seconds,
            "compile_seconds": self._first - self._began,
        }
