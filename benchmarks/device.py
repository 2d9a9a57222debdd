"""Measures one GPU, or one chip of a TPU, in one short run.

    python -m benchmarks.device --output device.json            (below ten minutes, no network)
    python -m benchmarks.device --tiny --output tiny.json       (on any machine; shows no speed)

Llama-3-8B shapes in bfloat16, random weights; fewer layers if the memory does not suffice (`layers`
in the output). The parts, in this order:
  ceilings          a large copy and a large product of matrices
  attention         the attention backends of training on packed trees and paths: error of output
                    and gradients relative to dense float32 attention, milliseconds of both passes
  decode ROWS       40, 160, 5 and 1 rows after contexts of 1,024 tokens
  update ...        the update of a reward model on a packed tree, and on its paths
  prefill           8 prompts of 2,048 tokens
  score             2 x 25 candidates of 64 tokens after contexts of 1,024
  engines           the engine's backends on a small model: greedy replies and scores against the
                    dense forward pass, near-ties counted

Shares are fractions of the measured ceilings: `share_of_copy` counts the bytes that cannot be
avoided, `share_of_product` the operations of the model without recomputation. A part that fails is
recorded with its error, and the next one begins. The record is written after every part. A part is
skipped, and recorded as such, if it is expected to take longer than what is left of --seconds; a
part that has begun is finished. --parts takes some of the parts, by the first word.
JAX_COMPILATION_CACHE_DIR makes a second run faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax

from agentrm_jax.core.text import first_line
from agentrm_jax.runtime.json_files import write_json_atomic
from benchmarks import device_exactness, device_parts, measuring
from benchmarks.device_parts import Decoding, Device, Found

ROWS = (40, 160, 5, 1)
"""Rows of decoding, the most telling number first."""

ENGINE_BACKENDS = {"gpu": ("triton", "cudnn", "xla"), "tpu": ("pallas", "xla"), "cpu": ("xla",)}
FIT_BACKENDS = {"gpu": ("triton", "cudnn", "xla"), "tpu": ("pallas", "xla"), "cpu": ("xla",)}
"""The attention backends by platform; the first one of an engine is measured."""

EXPECTED = {
    "ceilings": 15, "attention": 60, "decode": 90, "update": 90, "prefill": 60, "score": 60,
    "engines": 90,
}  # fmt: skip
"""Seconds of a part of each kind, until one of its kind has been measured."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of the run.

    Attributes:
      name: Its name; the first word is its kind.
      measure: What it measures.
    """

    name: str
    measure: Callable[[Device], Found]

    @property
    def kind(self) -> str:
        """The kind of the part, as in `EXPECTED`."""
        return self.name.split()[0]


def parts(device: Device) -> Iterator[Part]:
    """Yields the parts in their order; memory is freed between them."""
    yield Part("ceilings", device_parts.measure_ceilings)
    yield Part("attention", device_exactness.attention)
    rows = (5,) if device.tiny else ROWS
    decoding = Decoding(device, rows)
    for number in rows:
        yield Part(f"decode {number}", functools.partial(_decode, decoding, number))
    decoding.free()
    updates = [Part(name, call) for name, call in device_parts.every_update(device)]
    yield updates[0]
    yield Part("prefill", device_parts.prefill)
    yield Part("score", device_parts.scoring)
    yield Part("engines", device_exactness.whole_engines)
    yield from updates[1:]


def _decode(decoding: Decoding, rows: int, device: Device) -> Found:
    return decoding(rows)


def run(
    device: Device, kinds: Collection[str], seconds: float, keep: Callable[[Found], None]
) -> Found:
    """Measures the parts that fit into the time.

    Args:
      device: The settings.
      kinds: Of the parts to measure.
      seconds: The time, from now on.
      keep: Gets all that was found after every part.

    Returns:
      For each part its `status` (`measured`, `failed` or `skipped`), its seconds and its figures.
    """
    began, found, longest = time.monotonic(), {}, dict[str, float]()
    for part in (each for each in parts(device) if each.kind in kinds):
        left = seconds - (time.monotonic() - began)
        expected = longest.get(part.kind, 0.0 if device.tiny else EXPECTED[part.kind])
        if left <= 0 or expected > left:
            found[part.name] = {
                "status": "skipped",
                "reason": f"needs about {expected:.0f} s, and {max(left, 0):.0f} s are left",
            }
        else:
            clock = measuring.Clock()
            found[part.name] = _measured(part, device)
            found[part.name]["seconds"] = longest[part.kind] = clock.read().wall
        print(f"  {part.name}: {_shown(found[part.name])}", flush=True)
        keep(found)
    return found


def _measured(part: Part, device: Device) -> Found:
    try:
        return {"status": "measured", **part.measure(device)}
    except Exception as error:  # after any error, the other parts are still measured
        return {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        gc.collect()


def _shown(found: Found) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
        if not isinstance(value, dict)
    )


def _device(given: argparse.Namespace, threads: int) -> Device:
    platform = jax.default_backend()
    platform = platform if platform in ENGINE_BACKENDS else "cpu"
    return Device(
        tiny=given.tiny,
        rounds=given.rounds,
        threads=threads,
        memory=(jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
        engine_backends=ENGINE_BACKENDS[platform],
        fit_backends=FIT_BACKENDS[platform],
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("device", __doc__, rounds=3)
    parser.add_argument("--output", type=pathlib.Path, help="the record, written after every part")
    parser.add_argument(
        "--seconds", type=float, default=540, help="parts that do not fit into them are skipped"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=sorted(EXPECTED), default=list(EXPECTED), metavar="KIND",
        help=f"of {', '.join(EXPECTED)}; default: all",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    # Before the first device is asked for: JAX would take 75% of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".92")
    threads = measuring.use_threads(given.threads)
    device = _device(given, threads)
    record = {
        "tiny": given.tiny, "dtype": device.dtype.name, "platform": jax.default_backend(),
        "memory": device.memory, "seconds": given.seconds,
    }  # fmt: skip

    def keep(found: Found) -> None:
        if given.output is not None:
            whole = measuring.record("device", {**record, "parts": found}, threads)
            write_json_atomic(given.output, whole)

    found = run(device, given.parts, given.seconds, keep)
    return measuring.finish("device", {**record, "parts": found}, threads)


if __name__ == "__main__":
    main()
