"""The status of a run with leases as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentrm_jax.core.text import printable
from agentrm_jax.pipeline.run_status import ListStatus, RunStatus, StageStatus, WorkerStatus

_MOST = 50
"""Leases of a list that are shown."""


def status_lines(status: RunStatus) -> Iterator[str]:
    """Yields the lines of `agentrm status`."""
    yield f"stages that have ended: {', '.join(status.ended) or 'none'}"
    for stage in status.stages:
        yield from _stage_lines(stage)
    if not status.stages:
        yield "no process shares this run by leases now; `agentrm watch` shows how far it is"


def _stage_lines(stage: StageStatus) -> Iterator[str]:
    states = [worker.state for worker in stage.workers]
    counts = [f"{states.count(state)} {state}" for state in ("alive", "silent", "ended")]
    yield f"{stage.name}: processes: {', '.join(counts)}"
    rows = [("process", "host", "pid", "state", "renewed", "expires in", "decoded")]
    rows += [_worker_row(worker) for worker in stage.workers if worker.state != "ended"]
    yield from _table(rows if rows[1:] else ())
    for each in stage.lists:
        yield from _list_lines(each)


def _worker_row(worker: WorkerStatus) -> tuple[str, ...]:
    record = worker.record
    return (
        printable(record.worker),
        printable(record.host),
        str(record.pid),
        worker.state,
        f"{_seconds(worker.renewed_seconds)} ago",
        _seconds(worker.expires_seconds) if worker.state == "alive" else "-",
        f"{int(record.counts.get('tokens_decoded', 0)):,}",
    )


def _list_lines(found: ListStatus) -> Iterator[str]:
    stale = [lease for lease in found.leases if lease.stale]
    yield (
        f"  {printable(found.name)}: {found.recorded} of {found.tasks} tasks recorded, "
        f"{len(found.leases) - len(stale)} held, {len(stale)} stale, {found.free} free"
    )
    rows = [
        (
            f"  {printable(lease.record.task)}",
            printable(lease.record.worker),
            f"{_seconds(lease.taken_seconds)} ago",
            "stale" if lease.stale else "repeats" if lease.record.repeats else "held",
            f"taken {lease.epoch} times" if lease.epoch > 1 else "",
        )
        for lease in found.leases[:_MOST]
    ]
    yield from _table(rows)
    if len(found.leases) > _MOST:
        yield f"    and {len(found.leases) - _MOST} more; --json lists all"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
