"""The memory of this machine and its devices, and a check that sizes fit into it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError

_LIMITS = (
    pathlib.Path("/sys/fs/cgroup/memory.max"),
    pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says how much a container may take: control groups of version 2 and 1."""


def host_bytes() -> int:
    """Returns the bytes of memory that this process may take: the machine's, or its container's."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # `max`: no limit
            found.append(int(text))
    return min(found)


def smallest_device_bytes(devices: Sequence[Any]) -> int:
    """Returns the bytes of memory of the device that has least.

    Args:
      devices: All `jax.Device`s of this process that are used; CPU devices share the host's memory.
    """
    stats = [device.memory_stats() or {} for device in devices]
    return min(int(s.get("bytes_limit") or host_bytes() // len(devices)) for s in stats)


def check_need(
    need: Callable[[Mapping[str, int]], int],
    values: Mapping[str, int],
    usual: Mapping[str, int],
    have: int,
) -> None:
    """Refuses sizes that need more bytes than a device has.

    Args:
      need: From the sizes, by key, to bytes on a device; grows with each of them.
      values: The sizes.
      usual: What each of them is by default.
      have: Bytes of the device.

    Raises:
      UserError: Names the size that matters most and the largest value that could fit.
    """
    total = need(values)
    if total <= have:
        return
    reason = f"{in_gib(total)} at least are needed, a device has {in_gib(have)}"
    key = min(values, key=lambda key: need({**values, key: min(values[key], usual[key])}))
    low, high = 0, values[key]  # the largest value that fits lies in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need({**values, key: middle}) <= have else (low, middle)
    if not low:
        raise UserError(
            f"does not fit: {reason}; take more devices (mesh.fsdp, mesh.tensor), a smaller "
            "model, or adapters (lora.rank)",
            field=key.partition(".")[0],
        )
    raise UserError(f"must be at most {low:,} (got {values[key]:,}): {reason}", field=key)


def in_gib(size: float) -> str:
    """Returns a number of bytes as people read it."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**27 else f"{size / 2**20:,.1f} MiB"
