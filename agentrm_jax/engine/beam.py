"""The beam step: decode candidates, score them and keep the best, in one compiled program.

The decoder does not know reward models: it is handed a second model's pages and a readout.
B tasks, P beams of each, n candidates of each beam, D model width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.engine.decode import DecodeGroups, Replies, decode_replies
from agentrm_jax.engine.extend import ExtendRows, read_rows
from agentrm_jax.engine.pages import PageTable, Pool
from agentrm_jax.engine.sampling import Filter
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
      replies: All candidates, [B * P, n, ...].
      scores: [B, P * n] float32; -inf for duplicates and for beams that are not live.
      kept: [B, P] int32: below P * n a candidate, from there on a finished beam.
      kept_scores: [B, P] float32, best first; -inf where nothing is left to keep.
    """

    replies: Replies
    scores: jax.Array
    kept: jax.Array
    kept_scores: jax.Array


def repeated(replies: Replies, states: jax.Array) -> jax.Array:
    """Which candidates equal an earlier one of their task and state: [B, P * n] bool.

    Args:
      replies: Of B * P groups.
      states: [B, P] int32: beams with equal numbers continue the same state.
    """
    B, P = states.shape
    n, T = replies.tokens.shape[1:]
    tokens = replies.tokens.reshape(B, P * n, T)
    lengths = replies.lengths.reshape(B, P * n)
    states = jnp.repeat(states, n, axis=1)
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1)
    same &= lengths[:, :, None] == lengths[:, None]
    same &= states[:, :, None] == states[:, None]
    earlier = jnp.tril(jnp.ones((P * n, P * n), bool), k=-1)
    return jnp.any(same & earlier, axis=-1)


def score_replies(
    scorer: InStepScorer, prefix: PageTable, starts: jax.Array, replies: Replies, stop: jax.Array
) -> jax.Array:
    """The score of every reply at its stop token, behind its group's conversation: [G, n].

    Nothing is written: what is not kept leaves no trace in the pages.

    Args:
      prefix: The scorer's pages of the whole conversations.
      starts: [G] int32, position of a reply's first token.
    """
    G, n, T = replies.tokens.shape
    page_size = scorer.pool.page_size
    width = -(-(T + 1) // page_size) * page_size
    tokens = jnp.zeros((G * n, width), jnp.int32).at[:, :T].set(replies.tokens.reshape(G * n, T))
    lengths = replies.lengths.reshape(G * n)
    tokens = tokens.at[jnp.arange(G * n), lengths].set(stop)
    rows = ExtendRows(
        tokens=tokens,
        lengths=lengths + 1,
        starts=jnp.repeat(starts, n),
        prefix=jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), prefix),
        pages=jnp.zeros((G * n, 0), jnp.int32),
    )
    hidden, _ = read_rows(scorer.params, scorer.config, scorer.pool, rows)
    last = jnp.take_along_axis(hidden, lengths[:, None, None], axis=1)[:, 0]
    return scorer.readout(scorer.head, last).reshape(G, n)


@functools.partial(jax.jit, static_argnames=("config", "n", "length", "chunk", "filter"))
def beam_step(
    params,
    config: LlamaConfig,
    pool: Pool,
    groups: DecodeGroups,
    scorer: InStepScorer,
    scorer_prefix: PageTable,
    states: jax.Array,
    finished: jax.Array,
    *,
    n: int,
    length: int,
    chunk: int,
    filter: Filter,
) -> BeamChoice:
    """Decodes n candidates of each beam, scores them after their action, keeps the best P.

    Args:
      groups: B * P beams, the beams of a task side by side.
      scorer_prefix: The scorer's pages of the same conversations, last token included.
      states: [B, P] int32; beams of a task with equal numbers stand in the same state.
      finished: [B, P] float32 scores of finished beams, -inf for none: they compete for places.
    """
    replies = decode_replies(
        params, config, pool, groups, n=n, length=length, chunk=chunk, filter=filter
    )
    starts = groups.last_positions + 1
    scores = score_replies(scorer, scorer_prefix, starts, replies, groups.stop)
    B, P = finished.shape
    scores = jnp.where(groups.active[:, None], scores, -jnp.inf).reshape(B, P * n)
    scores = jnp.where(repeated(replies, states), -jnp.inf, scores)
    kept_scores, kept = jax.lax.top_k(jnp.concatenate([scores, finished], axis=1), P)
    return BeamChoice(replies=replies, scores=scores, kept=kept, kept_scores=kept_scores)
