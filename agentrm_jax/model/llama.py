"""The Llama forward pass. One definition of a layer serves training, prefill and decoding.

`block` is handed its attention: given rotated queries and keys and the values of the new tokens, it
returns what they attend to. Dense causal attention (`forward`) is the oracle for every other kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.core.sharding import constrain
from agentrm_jax.model.config import LlamaConfig, RopeScaling
from agentrm_jax.model.parameters import Params

_QUERY_BLOCK = 128  # at least; and a sequence has at most so many blocks, which are compiled each:
_MOST_BLOCKS = 8

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(q [B, T, N, H], k [B, T, K, H], v [B, T, K, H]) to (attended [B, T, N, H], anything)."""


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """[B, T] int32 tokens to [B, T, D]."""
    return params["embed"][tokens]


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return weight * x32.astype(x.dtype)


def final_norm(params: Params, config: LlamaConfig, x: jax.Array) -> jax.Array:
    return rms_norm(x, params["final_norm"], config.norm_eps)


def logits(params: Params, config: LlamaConfig, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] after the final norm to float32 logits [..., V]."""
    if config.tie_embeddings:
        return jnp.einsum(
            "...d,vd->...v", hidden, params["embed"], preferred_element_type=jnp.float32
        )
    return jnp.einsum(
        "...d,dv->...v", hidden, params["lm_head"], preferred_element_type=jnp.float32
    )


def _stretched(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama-3.1's frequencies: low ones divided by the factor, those between interpolated."""
    turns = scaling.original_max_positions * frequencies / (2 * jnp.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    keep = jnp.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rope(positions: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine [B, T, H / 2] float32 for positions [B, T]."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates [B, T, N, H]; the first and second half of H form the pairs, in float32."""
    sin, cos = (r[:, :, None] for r in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)


def attention_input(
    weights: Params, config: LlamaConfig, x: jax.Array, rotation: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries [B, T, N, H] and keys [B, T, K, H], and values [B, T, K, H]."""
    x = rms_norm(x, weights["attention_norm"], config.norm_eps)
    q = jnp.einsum("btd,dnh->btnh", x, weights["q"])
    k = jnp.einsum("btd,dkh->btkh", x, weights["k"])
    v = jnp.einsum("btd,dkh->btkh", x, weights["v"])
    return rotate(q, rotation), rotate(k, rotation), v


def mlp(weights: Params, config: LlamaConfig, x: jax.Array) -> jax.Array:
    x = rms_norm(x, weights["mlp_norm"], config.norm_eps)
    gate = jnp.einsum("btd,df->btf", x, weights["gate"])
    up = jnp.einsum("btd,df->btf", x, weights["up"])
    return jnp.einsum("btf,fd->btd", jax.nn.silu(gate) * up, weights["down"])


def block(
    weights: Params,
    config: LlamaConfig,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> tuple[jax.Array, Any]:
    """One layer: x [B, T, D] to the next x, and what `attend` returns besides."""
    with jax.named_scope("attention"):
        q, k, v = attention_input(weights, config, x, rotation)
        attended, aux = attend(q, k, v)
        x = x + jnp.einsum("btnh,nhd->btd", attended, weights["o"])
    with jax.named_scope("mlp"):
        return x + mlp(weights, config, x), aux


def layer(params: Params, l: int) -> Params:
    """The weights of one layer, for code that does not scan."""
    return {name: value[l] for name, value in params["layers"].items()}


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention with all scores at once, softmax in float32.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      mask: [B, T, S] bool. A query without any key gives an average of the values.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * H**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(B, T, N, H)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Attention of packed sequences to themselves: each token to the earlier ones of its segment.

    Queries go in blocks that read only the keys up to their end, which halves the work; a block of
    scores also stays near the processor. Equal to `dense_attention` under the same mask.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      segments: [B, T] int32.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    # Heads before positions, once: every product below then runs along memory.
    q = (q * H**-0.5).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    size = max(_QUERY_BLOCK, -(-T // _MOST_BLOCKS))
    blocks = []
    for begin in range(0, T, size):
        end = min(begin + size, T)
        causal = jnp.arange(begin, end)[:, None] >= jnp.arange(end)
        mask = causal & (segments[:, begin:end, None] == segments[:, None, :end])
        scores = jnp.einsum(
            "bkgth,bksh->bkgts",
            q[:, :, :, begin:end],
            k[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(mask[:, None, None], scores, -1e30)
        largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - largest)
        out = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v[:, :, :end])
        blocks.append(out / weights.sum(axis=-1, keepdims=True).astype(v.dtype))
    return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def forward(
    params: Params,
    config: LlamaConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    *,
    mesh: Mesh | None = None,
    remat: bool = False,
) -> jax.Array:
    """Hidden states [B, T, D] after the final norm, for packed sequences.

    A token sees the earlier tokens of its own segment.

    Args:
      tokens: [B, T] int32.
      positions: [B, T] int32, counted within each segment.
      segments: [B, T] int32, equal within a sequence; 0 is padding.
      remat: Whether the backward pass computes each layer anew instead of keeping its insides.
    """
    rotation = rope(positions, config)
    axes = ("batch", "length", "activation_embed")

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        q = constrain(q, ("batch", "length", "heads", None), mesh)
        k = constrain(k, ("batch", "length", "kv_heads", None), mesh)
        v = constrain(v, ("batch", "length", "kv_heads", None), mesh)
        return causal_attention(q, k, v, segments), None

    def step(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        x, _ = block(weights, config, x, rotation, attend)
        return constrain(x, axes, mesh), None

    step = jax.checkpoint(step, policy=None) if remat else step
    x = constrain(embed(params, tokens), axes, mesh)
    x, _ = jax.lax.scan(step, x, params["layers"])
    return final_norm(params, config, x)
