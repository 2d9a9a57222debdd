"""The forward pass of a Llama; one definition of a layer serves training, prefill and decoding.

Attention is an argument of a layer (`block`): a function from the rotated queries and keys and the
values of the new tokens to the attended values. `forward` is the oracle for prefill and decoding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from agentrm_jax.model.attention import causal_attention, causal_mask, dense_attention
from agentrm_jax.model.config import LlamaConfig, RopeScaling
from agentrm_jax.model.eight_bits import EightBits, take_rows
from agentrm_jax.model.lora import Adapted
from agentrm_jax.model.options import DEFAULT_OPTIONS, REMAT, ForwardOptions
from agentrm_jax.model.panels import Panels, multiply
from agentrm_jax.model.parameters import Params
from agentrm_jax.runtime.fusion import materialize
from agentrm_jax.runtime.sharding import constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""A function of q [B, T, N, H], k and v [B, T, K, H] to attended values [B, T, N, H] and a second
result of any type."""


FEW = 256
"""Largest number of positions for which `project` computes the transposed product."""


def project(
    weight: jax.Array | Adapted | Panels | EightBits,
    x: jax.Array,
    *,
    shared: int = 1,
    dtype: Any = None,
) -> jax.Array:
    """Returns the product of x with a matrix.

    For few positions, as in decoding, the product is computed with the positions last and then
    transposed, so that both sides are read in the order of memory: this halves the time on CPUs.

    Args:
      weight: [*out, *in]; may have a low-rank adapter, be stored in panels or in 8 bits. The
        compilers convert 8 bits inside of the product; it is scaled in float32 afterwards.
      x: [B, T, *in].
      shared: Number of axes of `in`.
      dtype: Dtype of the product, if it is not that of the sides.

    Returns:
      [B, T, *out].
    """
    if isinstance(weight, Adapted):
        difference = project(weight.b, project(weight.a, x, shared=shared), dtype=dtype)
        return project(weight.base, x, shared=shared, dtype=dtype) + weight.scale * difference
    if isinstance(weight, Panels):
        return multiply(weight, x.reshape(*x.shape[:-shared], -1))
    if isinstance(weight, EightBits):
        values, x = jax.lax.platform_dependent(
            weight.values, x, cpu=_held_together, default=lambda *sides: sides
        )
        whole = project(values.astype(x.dtype), x, shared=shared, dtype=jnp.float32)
        return (whole * weight.scales).astype(x.dtype if dtype is None else dtype)
    inner = [tuple(range(side.ndim - shared, side.ndim)) for side in (weight, x)]
    if x.shape[0] * x.shape[1] > FEW:
        within = ((inner[1], inner[0]), ((), ()))
        return jax.lax.dot_general(x, weight, within, preferred_element_type=dtype)
    within = ((inner[0], inner[1]), ((), ()))
    out = jax.lax.dot_general(weight, x, within, preferred_element_type=dtype)
    return jnp.moveaxis(out, (-2, -1), (0, 1))


