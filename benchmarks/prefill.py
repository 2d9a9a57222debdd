"""Prefill of prompts: tokens per second, and the fraction of the machine's limits.

    python -m benchmarks.prefill [--tiny]
    python -m benchmarks.prefill --model 8b --dtype bfloat16 --prompts 8 --length 2048 --piece 512

Every round reads new prompts. Each prompt is one segment, read in chunks of --piece tokens. The
other side is our dense forward pass over the same prompts, which stores no keys and values.

Exactness: the largest difference of the values at the last tokens of the prompts. In bfloat16 it is
the size of the rounding errors.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine import front
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.model.value import readout
from agentrm_jax.plan.work import NumberBytes, reading
from benchmarks import ceilings, engines, measuring, models
from benchmarks.score import dense_scorer


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("prefill", __doc__, rounds=3)
    parser.add_argument("--model", choices=sorted(models.SHAPES), help="default: 27m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a batch")
    parser.add_argument("--length", type=int, help="tokens of a prompt (default: 1024)")
    parser.add_argument("--piece", type=int, default=128, help="tokens of a prefill chunk")
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    name = given.model or ("tiny" if given.tiny else "27m")
    length = given.length or (192 if given.tiny else 1024)
    config, dtype = models.SHAPES[name], jnp.dtype(given.dtype)
    prompts = models.draw_tokens(
        config, np.random.default_rng(0), given.rounds + 1, given.prompts, length
    )
    params, head = models.make_params(config, dtype), models.make_head(config)
    engine = Engine(
        params,
        config,
        EngineConfig(
            context=length,
            decode_rows=8,
            extend_rows=given.prompts,
            extend_tokens=given.piece,
            extend_batch=given.prompts * given.piece,
            page_size=engines.PAGE,
            cache_tokens=3 * given.prompts * engines.pages(length + engines.PAGE),
            max_segments=1,
            instruction_tokens=1,
        ),
        readout=readout,
        head=head,
    )
    dense = dense_scorer(params, head, config)
    values: dict[str, dict[int, np.ndarray]] = {"ours": {}, "dense": {}}

    def ours(number: int) -> None:
        values["ours"][number] = np.asarray(
            front.score(engine, [TokenSequence(segments=[p]) for p in prompts[number]])
        )

    def whole(number: int) -> None:
        values["dense"][number] = dense(prompts[number])

    probes = ceilings.Probes(dtype, tiny=given.tiny)
    sides = {"ours": ours, "dense": whole, **probes.sides()}
    timed = measuring.interleaved(sides, given.rounds)
    measuring.table(f"{name}, {given.prompts} prompts of {length} tokens", timed)
    limits = probes.ceilings(timed, threads)
    work = reading(config, given.prompts, length, 0, 1, NumberBytes.of(dtype))
    taken = {side: limits.seconds(timed[side]) for side in ("ours", "dense")}
    found = {
        "ratio_ceiling": limits.least_seconds(work) / taken["ours"],
        "ratio_ceiling_dense": limits.least_seconds(work) / taken["dense"],
        "ratio_dense": taken["dense"] / taken["ours"],
        "tokens_per_second": given.prompts * length / taken["ours"],
    }
    print("  " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
    errors = [np.abs(values["ours"][i] - values["dense"][i]).max() for i in values["ours"]]
    exactness = {"values": len(errors) * given.prompts, "error_dense": float(max(errors))}
    print("  " + ", ".join(f"{k} {v:.3g}" for k, v in exactness.items()))
    found |= {
        "exactness": exactness,
        "ceilings": limits.as_json(),
        "model": name,
        "dtype": given.dtype,
        "prompts": given.prompts,
        "length": length,
        "piece": given.piece,
        "sides": {side: seconds.as_json() for side, seconds in timed.items()},
    }
    return measuring.finish("prefill", found, threads)


if __name__ == "__main__":
    main()
