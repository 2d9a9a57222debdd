"""The training loop: batches, metrics, checkpoints, resuming."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.core.errors import Stopped, UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.data.pipeline import batches
from agentrm_jax.model.attention import BACKENDS, check_device
from agentrm_jax.model.llama import REMAT
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints
from agentrm_jax.runtime.metrics import MetricWriter
from agentrm_jax.runtime.processes import ended_with_others
from agentrm_jax.runtime.sharding import named_sharding
from agentrm_jax.train.held_out import make_measure
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import LossFn, Sums, TrainState, make_state, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The loop.

    Attributes:
      num_updates: Updates in all; 0 follows from `epochs`.
      epochs: Passes over the rows, where `num_updates` is 0.
      batch_size: Rows of a batch.
      length: Tokens of a row.
      accumulation: Micro-batches of a batch.
      remat: What of a layer the backward pass computes anew, to save memory: `none`, `dots` (all
        but the products with its matrices) or `block` (all).
      attention: What computes attention: `xla` everywhere, `cudnn` on NVIDIA GPUs (it rounds to
        bfloat16), `pallas` on TPUs (heads of 64 or multiples of it).
      metrics_every: Updates between two rows of metrics.
      checkpoint_every: Updates between two checkpoints.
      keep: How many of the newest checkpoints stay until the stage has ended.
      held_out: Share of the tasks that are not trained on. The loss on them is measured at every
        checkpoint and at the end, and the model is that of the smallest. 0: all are trained on.
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
        """Refuses micro-batches that do not divide among the devices, and attention that they
        cannot compute.

        Raises:
          UserError: They do not, or cannot.
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
        """Updates for so many rows."""
        return self.num_updates or max(1, math.ceil(self.epochs * num_rows / self.batch_size))


def fit(
    params: Any,
    loss_fn: LossFn,
    rows: PackedRows,
    config: FitConfig,
    optimizer_config: OptimizerConfig,
    *,
    directory: pathlib.Path,
    mesh: Mesh,
    seed: int,
    metrics: MetricWriter | None,
    frozen: Any = None,
    held_out: PackedRows | None = None,
    describe: Callable[[dict[str, float]], dict[str, float]] = dict,
    on_update: Callable[[int, int, dict[str, float]], None] = lambda update, total, row: None,
) -> tuple[Any, dict[str, float]]:
    """Trains; goes on from the newest checkpoint in `directory`, with the same result to the bit.

    After SIGTERM the updates in flight end, at most two, and a checkpoint is saved; of several
    processes one may get the signal, and all stop at the same update, the next or the one after it.

    Args:
      params: Initial parameters. They are consumed.
      frozen: What the loss reads besides and no update changes; it is in no checkpoint.
      metrics: None in the processes that write none.
      held_out: Rows that decide which checkpoint is the best one.
      describe: From the means of the loss's sums to a row of metrics.
      on_update: Called with (updates done, of how many, metrics) where metrics were written.

    Returns:
      The trained parameters, of the best checkpoint where there are rows to tell; and the last row
      of metrics with `updates`, `tokens_per_second` and `compile_seconds` (of this call; absent
      where it had nothing left to do), and `best_update`.

    Raises:
      UserError: The loss is not finite, the batch does not fit the mesh, or the checkpoint is of
        another model.
      Stopped: By SIGTERM.
    """
    config.check_mesh(mesh)
    total = config.total(len(rows))
    optimizer = make_optimizer(optimizer_config, total)
    checkpoints, stopping = TrainingCheckpoints(directory, config.keep), _Stopping(mesh)
    try:
        state = make_state(params, optimizer, mesh)
        placed = jax.tree.map(lambda x: x.sharding, state)
        if checkpoints.latest is not None:
            state = checkpoints.restore(_abstract(state))
        still = () if frozen is None else (frozen,)
        lie = jax.tree.map(lambda x: x.sharding, frozen)
        step = make_train_step(loss_fn, optimizer, placed, mesh, config.accumulation, lie)
        first = int(state.update)
        measure = None
        if held_out is not None:
            measure = make_measure(
                loss_fn, held_out, config.batch_size // config.accumulation, mesh
            )
        source = _placed(rows, config.batch_size, seed, first, mesh)
        clock, row = _Clock(rows, config.batch_size), {}
        waiting: list[Sums] = []  # stay on the device until a row is due: fetching would stall it
        with ended_with_others(), stopping:
            for update in range(first + 1, total + 1):
                state, sums = step(state, next(source), *still)
                clock.updated(sums)
                if waiting:  # two updates in flight keep the device busy; more delay a stop
                    jax.block_until_ready(waiting[-1])
                waiting.append(sums)
                stop = stopping.agreed()
                due = update % config.checkpoint_every == 0 or update == total
                save = stop or update % config.checkpoint_every == 0
                if save or update % config.metrics_every == 0 or update == total:
                    means, norm = _means(waiting, update)
                    row = {**describe(means), "grad_norm": norm}
                    waiting.clear()
                    if measure is not None and due:
                        found = describe(measure(state.params, *still))
                        row |= {f"held_out_{name}": value for name, value in found.items()}
                    if metrics is not None:
                        metrics.write(update, row)
                    on_update(update, total, row)
                if save:
                    checkpoints.save(update, state, row.get("held_out_loss"))
                if stop:
                    raise Stopped(f"stopped at update {update} of {total}, which was saved")
        jax.block_until_ready(state.params)
        summary = {"updates": total, **row, **clock.summary()}
        if held_out is not None:
            state, chosen = _best(checkpoints, state, total, row.get("held_out_loss", math.inf))
            summary |= chosen
        return state.params, summary
    except Stopped as stopped:
        checkpoints.close()  # waits until it is on the disk
        raise Stopped(f"{stopped} {stopping.seconds:.1f} s after the signal") from None
    finally:
        checkpoints.close()


