"""Log-probabilities that a model gives to the tokens of packed rows."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.options import DEFAULT_OPTIONS, ForwardOptions
from agentrm_jax.model.parameters import Params
from agentrm_jax.runtime.sharding import constrain


def token_log_probs(
    params: Params,
    config: LlamaConfig,
    batch: Mapping[str, jax.Array],
    options: ForwardOptions = DEFAULT_OPTIONS,
) -> tuple[Float[Array, "batch length"], Bool[Array, "batch length"]]:
    """Returns log p(token[t] | earlier tokens of its sequence), and whether it is the likeliest.

    The first token of a sequence is not predicted: its log-probability is 0, and it is not the
    likeliest.

    Args:
      params: The policy.
      config: Its shape.
      batch: Packed rows (`data.packing.PackedRows`) by field. If a sequence is a tree, each branch
        must begin with the token from which its second one is predicted.
      options: See `ForwardOptions`; the parameters are used in the dtype that they have.

    Returns:
      [B, T] float32 and [B, T] bool.
    """
    tokens, segments = batch["tokens"], batch["segments"]
    hidden = llama.forward(
        params, config, tokens, batch["positions"], segments, batch.get("subtree_ends"),
        options=options,
    )  # fmt: skip
    hidden, targets = hidden[:, :-1], tokens[:, 1:]
    if options.vocab_chunks == 1:
        logits = llama.logits(params, config, hidden)
        every = jax.nn.log_softmax(logits, axis=-1)
        log_probs = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
        right = jnp.argmax(logits, axis=-1) == targets
    else:
        head = params["embed" if config.tie_embeddings else "lm_head"]
        log_probs, right = _by_vocab_chunks(
            head, hidden, targets, options.vocab_chunks, options.mesh
        )
    inside = segments[:, 1:] == segments[:, :-1]
    first = ((0, 0), (1, 0))
    return jnp.pad(log_probs * inside, first), jnp.pad(right & inside, first)


def _by_vocab_chunks(
    head: jax.Array, hidden: jax.Array, targets: jax.Array, chunks: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Returns log p of the targets and whether they are the likeliest, both [B, T].

    The vocabulary is divided rather than the positions: the gradient of a chunk of the head is then
    complete when the chunk is done, and devices exchange each chunk once in each direction.

    Args:
      head: [V, D].
      hidden: [B, T, D].
      targets: [B, T] int32.
    """
    V, D = head.shape
    size = -(-V // chunks)
    # Every chunks-th token goes together, so that no row of the head moves to another device.
    divided = (
        jnp.pad(head, ((0, size * chunks - V), (0, 0))).reshape(size, chunks, D).swapaxes(0, 1)
    )
    wide = hidden.astype(jnp.float32)  # its gradient is a sum over chunks

    @jax.checkpoint
    def step(so_far: tuple[jax.Array, ...], chunk: tuple[jax.Array, jax.Array]):
        largest, total, target_logits, best = so_far
        rows, c = constrain(chunk[0], ("vocab", "embed"), mesh), chunk[1]
        ids = jnp.arange(size) * chunks + c
        logits = llama.project(rows, wide.astype(hidden.dtype), dtype=jnp.float32)
        logits = constrain(logits, ("batch", "length", "vocab"), mesh)
        logits = jnp.where(ids < V, logits, -1e30)
        constant = jax.lax.stop_gradient(logits)
        likeliest = ids[jnp.argmax(constant, axis=-1)]
        value = constant.max(axis=-1)
        # Of equal logits the first token counts, as with all logits at once.
        better = (value > largest) | ((value == largest) & (likeliest < best))
        new = jnp.maximum(largest, value)
        total = total * jnp.exp(largest - new) + jnp.exp(logits - new[..., None]).sum(axis=-1)
        target_logits += jnp.where(ids == targets[..., None], logits, 0.0).sum(axis=-1)
        return (new, total, target_logits, jnp.where(better, likeliest, best)), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    start = (zeros - 1e30, zeros, zeros, jnp.full(targets.shape, V, jnp.int32))
    (largest, total, target_logits, best), _ = jax.lax.scan(
        step, start, (divided, jnp.arange(chunks))
    )
    return target_logits - largest - jnp.log(total), best == targets
