"""Tasks that are not trained on, and the loss on them: when to stop believing the other one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.train.step import Batch, LossFn, place

T = TypeVar("T")


def split(
    examples: Iterable[T], task_of: Callable[[T], str], share: float, seed: int
) -> tuple[list[T], list[T]]:
    """Examples of most tasks, and those of the others: a share of the tasks, one at least.

    Which ones depends on the seed and on the tasks' names alone.

    Args:
      share: Above 0 and below 1.

    Raises:
      UserError: Too few tasks to keep some of them apart.
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
    """A function (params) or (params, frozen parameters) to the loss's sums as weighted means.

    The same for any batch size and number of processes.

    Args:
      batch_size: Rows that are read at once; divides among the devices.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    read = jax.jit(loss_fn, out_shardings=(everywhere, everywhere))

    def measure(params: Any, *frozen: Any) -> dict[str, float]:
        found = [read(params, batch, *frozen) for batch in _batches(rows, batch_size, mesh)]
        host = [{"loss": loss, **sums} for loss, sums in jax.device_get(found)]
        totals = {name: math.fsum(float(sums[name]) for sums in host) for name in host[0]}
        weight = max(totals.pop("weight"), 1e-6)
        return {name: value / weight for name, value in totals.items()}

    return measure


def _batches(rows: PackedRows, batch_size: int, mesh: Mesh) -> Iterator[Batch]:
    """All rows, once and in order; the last batch is filled up with padding."""
    for begin in range(0, len(rows), batch_size):
        wanted: Sequence[int] = range(begin, min(begin + batch_size, len(rows)))
        batch = rows.take(np.asarray(wanted))
        if missing := batch_size - len(wanted):
            batch = {
                name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
                for name, value in batch.items()
            }
        yield place(batch, mesh)
