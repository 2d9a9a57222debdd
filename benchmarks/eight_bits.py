"""Differences made by 8 bits: a model with weights, or keys and values, in 8 bits next to itself.

    python -m benchmarks.eight_bits --model FOLDER [--environment babyai] [--tasks 16]
    python -m benchmarks.eight_bits --tiny

FOLDER is a Hugging Face directory or a model folder of a run. The texts are trajectories of an
environment's expert, rendered with the model's chat template, without an instruction. All positions
are compared. They are computed by dense forward passes, which engines equal up to rounding
(tests/engine/test_eight_bit_engine.py). For each variant:

  logit_error_max, _mean  differences of logits from those in float32
  kl_mean                 Kullback-Leibler divergence of the next token's distribution, in nats
  greedy_agree            fraction of positions with the same likeliest token
  greedy_gap_max          where it differs: largest gap between the two tokens' logits in float32
  sampled_agree           fraction of positions with the same token at temperature 1 and equal keys
  score_error_max, _mean  differences of the scores of states, in standard deviations of the scores
  score_order_agree       fraction of pairs of states that both order alike

The value head is fitted: ridge regression from float32 hidden states at the ends of states to the
fraction of the trajectory's steps that are done. bfloat16 is there for comparison.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.records import Prompt, Trajectory
from agentrm_jax.data.chat import Rendered, render
from agentrm_jax.envs.contract import listed_tasks
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.model import llama, parameters
from agentrm_jax.model.attention import causal_mask, dense_attention
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import decode, encode, in_eight_bits
from agentrm_jax.pipeline.models import Model, load_policy
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import PROMPT, tiny_model, tiny_state
from benchmarks import measuring

PADDING = 64
"""Texts are padded to multiples of this."""

RIDGE = 1e-2
"""Of the value head, as a fraction of the mean square of the hidden states' coordinates."""


class Variant(NamedTuple):
    """Parameters, and whether keys and values are rounded to 8 bits."""

    params: Any
    kv: bool = False


@functools.partial(jax.jit, static_argnames=("config", "kv"))
def hidden_states(params: Any, config: LlamaConfig, tokens: jax.Array, kv: bool) -> jax.Array:
    """Hidden states [T, D] of tokens [T] after the final norm."""
    positions = jnp.arange(tokens.shape[0])[None]
    rotation = llama.rope(positions, config)
    mask = causal_mask(jnp.ones_like(positions))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        if kv:
            k, v = decode(encode(k)), decode(encode(v))
        return dense_attention(q, k, v, mask), None

    def step(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
        return llama.block(weights, config, x, rotation, attend)[0], None

    x, _ = jax.lax.scan(step, llama.embed(params, tokens[None]), params["layers"])
    return llama.final_norm(params, config, x)[0]


@functools.partial(jax.jit, static_argnames="config")
def compared(
    plain: Any, params: Any, config: LlamaConfig, hidden: tuple[jax.Array, jax.Array], seed: int
) -> dict[str, jax.Array]:
    """Differences at each position [T], given the hidden states of both."""
    wanted, found = (
        llama.logits(own, config, states)
        for own, states in zip((plain, params), hidden, strict=True)
    )
    error = jnp.abs(found - wanted)
    noise = jax.random.gumbel(jax.random.key(seed), wanted.shape)
    log_p, log_q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(found)
    first, second = jnp.argmax(wanted, axis=-1), jnp.argmax(found, axis=-1)
    gap = wanted.max(axis=-1) - jnp.take_along_axis(wanted, second[:, None], axis=-1)[:, 0]
    sampled = [jnp.argmax(logits + noise, axis=-1) for logits in (wanted, found)]
    return {
        "max": error.max(axis=-1),
        "mean": error.mean(axis=-1),
        "spread": wanted.std(axis=-1),
        "kl": jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1),
        "greedy": first == second,
        "gap": gap,
        "sampled": sampled[0] == sampled[1],
    }


def texts(model: Model, given: Any) -> Iterator[Rendered]:
    """Expert trajectories as tokens; made-up ones for the tiny model."""
    prompt: Prompt | None = PROMPT
    found: Sequence[Trajectory] = [tiny_state(number, 3 + number % 3) for number in range(6)]
    if given.model is not None:
        family = load_family(given.environment)
        pool = EnvPool(workers=0)
        try:
            tasks = listed_tasks(family, "train", n=given.tasks)
            found = list(expert_trajectories(pool, tasks))
        finally:
            pool.close()
        prompt = None  # more steps fit into a text
    for trajectory in found:
        yield render(model.tokenizer, prompt, trajectory, given.length)[0]


