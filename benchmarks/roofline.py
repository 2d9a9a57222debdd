"""The engine of a large model as a share of what the device could do.

`--model 8b --dtype bfloat16` has the shapes of Llama-3-8B and random weights; `--model tiny` shows
on any machine that it runs. Decoding is held against the measured bandwidth of a large copy (what
it must read for each token: the weights, every prompt's keys and values once, the replies' own) and
against the ceiling that binds; reading against the arithmetic of a large product.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.plan.work import NumberBytes, decoding_token, reading
from benchmarks import ceilings, engines, measuring, models


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(models.SHAPES), help="shapes, weights are random")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 5, 40, 160], help="decode: replies at once"
    )
    parser.add_argument("--groups", type=int, default=2, help="score: contexts at once")
    parser.add_argument("--context", type=int, default=1024, help="tokens before what is measured")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a reply or a candidate")


def setup(given: argparse.Namespace) -> tuple[Any, Any, NumberBytes]:
    """The shape, the dtype and the bytes of its numbers."""
    dtype = jnp.dtype(given.dtype)
    return models.SHAPES[given.model], dtype, NumberBytes.of(dtype)


def decode(given: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second, and the shares, at every number of rows; 5 replies to each prompt."""
    config, dtype, number = setup(given)
    rng = np.random.default_rng(0)
    shares = {rows: 5 if rows % 5 == 0 else 1 for rows in given.rows}
    most = max(rows // n for rows, n in shares.items())
    prompts = models.draw_tokens(config, rng, most, given.context)
    params = models.make_params(config, dtype)
    engine = engines.decoding_engine(params, config, prompts, max(8, *given.rows), given.tokens)
    del params  # the engine has its own copy
    probes = ceilings.Probes(dtype, tiny=given.model == "tiny")
    sides = {
        f"{rows} rows": engines.Branches(engine, prompts[: rows // n], n, given.tokens)
        for rows, n in shares.items()
    }
    timed = measuring.interleaved({**sides, **probes.sides()}, given.rounds)
    measuring.table(f"{given.model}, {given.tokens} tokens behind {given.context}", timed)
    limits = probes.ceilings(timed, given.threads or 1)
    found = []
    for rows, n in shares.items():
        taken = limits.seconds(timed[f"{rows} rows"]) / given.tokens
        work = decoding_token(config, rows, given.context, n, (given.tokens + 1) / 2, number)
        found.append(
            {
                "rows": rows,
                "rows_with_padding": sides[f"{rows} rows"].rows,
                "tokens_per_second": rows / taken,
                "share_of_bandwidth": work.bytes / taken / limits.bandwidth,
                "share_of_ceiling": limits.least_seconds(work) / taken,
            }
        )
        print("  " + ", ".join(f"{k} {v:.4g}" for k, v in found[-1].items()))
    return {
        **{f"ratio_bandwidth_{row['rows']}": row["share_of_bandwidth"] for row in found},
        **{f"ratio_ceiling_{row['rows']}": row["share_of_ceiling"] for row in found},
        **described(given, limits),
        "rows": found,
    }


def score(given: argparse.Namespace) -> dict[str, Any]:
    """Candidates behind contexts: the share of the arithmetic that the device can do (MFU)."""
    config, dtype, number = setup(given)
    n, G = 25, given.groups
    rng = np.random.default_rng(0)
    contexts = models.draw_tokens(config, rng, G, given.context)
    candidates = models.draw_tokens(config, rng, given.rounds + 1, G, n, given.tokens)
    config = dataclasses.replace(config, tie_embeddings=True)  # a reward model has no such head
    params = models.make_params(config, dtype)
    ours = engines.Candidates(params, models.make_head(config), config, contexts, n, given.tokens)
    del params
    probes = ceilings.Probes(dtype, tiny=given.model == "tiny")
    sides = {"ours": lambda number: ours(candidates[number])}
    timed = measuring.interleaved({**sides, **probes.sides()}, given.rounds)
    measuring.table(
        f"{given.model}, {G} x {n} x {given.tokens} tokens behind {given.context}", timed
    )
    limits = probes.ceilings(timed, given.threads or 1)
    work = reading(config, G * n, given.tokens, given.context, n, number)
    taken = limits.seconds(timed["ours"])
    found = {
        "ratio_mfu": work.flops / taken / limits.flops,
        "ratio_ceiling": limits.least_seconds(work) / taken,
        "tokens_per_second": G * n * given.tokens / taken,
    }
    print("  " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
    return {**found, **described(given, limits)}


def described(given: argparse.Namespace, limits: ceilings.Ceilings) -> dict[str, Any]:
    """Returns the settings of a measurement and the limits of its machine."""
    return {
        "model": given.model,
        "dtype": given.dtype,
        "context": given.context,
        "tokens": given.tokens,
        "ceilings": limits.as_json(),
        "memory": (jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
    }
