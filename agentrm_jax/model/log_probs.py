"""How likely a model finds the tokens of packed sequences."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.runtime.sharding import constrain


def token_log_probs(
    params: Params,
    config: LlamaConfig,
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    remat: str = "none",
    attention: str = "xla",
    vocab_chunks: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """log p(token[t] | tokens before it in its sequence), and whether it is the likeliest.

    The first token of a sequence has nothing before it to be predicted from: its log-probability is
    0, and it is not the likeliest.

    Args:
      batch: Packed rows (`data.packing.PackedRows`) by field. Where a sequence is a tree, each
        branch must begin with the token from which its second one is predicted.
      remat: See `llama.forward`.
      attention: See `llama.forward`.
      vocab_chunks: Parts of the vocabulary whose logits are made one after another. With more than
        one the logits of all tokens are never in memory together, nor are their gradients.

    Returns:
      [B, T] float32 and [B, T] bool.
    """
    tokens, segments = batch["tokens"], batch["segments"]
    hidden = llama.forward(
        params, config, tokens, batch["positions"], segments, batch.get("until"),
        mesh=mesh, remat=remat, attention=attention,
    )  # fmt: skip
    hidden, targets = hidden[:, :-1], tokens[:, 1:]
    if vocab_chunks == 1:
        logits = llama.logits(params, config, hidden)
        every = jax.nn.log_softmax(logits, axis=-1)
        log_probs = jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0]
        right = jnp.argmax(logits, axis=-1) == targets
    else:
        head = params["embed" if config.tie_embeddings else "lm_head"]
        log_probs, right = _by_vocab_chunks(head, hidden, targets, vocab_chunks, mesh)
    inside = segments[:, 1:] == segments[:, :-1]
    first = ((0, 0), (1, 0))
    return jnp.pad(log_probs * inside, first), jnp.pad(right & inside, first)


def _by_vocab_chunks(
    head: jax.Array, hidden: jax.Array, targets: jax.Array, chunks: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """log p of the targets and whether they are the likeliest, both [B, T].

    Chunks of the vocabulary rather than of the positions: the gradient of a chunk of the head is
    then complete when the chunk is done, and devices exchange each chunk once in each direction.

    Args:
      head: [V, D].
      hidden: [B, T, D].
      targets: [B, T] int32.
    """
    V, D = head.shape
    size = -(-V // chunks)
    # Every chunks-th token goes together, so that no row of the head moves to another device.
    parts = jnp.pad(head, ((0, size * chunks - V), (0, 0))).reshape(size, chunks, D).swapaxes(0, 1)
    wide = hidden.astype(jnp.float32)  # its gradient is a sum over chunks

    @jax.checkpoint
    def step(so_far: tuple[jax.Array, ...], part: tuple[jax.Array, jax.Array]):
        largest, total, own, best = so_far
        rows, c = constrain(part[0], ("vocab", "embed"), mesh), part[1]
        ids = jnp.arange(size) * chunks + c
        logits = llama.project(rows, wide.astype(hidden.dtype), dtype=jnp.float32)
        logits = constrain(logits, ("batch", "length", "vocab"), mesh)
        logits = jnp.where(ids < V, logits, -1e30)
        here = jax.lax.stop_gradient(logits)
        found = ids[jnp.argmax(here, axis=-1)]
        value = here.max(axis=-1)
        # Of equal ones the first token counts, as with all logits at once.
        better = (value > largest) | ((value == largest) & (found < best))
        new = jnp.maximum(largest, value)
        total = total * jnp.exp(largest - new) + jnp.exp(logits - new[..., None]).sum(axis=-1)
        own += jnp.where(ids == targets[..., None], logits, 0.0).sum(axis=-1)
        return (new, total, own, jnp.where(better, found, best)), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    start = (zeros - 1e30, zeros, zeros, jnp.full(targets.shape, V, jnp.int32))
    (largest, total, own, best), _ = jax.lax.scan(step, start, (parts, jnp.arange(chunks)))
    return own - largest - jnp.log(total), best == targets