def fitted_head(states: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """A linear head [D + 1] by ridge regression, the bias last."""
    wide = np.concatenate([states, np.ones((len(states), 1))], axis=1)
    penalty = RIDGE * np.mean(states**2) * len(states) * np.eye(wide.shape[1])
    penalty[-1, -1] = 0.0
    return np.linalg.solve(wide.T @ wide + penalty, wide.T @ targets)


def summary(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """The numbers of a variant over all positions."""
    every = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    differ = ~every["greedy"].astype(bool)
    return {
        "logit_error_max": float(every["max"].max()),
        "logit_error_mean": float(every["mean"].mean()),
        "kl_mean": float(every["kl"].mean()),
        "greedy_agree": float(every["greedy"].mean()),
        "greedy_gap_max": float(every["gap"][differ].max(initial=0.0)),
        "sampled_agree": float(every["sampled"].mean()),
    }


def order(scores: np.ndarray) -> np.ndarray:
    """The signs of all differences."""
    rows, columns = np.triu_indices(len(scores), 1)
    return np.sign(scores[rows] - scores[columns])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("eight_bits", __doc__, rounds=1)
    parser.add_argument("--model", help="folder of a model (--tiny: a model of the tests)")
    parser.add_argument("--environment", default="babyai", help="whose expert acts")
    parser.add_argument("--tasks", type=int, default=16, help="trajectories")
    parser.add_argument("--length", type=int, default=512, help="most tokens of a text")
    given = parser.parse_args(arguments)
    if given.model is None and not given.tiny:
        parser.error("--model FOLDER, or --tiny")
    threads = measuring.use_threads(given.threads)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = (
        tiny_model()
        if given.model is None
        else load_policy(pathlib.Path(given.model), "float32", mesh)
    )
    rounded = in_eight_bits(model.params)
    variants = {
        "bfloat16": Variant(parameters.cast(model.params, jnp.bfloat16)),
        "weights": Variant(rounded),
        "kv": Variant(model.params, kv=True),
        "weights and kv": Variant(rounded, kv=True),
    }
    rendered = list(texts(model, given))
    rows: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in variants}
    states: dict[str, list[np.ndarray]] = {name: [] for name in ("float32", *variants)}
    targets = []
    for seed, text in enumerate(rendered):
        T = len(text.tokens)
        padded = np.zeros(-(-T // PADDING) * PADDING, np.int32)
        padded[:T] = text.tokens
        ends = np.asarray(text.state_ends)
        targets += list(np.linspace(0.0, 1.0, len(ends)))
        plain = hidden_states(model.params, model.config, padded, False)
        states["float32"].append(np.asarray(plain[ends]))
        for name, variant in variants.items():
            hidden = hidden_states(variant.params, model.config, padded, variant.kv)
            states[name].append(np.asarray(hidden[ends], np.float32))
            each = compared(model.params, variant.params, model.config, (plain, hidden), seed)
            rows[name].append({key: np.asarray(value)[:T] for key, value in each.items()})
    joined = {name: np.concatenate(own) for name, own in states.items()}
    head = fitted_head(joined["float32"], np.asarray(targets))
    scores = {name: own @ head[:-1] + head[-1] for name, own in joined.items()}
    wanted = scores.pop("float32")
    found: dict[str, Any] = {}
    for name, own in scores.items():
        error = np.abs(own - wanted) / wanted.std()
        found[name] = summary(rows[name]) | {
            "score_error_max": float(error.max()),
            "score_error_mean": float(error.mean()),
            "score_order_agree": float(np.mean(order(own) == order(wanted))),
        }
        print(name, " ".join(f"{key} {value:.4g}" for key, value in found[name].items()))
    spread = np.concatenate([row["spread"] for row in rows["weights"]]).mean()
    return measuring.finish(
        "eight_bits",
        {
            "variants": found,
            "model": given.model and pathlib.Path(given.model).name,
            "environment": given.environment if given.model else None,
            "texts": len(rendered),
            "positions": int(sum(len(text.tokens) for text in rendered)),
            "states": len(wanted),
            "logit_spread": float(spread),
            "score_fit": float(np.corrcoef(wanted, targets)[0, 1]),
        },
        threads,
    )


if __name__ == "__main__":
    main()