def _held_together(values: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both sides of a product, the first as if it depended on the second.

    CPUs would else convert the weights of all layers before a loop of decoding, and keep them.
    """
    return jax.lax.optimization_barrier((values, x))


def embed(
    params: Params, tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length d_model"]:
    """Returns the embeddings of tokens."""
    return take_rows(params["embed"], tokens)


def rms_norm(
    x: Float[Array, "*batch width"], weight: Float[Array, " width"], eps: float
) -> Float[Array, "*batch width"]:
    """Returns x divided by its root mean square over the last axis; computed in float32."""
    x32 = x.astype(jnp.float32)
    x32 = _scaled(x32, jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps))
    return _scaled(x32.astype(x.dtype), weight)


@jax.custom_vjp
def _scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns x [..., D] times a scale [..., 1] or [D].

    The gradient of the scale is a sum of products. Written as a contraction it takes a tenth of the
    time on CPUs.
    """
    return x * scale


def _scaled_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, scale = kept
    rows = scale.ndim == x.ndim and scale.shape[-1] == 1

    def contracted(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum("nd,nd->n" if rows else "nd,nd->d", a, b)

    def summed(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=1 if rows else 0)

    sides = (side.reshape(-1, side.shape[-1]).astype(jnp.float32) for side in (gradient, x))
    sums = jax.lax.platform_dependent(*sides, cpu=contracted, default=summed)
    return gradient * scale, sums.reshape(scale.shape).astype(scale.dtype)


_scaled.defvjp(lambda x, scale: (x * scale, (x, scale)), _scaled_backward)


def final_norm(params: Params, config: LlamaConfig, x: jax.Array) -> jax.Array:
    """Returns x [..., D] after the norm that follows the last layer."""
    return rms_norm(x, params["final_norm"], config.norm_eps)


def logits(
    params: Params, config: LlamaConfig, hidden: Float[Array, "*batch d_model"]
) -> Float[Array, "*batch vocab"]:
    """Returns the logits of hidden states after the final norm.

    Args:
      params: The policy.
      config: Its shape.
      hidden: [..., D].

    Returns:
      [..., V] float32.
    """
    # Parameters in panels have an `lm_head` next to tied embeddings.
    tied = config.tie_embeddings and "lm_head" not in params
    flat = hidden.reshape(1, -1, hidden.shape[-1])
    return project(params["embed" if tied else "lm_head"], flat, dtype=jnp.float32).reshape(
        *hidden.shape[:-1], -1
    )


def stretched(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Returns rotary frequencies as Llama 3.1 scales them.

    Low ones are divided by the factor, high ones are kept, those between are interpolated.
    """
    turns = scaling.original_max_positions * frequencies / (2 * jnp.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    keep = jnp.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rope(
    positions: Int[Array, "batch length"], config: LlamaConfig
) -> tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]:
    """Returns the sines and cosines [B, T, H / 2] float32 of rotary embeddings."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = stretched(frequencies, config.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns x [B, T, N, H] rotated, computed in float32.

    Coordinate i of the first half of H and coordinate i of the second half are a pair.
    """
    sin, cos = (r[:, :, None] for r in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)


def attention_input(
    weights: Params,
    config: LlamaConfig,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    output_positions: Int[Array, "batch labels"] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns rotated queries, rotated keys and values of a layer.

    Args:
      weights: The layer.
      config: The model's shape.
      x: [B, T, D], the layer's input.
      rotation: Sine and cosine, from `rope`.
      output_positions: [B, L] int32, the tokens whose queries are computed; None for all.

    Returns:
      Queries [B, T, N, H] (or [B, L, N, H]), keys [B, T, K, H] and values [B, T, K, H].
    """
    x = rms_norm(x, weights["attention_norm"], config.norm_eps)
    q = project(weights["q"], _take(x, output_positions))
    k = project(weights["k"], x)
    v = project(weights["v"], x)
    if config.traits.qkv_bias:
        q, k, v = q + weights["q_bias"], k + weights["k_bias"], v + weights["v_bias"]
    if config.traits.head_norm:
        q = rms_norm(q, weights["q_norm"], config.norm_eps)
        k = rms_norm(k, weights["k_norm"], config.norm_eps)
    sin, cos = rotation
    return (
        rotate(q, (_take(sin, output_positions), _take(cos, output_positions))),
        rotate(k, rotation),
        v,
    )


def _take(x: jax.Array, positions: jax.Array | None) -> jax.Array:
    """Returns x [B, T, ...] at positions [B, L], or all of it."""
    return x if positions is None else jnp.take_along_axis(x, positions[..., None], axis=1)


@jax.custom_vjp
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns silu(gate) * up; only these two are saved for the gradient."""
    return jax.nn.silu(gate) * up


def _gated_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
    gate, up = kept
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    gradients = gradient * up * (sigmoid + silu * (1 - sigmoid)), gradient * silu
    # CPUs would recompute them, along the other axis, for the gradients of the matrices.
    stored = functools.partial(materialize, opaque_scalar=gate[(0,) * gate.ndim])
    return jax.lax.platform_dependent(gradients, cpu=stored, default=lambda gradients: gradients)


_gated.defvjp(lambda gate, up: (_gated(gate, up), (gate, up)), _gated_backward)


def mlp(weights: Params, config: LlamaConfig, x: jax.Array) -> jax.Array:
    """Returns the output [B, T, D] of a layer's feed-forward network, its norm included."""
    x = rms_norm(x, weights["mlp_norm"], config.norm_eps)
    gate = project(weights["gate"], x)
    up = project(weights["up"], x)
    return project(weights["down"], _gated(gate, up))


def block(
    weights: Params,
    config: LlamaConfig,
    x: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    attend: Attend,
    output_positions: Int[Array, "batch labels"] | None = None,
) -> tuple[jax.Array, Any]:
    """Computes one layer.

    Args:
      weights: The layer.
      config: The model's shape.
      x: [B, T, D], the layer's input.
      rotation: Sine and cosine, from `rope`.
      attend: Computes attention; only this differs between training, prefill and decoding.
      output_positions: [B, L] int32, the tokens whose output is computed; None for all.

    Returns:
      The layer's output [B, T, D] (or [B, L, D]), and the second result of `attend`.
    """
    with jax.named_scope("attention"):
        q, k, v = attention_input(weights, config, x, rotation, output_positions)
        with jax.named_scope("attend"):  # `agentrm plan` counts its traffic by these names
            attended, aux = attend(q, k, v)
        x = _take(x, output_positions) + project(weights["o"], attended, shared=2)
    with jax.named_scope("mlp"):
        return x + mlp(weights, config, x), aux


def unstacked(params: Params, *, consume: bool = False) -> Params:
    """Returns the parameters with `layers` as a tuple with one entry for each layer.

    Decoding unrolls its layers; with stacked weights every call would first copy all of them.
    Parameters that are unstacked already are returned as they are.

    Args:
      params: A policy or a trunk.
      consume: Whether the stacked layers are deleted one parameter after another, so that the model
        is never in memory twice. Nothing else may use them then.
    """
    if isinstance(params["layers"], tuple):
        return params
    stacks: Params = params["layers"]
    if not consume:
        parts = _split(stacks)
    else:
        parts = {}
        for name, stack in stacks.items():
            parts |= jax.block_until_ready(_split({name: stack}))
            jax.tree.map(lambda x: x.delete(), stack)
    layers = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    return {**params, "layers": tuple(layers)}


@jax.jit
def _split(stacks: Params) -> dict[str, tuple[Any, ...]]:
    def layer(stack: Any, l: int) -> Any:
        return jax.tree.map(lambda x: x[l], stack)

    return {
        name: tuple(layer(stack, l) for l in range(stack.shape[0]))
        for name, stack in stacks.items()
    }


def forward(
    params: Params,
    config: LlamaConfig,
    tokens: Int[Array, "batch length"],
    positions: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    subtree_ends: Int[Array, "batch length"] | None = None,
    output_positions: Int[Array, "batch labels"] | None = None,
    options: ForwardOptions = DEFAULT_OPTIONS,
) -> Float[Array, "batch outputs d_model"]:
    """Returns the hidden states of packed rows after the final norm.

    A token attends to the earlier tokens of its own segment; in a tree, to those on its path.
    The parameters are used in the dtype that they have: `options.dtype` is for the callers.

    Args:
      params: A policy, or the trunk of a reward model.
      config: Its shape.
      tokens: [B, T] int32.
      positions: [B, T] int32, counted within each segment, or along each path of a tree.
      segments: [B, T] int32, equal within a sequence; 0 is padding.
      subtree_ends: [B, T] int32 if segments are trees: for each token the end of its node's
        subtree (`model.attention.causal_attention`).
      output_positions: [B, L] int32, the tokens whose hidden states are returned; None for all. For
        the other tokens the last layer computes keys and values only.
      options: Mesh, attention backend and recomputation.

    Returns:
      [B, T, D], or [B, L, D] with `output_positions`.
    """
    mesh, remat = options.mesh, REMAT[options.remat]
    rotation = rope(positions, config)
    axes = ("batch", "length", "activation_embed")

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        q = constrain(q, ("batch", "length", "heads", None), mesh)
        k = constrain(k, ("batch", "length", "kv_heads", None), mesh)
        v = constrain(v, ("batch", "length", "kv_heads", None), mesh)
        return causal_attention(q, k, v, segments, options.backend, subtree_ends), None

    def step(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        x, _ = block(weights, config, x, rotation, attend)
        return constrain(x, axes, mesh), None

    def attend_last(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        mask = causal_mask(segments, subtree_ends, output_positions)
        return dense_attention(q, k, v, mask), None

    def last(x: jax.Array, weights: Params) -> jax.Array:
        return block(weights, config, x, rotation, attend_last, output_positions)[0]

    if remat is not None:  # within a scan nothing can be shared with the forward pass anyway
        step = jax.checkpoint(step, policy=remat, prevent_cse=False)
        last = jax.checkpoint(last, policy=remat)
    x = constrain(embed(params, tokens), axes, mesh)
    layers = params["layers"]
    if output_positions is None:
        x, _ = jax.lax.scan(step, x, layers)
    else:
        x, _ = jax.lax.scan(step, x, jax.tree.map(lambda w: w[:-1], layers))
        x = last(x, jax.tree.map(lambda w: w[-1], layers))
    return final_norm(params, config, x)
