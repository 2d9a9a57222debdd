"""Held-out tasks, and the loss on them, which decides the best checkpoint."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.train.step import Batch, LossFn, apply_loss, place

T = TypeVar("T")


def split(
    examples: Iterable[T], task_of: Callable[[T], str], share: float, seed: int
) -> tuple[list[T], list[T]]:
    """Divides examples into those that are trained on and those of held-out tasks.

    Which tasks are held out depends on the seed and on the names of the tasks only.

    Args:
      examples: The examples.
      task_of: Returns the id of an example's task.
      share: The fraction of the tasks that is held out, above 0 and below 1; at least one task is.
      seed: The seed.

    Returns:
      The examples to train on, and the held-out ones.

    Raises:
      UserError: There are too few tasks.
    """
    listed = list(examples)

    def rank(task: str) -> str:
        return hashlib.sha256(f"{seed} {task}".encode()).hexdigest()

    tasks = sorted({task_of(example) for example in listed}, key=rank)
    held = set(tasks[: max(1, round(share * len(tasks)))])
    if len(held) == len(tasks):
        raise UserError(
            f"must be 0 because {len(tasks)} tasks are too few to hold some of them out",
            field="held_out",
        )
    return (
        [example for example in listed if task_of(example) not in held],
        [example for example in listed if task_of(example) in held],
    )


def make_measure(
    loss_fn: LossFn, rows: PackedRows, batch_size: int, mesh: Mesh
) -> Callable[..., dict[str, float]]:
    """Returns a function that computes the loss of rows.

    The result is the same for any batch size and number of processes.

    Args:
      loss_fn: The loss.
      rows: The held-out rows.
      batch_size: Rows that are read at once; a multiple of the devices that rows are split over.
      mesh: The devices.

    Returns:
      A function of (params, frozen parameters or None) to the weighted means of the loss and its
      sums by name.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    read = jax.jit(functools.partial(apply_loss, loss_fn), out_shardings=(replicated, replicated))

    def measure(params: Any, frozen: Any = None) -> dict[str, float]:
        results = [read(params, batch, frozen) for batch in _batches(rows, batch_size, mesh)]
        host = [{"loss": loss, **sums} for loss, sums in jax.device_get(results)]
        totals = {name: math.fsum(float(sums[name]) for sums in host) for name in host[0]}
        weight = max(totals.pop("weight"), 1e-6)
        return {name: value / weight for name, value in totals.items()}

    return measure


def _batches(rows: PackedRows, batch_size: int, mesh: Mesh) -> Iterator[Batch]:
    """Yields all rows once, in order; the last batch is filled with padding."""
    for begin in range(0, len(rows), batch_size):
        row_indices: Sequence[int] = range(begin, min(begin + batch_size, len(rows)))
        batch = rows.take(np.asarray(row_indices))
        if missing := batch_size - len(row_indices):
            batch = {
                name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
                for name, value in batch.items()
            }
        yield place(batch, mesh)
