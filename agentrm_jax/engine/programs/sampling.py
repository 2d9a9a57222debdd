"""Sampling of the next token: temperature and filters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from agentrm_jax.core.fields import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """The settings of `Sampling` that are compiled into the program."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Parameters of the sampling of replies.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_k: Keeps the k likeliest tokens; 0 keeps all.
      top_p: Keeps the likeliest tokens that together reach this probability.
      min_p: Keeps tokens with at least this fraction of the likeliest token's probability.
      max_tokens: Longest reply, in tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        check_fields(
            self,
            temperature="[0, inf)",
            top_k="[0, inf)",
            top_p="(0, 1]",
            min_p="[0, 1)",
            max_tokens="[1, inf)",
        )

    @property
    def filter(self) -> Filter:
        """The settings that are compiled into the program."""
        return Filter(top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)


def keep(logits: jax.Array, filter: Filter) -> jax.Array:
    """Returns logits [..., V] float32 with excluded tokens set to -inf. Ties are kept."""
    if filter.top_k:
        kth = jax.lax.top_k(logits, min(filter.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if filter.top_p < 1.0:
        ordered = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        last = jnp.sum(before < filter.top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(ordered, last, axis=-1)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if filter.min_p > 0.0:
        floor = logits.max(axis=-1, keepdims=True) + jnp.log(filter.min_p)
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
    return logits


def largest(x: jax.Array) -> jax.Array:
    """Returns the `argmax` over the last axis, int32, the first of equals.

    It takes two plain reductions, which CPUs vectorize. On GPUs it is one: what is computed from
    the logits, such as noise, would else be written to memory for the second.
    """

    def in_two(x: jax.Array) -> jax.Array:
        equal = x == x.max(axis=-1, keepdims=True)
        indices = jnp.arange(x.shape[-1], dtype=jnp.int32)
        return jnp.min(jnp.where(equal, indices, x.shape[-1] - 1), -1)

    def in_one(x: jax.Array) -> jax.Array:
        return jnp.argmax(x, axis=-1).astype(jnp.int32)

    return jax.lax.platform_dependent(x, cuda=in_one, default=in_two)


def sample(
    keys: jax.Array, logits: jax.Array, temperature: jax.Array, filter: Filter
) -> tuple[jax.Array, jax.Array]:
    """Samples one token for each row.

    Args:
      keys: [R] random keys: a row's token depends only on its own key and logits.
      logits: [R, V] float32.
      temperature: [R] float32; 0 takes the likeliest token.

    Returns:
      Tokens [R] int32 and their log-probabilities [R] at temperature 1, before any filter.
    """
    likeliest = largest(logits)

    def draw() -> jax.Array:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], logits.dtype))(keys)
        scale = jnp.maximum(temperature, 1e-6)[:, None]
        drawn = largest(keep(logits / scale, filter) + noise)
        return jnp.where(temperature > 0, drawn, likeliest)

    tokens = jax.lax.cond(jnp.any(temperature > 0), draw, lambda: likeliest)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
