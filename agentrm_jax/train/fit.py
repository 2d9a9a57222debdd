"""The training loop: batches, metrics, checkpoints, resuming."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agentrm_jax.core.checkpoints import TrainingCheckpoints
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.metrics import MetricWriter
from agentrm_jax.core.sharding import named_sharding
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.data.pipeline import batches
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import LossFn, TrainState, make_state, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """The loop.

    Attributes:
      num_updates: Updates in all; 0 follows from `epochs`.
      epochs: Passes over the rows, where `num_updates` is 0.
      batch_size: Rows of a batch.
      length: Tokens of a row.
      accumulation: Micro-batches of a batch.
      remat: Whether layers are computed anew in the backward pass, to save memory.
      metrics_every: Updates between two rows of metrics.
      checkpoint_every: Updates between two checkpoints.
    """

    num_updates: int = 0
    epochs: float = 3.0
    batch_size: int = 16
    length: int = 4096
    accumulation: int = 1
    remat: bool = False
    metrics_every: int = 10
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "accumulation", "metrics_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"fit.{name}: must be at least 1, not {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise UserError("fit.accumulation: must divide fit.batch_size")
        if self.num_updates < 1 and self.epochs <= 0:
            raise UserError("fit.epochs: must be positive where fit.num_updates is not set")

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
    metrics: MetricWriter,
    on_update: Callable[[int, int, dict[str, float]], None] = lambda update, total, row: None,
) -> tuple[Any, dict[str, float]]:
    """Trains; goes on from the newest checkpoint in `directory`, with the same result.

    Args:
      params: Initial parameters, placed. They are consumed.
      on_update: Called with (updates done, of how many, metrics) where metrics were written.

    Returns:
      The trained parameters, and numbers for the summary.
    """
    total = config.total(len(rows))
    optimizer = make_optimizer(optimizer_config, total)
    checkpoints = TrainingCheckpoints(directory)
    try:
        state = make_state(params, optimizer, mesh)
        if checkpoints.latest is not None:
            state = checkpoints.restore(_abstract(state))
        step = make_train_step(loss_fn, optimizer, mesh, config.accumulation)
        with _Stopping() as stopping:
            summary: dict[str, float] = {}
            first = int(state.update)
            source = _placed(batches(rows, config.batch_size, seed, start_update=first), mesh)
            clock = _Clock(rows)
            for update in range(first + 1, total + 1):
                state, sums = step(state, next(source))
                clock.updated(sums)
                saving = update % config.checkpoint_every == 0
                if update % config.metrics_every == 0 or saving or update == total:
                    summary = _means(sums, update)
                    metrics.write(update, summary)
                    on_update(update, total, summary)
                if stopping.asked or (saving and update < total):
                    checkpoints.save(update, state)
                if stopping.asked:
                    raise SystemExit(143)
            jax.block_until_ready(state.params)
        return state.params, {"updates": total, **summary, **clock.summary(config.batch_size)}
    finally:
        checkpoints.close()


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _placed(source: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, Any]]:
    sharding = named_sharding(mesh, ("batch", "length"))
    for batch in source:
        yield {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }


def _means(sums: dict[str, jax.Array], update: int) -> dict[str, float]:
    """Sums over a batch as means.

    Raises:
      UserError: The loss is not finite.
    """
    host = {name: float(value) for name, value in jax.device_get(sums).items()}
    weight = max(host.pop("weight"), 1e-6)
    norm = host.pop("grad_norm")
    row = {name: value / weight for name, value in host.items()}
    if not math.isfinite(row["loss"]):
        raise UserError(
            f"optimizer.learning_rate: the loss is not finite at update {update}; take a smaller "
            "rate (checkpoints up to the last good one are kept)"
        )
    return {**row, "grad_norm": norm}


class _Clock:
    """Seconds of compilation (the first update) apart from those of training."""

    def __init__(self, rows: PackedRows) -> None:
        self._row_tokens = float((rows.segments > 0).sum()) / len(rows)
        self._began, self._first, self._updates = time.monotonic(), 0.0, 0

    def updated(self, sums: dict[str, jax.Array]) -> None:
        self._updates += 1
        if self._updates == 1:
            jax.block_until_ready(sums)
            self._first = time.monotonic()

    def summary(self, batch_size: int) -> dict[str, float]:
        if self._updates < 2:
            return {}
        seconds = time.monotonic() - self._first
        tokens = (self._updates - 1) * batch_size * self._row_tokens
        return {
            "tokens_per_second": tokens / seconds,
            "compile_seconds": self._first - self._began,
        }


class _Stopping:
    """Turns SIGTERM into a wish, so that the running update ends and a checkpoint is written."""

    asked = False

    def __enter__(self) -> _Stopping:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)
