"""The exactness of attention backends on an accelerator, for `benchmarks.device`.

Two comparisons. Attention alone, with its gradients, against softmax over all scores in float32.
And whole engines: greedy replies and scores of a small model against its dense forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.text import first_line
from agentrm_jax.model import llama
from agentrm_jax.model.attention import (
    BACKENDS,
    Backend,
    causal_attention,
    causal_mask,
    dense_attention,
)
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.model.value import readout
from benchmarks import engines, models
from benchmarks.device_parts import Device, Found, training_rows

NEAR = {"float32": 1e-3, "bfloat16": 5e-2}
"""Two log-probabilities that differ by less may be ordered either way, by dtype."""

EXACT = LlamaConfig(
    vocab_size=8192, d_model=1024, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=128,
    d_ff=2816, max_positions=4096,
)  # fmt: skip
"""The model whose engines are compared: heads as in Llama-3-8B, and otherwise small."""


def each_backend(names: tuple[str, ...], compare: Callable[[str], Found]) -> Found:
    """Compares every backend; after an error of one, the others are still compared."""
    found: Found = {}
    for name in names:
        try:
            found[name] = compare(name)
        except Exception as error:  # a kernel that is refused raises anything
            found[name] = {"error": f"{type(error).__name__}: {first_line(error)}"}
    return found


def attention(device: Device) -> Found:
    """Compares training attention on packed trees and on packed paths, and times it."""
    return {packing: _attention_of(device, packing) for packing in ("trees", "paths")}


def _attention_of(device: Device, packing: str) -> Found:
    N, K, H = (4, 2, 64) if device.tiny else (8, 2, 128)
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    names = BACKENDS if on_cpu else device.fit_backends  # of kernels, CPUs can interpret any
    rows = training_rows(device.shape, packing, device.tiny).take(np.arange(1))
    segments = jnp.asarray(rows["segments"])
    ends = None if packing == "paths" else jnp.asarray(rows["subtree_ends"])
    T = segments.shape[1]
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weights = (
        jax.random.normal(key, (1, T, heads, H), dtype)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    weights *= (segments != 0)[..., None, None]  # of padding, nothing is compared
    mask = causal_mask(segments, ends)

    def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        return dense_attention(q, k, v, mask)

    with jax.default_matmul_precision("highest"):
        wanted = jax.device_get(_with_gradients(dense, weights)(q, k, v))

    def compare(name: str) -> Found:
        backend = Backend(name=name, interpret=on_cpu)
        call = _with_gradients(
            lambda q, k, v: causal_attention(q, k, v, segments, backend, ends), weights
        )
        ours = jax.device_get(call(q, k, v))
        errors = [_error(x, y) for x, y in zip(ours, wanted, strict=True)]
        seconds, _ = device.timed(lambda _: jax.block_until_ready(call(q, k, v)))
        return {"error": max(errors), "milliseconds": 1e3 * seconds}

    return {
        "tokens": T,
        "heads": N,
        "kv_heads": K,
        "head_dim": H,
        "dtype": jnp.dtype(dtype).name,
        "backends": each_backend(names, compare),
    }


def _with_gradients(attend: Callable[..., jax.Array], weights: jax.Array):
    """A compiled function of q, k and v to a weighted sum of the output and its gradients."""

    def weighed(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v) * (weights != 0)
        return jnp.sum(weights.astype(jnp.float32) * out.astype(jnp.float32)), out

    differentiated = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))

    def call(*given: jax.Array) -> tuple[jax.Array, ...]:
        (_, out), gradients = differentiated(*given)
        return out, *gradients

    return call


def _error(x: Any, y: Any) -> float:
    """The difference relative to the size of y; a number that is not finite counts as infinity."""
    x, y = np.float64(x), np.float64(y)
    error = np.linalg.norm(x - y) / np.linalg.norm(y)
    return float(error) if np.isfinite(error) else float("inf")


def whole_engines(device: Device) -> Found:
    """Compares greedy replies and scores of engines with those of the dense forward pass."""
    config = device.shape if device.tiny else EXACT
    dtypes = ("float32",) if device.tiny else ("float32", "bfloat16")
    found: Found = {}
    for dtype in dtypes:
        # Products with 10 bits of mantissa would hide what differs between the backends.
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            found[dtype] = _engines_in(device, config, dtype)
    return found


def _engines_in(device: Device, config: LlamaConfig, dtype: str) -> Found:
    G, n, context, tokens = (2, 4, 48, 16) if device.tiny else (8, 5, 512, 64)
    params, head = models.make_params(config, jnp.dtype(dtype)), models.make_head(config)
    rng = np.random.default_rng(0)
    prompts = models.draw_tokens(config, rng, G, context)
    candidates = models.draw_tokens(config, rng, G, n, tokens)
    dense = _Dense(params, head, config)
    scores = dense.scores(prompts, candidates)
    replies: dict[str, np.ndarray] = {}

    def compare(name: str) -> Found:
        engine = engines.decoding_engine(params, config, prompts, max(8, G), tokens, name)
        greedy = engines.Branches(engine, prompts, 1, tokens, temperature=0.0)
        own = [reply for [reply] in greedy(0)]
        replies[name] = np.asarray([reply.tokens for reply in own])
        scorer = engines.Candidates(params, head, config, prompts, n, tokens, name)
        return {
            **dense.choices(prompts, replies[name], np.asarray([r.log_probs for r in own]), dtype),
            "score_error": float(np.abs(scorer(candidates) - scores).max()),
        }

    found = each_backend(device.engine_backends, compare)
    for name, tokens_of in replies.items():  # those of the first backend that has any
        expected = next(iter(replies.values()))
        found[name]["equal_replies"] = int((tokens_of == expected).all(axis=1).sum())
    return {"replies": G, "scores": scores.size, "score_spread": float(scores.std()), **found}


@dataclasses.dataclass(frozen=True)
class _Dense:
    """The dense forward pass of a model, without pages."""

    params: Params
    head: Params
    config: LlamaConfig

    def hidden(self, tokens: np.ndarray) -> jax.Array:
        """The hidden states [B, T, D] of whole sequences."""
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        return _forward(self.config, self.params, tokens, positions)

    def scores(self, prompts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The scores [G, n] of candidates [G, n, T]."""
        G, n, _ = candidates.shape
        before = np.broadcast_to(prompts[:, None], (G, n, prompts.shape[1]))
        whole = np.concatenate([before, candidates], axis=2)
        rows = [readout(self.head, self.hidden(own)[:, -1]) for own in whole]
        return np.stack(jax.device_get(rows))

    def choices(
        self, prompts: np.ndarray, replies: np.ndarray, log_probs: np.ndarray, dtype: str
    ) -> Found:
        """Counts the tokens of greedy replies that are not the likeliest, and why."""
        T = replies.shape[1]
        hidden = self.hidden(np.concatenate([prompts, replies], axis=1))[:, -T - 1 : -1]
        wanted = jax.nn.log_softmax(llama.logits(self.params, self.config, hidden))
        own = jnp.take_along_axis(wanted, replies[..., None], axis=-1)[..., 0]
        gaps = np.asarray(wanted.max(axis=-1) - own)
        return {
            "tokens": gaps.size,
            "likeliest": int((gaps == 0).sum()),
            "near_ties": int(((gaps > 0) & (gaps < NEAR[dtype])).sum()),
            "unexplained": int((gaps >= NEAR[dtype]).sum()),
            "log_prob_error": float(np.abs(np.asarray(own) - log_probs[:, :T]).max()),
        }


def _forward(config: LlamaConfig, params: Params, tokens: Any, positions: Any) -> jax.Array:
    return _compiled_forward(config)(params, tokens, positions)


def _compiled_forward(config: LlamaConfig):
    return jax.jit(
        lambda params, tokens, positions: llama.forward(
            params, config, tokens, positions, jnp.ones_like(tokens)
        )
    )
