"""The beam step: decode candidates, score them and keep the best, in one compiled program.

The decoder does not know reward models: it is handed a second model's pages and a readout. Where
the environment moves before the scores are due, the program is cut in two: `decode`, and then
`extend_select`.

B tasks, P beams of each, n candidates of each beam, D model width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.engine.cache.pages import Context, Pool
from agentrm_jax.engine.programs.decode import Decoded, DecodeRows, decode_tokens
from agentrm_jax.engine.programs.prefill import ExtendRows, extend, read_rows
from agentrm_jax.engine.programs.sampling import Filter
from agentrm_jax.model.config import LlamaConfig


@flax.struct.dataclass
class InStepScorer:
    """A model that scores candidates in-step; it shares the policy's tokens.

    Attributes:
      params: The trunk.
      head: What `readout` needs besides.
      pool: Its pages.
      config: Its shape.
      readout: (head, hidden [R, D]) to scores [R] float32.
    """

    params: Any
    head: Any
    pool: Pool
    config: LlamaConfig = flax.struct.field(pytree_node=False)
    readout: Callable[[Any, jax.Array], jax.Array] = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class BeamChoice:
    """What a beam step keeps.

    Attributes:
      scores: [B, P * n] float32; -inf for duplicates and for beams that are not live.
      kept: [B, P] int32: below P a finished beam, from there on a candidate.
      kept_scores: [B, P] float32, best first; -inf where nothing is left to keep.
    """

    scores: jax.Array
    kept: jax.Array
    kept_scores: jax.Array


def choose(scores: jax.Array, finished: jax.Array) -> BeamChoice:
    """The best P of the finished beams [B, P] and the candidates [B, C]; of equals the first."""
    kept_scores, kept = jax.lax.top_k(
        jnp.concatenate([finished, scores], axis=1), finished.shape[1]
    )
    return BeamChoice(scores=scores, kept=kept, kept_scores=kept_scores)


def repeated(decoded: Decoded, states: jax.Array) -> jax.Array:
    """Which candidates equal an earlier one of their task and state: [B, P * n] bool.

    Args:
      decoded: Of B * P * n rows.
      states: [B, P] int32: beams with equal numbers continue the same state.
    """
    B, P = states.shape
    C = decoded.lengths.shape[0] // B
    tokens = decoded.tokens.reshape(B, C, -1)
    facts = jnp.stack(  # a cut-off reply differs from one that was ended there
        [decoded.lengths.reshape(B, C), decoded.ended.reshape(B, C)], axis=-1
    )
    facts = jnp.concatenate([facts, jnp.repeat(states, C // P, axis=1)[..., None]], axis=-1)
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1)
    same &= jnp.all(facts[:, :, None] == facts[:, None], axis=-1)
    earlier = jnp.tril(jnp.ones((C, C), bool), k=-1)
    return jnp.any(same & earlier, axis=-1)


def score_replies(
    scorer: InStepScorer, context: Context, starts: jax.Array, decoded: Decoded, stop: jax.Array
) -> jax.Array:
    """The score of every reply at its stop token, behind its conversation: [R].

    Nothing is written: what is not kept leaves no trace in the pages.

    Args:
      context: The scorer's pages of the G whole conversations; R / G replies follow each.
      starts: [G] int32, position of a reply's first token.
      stop: int32 scalar, stands behind replies that were cut off.
    """
    R, T = decoded.tokens.shape
    lengths = decoded.lengths + ~decoded.ended
    tokens = jnp.zeros((R, T + 1), jnp.int32).at[:, :T].set(decoded.tokens)
    tokens = jnp.where(jnp.arange(T + 1) == lengths[:, None] - 1, stop, tokens)
    rows = ExtendRows(
        tokens=tokens, lengths=lengths, starts=starts, context=context,
        pages=jnp.zeros((R, 0), jnp.int32),
    )  # fmt: skip
    last, _ = read_rows(scorer.params, scorer.config, scorer.pool, rows)
    return scorer.readout(scorer.head, last)


@functools.partial(jax.jit, static_argnames=("config", "n", "length", "tile", "tiles", "filter"))
def beam_step(
    params,
    config: LlamaConfig,
    pool: Pool,
    rows: DecodeRows,
    scorer: InStepScorer,
    scorer_context: Context,
    states: jax.Array,
    finished: jax.Array,
    stop: jax.Array,
    *,
    n: int,
    length: int,
    tile: int,
    tiles: tuple[int, ...],
    filter: Filter,
) -> tuple[BeamChoice, Decoded, list[tuple[jax.Array, jax.Array]]]:
    """Decodes n candidates of each beam, scores them after their action, keeps the best P.

    Args:
      rows: B * P beams in one lane, the beams of a task side by side.
      scorer_context: The scorer's pages of the same conversations, last token included.
      states: [B, P] int32; beams of a task with equal numbers stand in the same state.
      finished: [B, P] float32 scores of finished beams, -inf for none: they compete for places.
      stop: int32 scalar, see `score_replies`.
      length: Most tokens of a reply.
      tile, tiles: See `decode.decode`.

    Returns:
      The choice, all candidates, and each layer's (k, v) [K, R, T, H] for `commit`.
    """
    new, decoded = decode_tokens(
        params, config, pool, rows,
        branches=(n,), length=length, tile=tile, tiles=tiles, filter=filter,
    )  # fmt: skip
    starts = rows.positions[::n] + 1
    scores = score_replies(scorer, scorer_context, starts, decoded, stop)
    scores = jnp.where(rows.active, scores, -jnp.inf).reshape(finished.shape[0], -1)
    scores = jnp.where(repeated(decoded, states), -jnp.inf, scores)
    return choose(scores, finished), decoded, new


@functools.partial(jax.jit, static_argnames=("config", "readout"))
def extend_select(
    params,
    config: LlamaConfig,
    pool: Pool,
    rows: ExtendRows,
    head,
    known: jax.Array,
    read_at: jax.Array,
    finished: jax.Array,
    *,
    readout,
) -> tuple[BeamChoice, jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Reads the observations behind each candidate, scores them and keeps the best P.

    Args:
      rows: The last tokens of candidates.
      known: [B, C] float32 scores of candidates that have been read before; NaN for those that
        `rows` hold; -inf where there is no candidate.
      read_at: [B, C] int32, the row of each of those.
      finished: [B, P] float32 scores of finished beams, -inf for none.

    Returns:
      The choice, the scores of the rows, and each layer's (k, v) [K, R, T, H] for `commit`.
    """
    new, read = extend(params, config, pool, rows, head, readout=readout)
    assert read is not None
    scores = jnp.where(jnp.isnan(known), read[read_at], known)
    return choose(scores, finished), read, new