def _best(
    checkpoints: TrainingCheckpoints, last: TrainState, update: int, loss: float
) -> tuple[TrainState, dict[str, float]]:
    """The last state, or that of a checkpoint with a smaller loss on what is held out."""
    found = checkpoints.best
    if found is None or found[1] >= loss:
        return last, {"best_update": update}
    state = checkpoints.restore(_abstract(last), found[0])
    return state, {"best_update": found[0], "held_out_loss": found[1]}


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _placed(
    rows: PackedRows, batch_size: int, seed: int, start: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Global batches; this process reads the rows that its devices hold, and no others."""
    sharding = named_sharding(mesh, ("batch", "length"))
    indices = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    own = sorted({row for index in indices if index for row in range(batch_size)[index[0]]})
    for batch in batches(rows, batch_size, seed, start_update=start, positions=own):
        yield {name: _global(value, batch_size, sharding, own) for name, value in batch.items()}


def _global(value: np.ndarray, rows: int, sharding: NamedSharding, own: Sequence[int]) -> jax.Array:
    """An array of all processes from the rows `own` of it."""

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        mine = range(rows)[index[0]] if index else range(rows)
        return value[np.searchsorted(own, mine)]

    return jax.make_array_from_callback((rows, *value.shape[1:]), sharding, part)


def _means(waiting: Sequence[Sums], update: int) -> tuple[dict[str, float], float]:
    """Sums over the last updates, the newest of them `update`, as weighted means; and the mean norm
    of the gradients.

    Raises:
      UserError: A loss or gradient is not finite.
    """
    host = [{name: float(v) for name, v in sums.items()} for sums in jax.device_get(waiting)]
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
    """Seconds of the first update, which compiles, apart from those of training."""

    def __init__(self, rows: PackedRows, batch_size: int) -> None:
        self._batch_tokens = batch_size * float((rows.segments > 0).sum()) / len(rows)
        self._began, self._first, self._updates = time.monotonic(), 0.0, 0

    def updated(self, sums: Sums) -> None:
        self._updates += 1
        if self._updates == 1:
            jax.block_until_ready(sums)
            self._first = time.monotonic()

    def summary(self) -> dict[str, float]:
        """Nothing where there were less than two updates."""
        if self._updates < 2:
            return {}
        seconds = time.monotonic() - self._first
        return {
            "tokens_per_second": (self._updates - 1) * self._batch_tokens / seconds,
            "compile_seconds": self._first - self._began,
        }


class _Stopping:
    """Turns SIGTERM into a wish, so that the running update ends and a checkpoint is written.

    Several processes must stop at the same update: each tells the others of its wish in every
    update, and looks one update later at what they said. So nothing waits for the answer.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._asked: float | None = None
        self._said = None
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def agreed(self) -> bool:
        """Whether to stop now. All processes ask in every update."""
        if jax.process_count() == 1:
            return self._asked is not None
        before = self._said
        asked = np.full(self._each.mesh.size, self._asked is not None)
        self._said = self._any(
            jax.make_array_from_callback(asked.shape, self._each, lambda index: asked[index])
        )
        return before is not None and bool(before)

    def __enter__(self) -> _Stopping:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked is None:
            self._asked = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the signal came to this process; 0 if it came to another one."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)
