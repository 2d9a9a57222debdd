"""Beam steps as compiled programs: decode or read candidates, score them and select the best.

The score comes from a second model with its own page pool. If candidates are scored at their
action, decoding, scoring and selecting are one program (`decode_select`). If they are scored after
their observation, another program reads the observations, scores and selects (`prefill_select`).

B tasks, P beams of each, n candidates of each beam, C = P * n candidates, V tokens.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from agentrm_jax.engine.cache.pages import Array, Context, KeyValues
from agentrm_jax.engine.programs.decode import DecodePlan, decode_tokens
from agentrm_jax.engine.programs.model import LoadedModel
from agentrm_jax.engine.programs.prefill import forward_rows, prefill
from agentrm_jax.engine.rows import Decoded, DecodeRows, PrefillRows


@flax.struct.dataclass
class BeamRows:
    """The beams of B tasks before a step.

    Attributes:
      rows: B * P sequences with n branches each in one group, the beams of a task side by side.
      scorer_context: The scorer's pages of the same sequences, including their last tokens.
      states: [B, P] int32; beams of a task with equal numbers continue the same state.
      finished: [B, P] float32 scores of finished beams, -inf for none: they compete with the
        candidates.
      stop: int32 scalar, the token that the scorer reads after a reply that was cut off.
    """

    rows: DecodeRows
    scorer_context: Context
    states: Array
    finished: Array
    stop: Array


@flax.struct.dataclass
class CandidateRows:
    """The candidates of B tasks after their observations.

    Attributes:
      rows: The last chunks of the candidates that are not scored yet.
      known: [B, C] float32 scores of candidates that have been read before; NaN for those in
        `rows`; -inf if there is no candidate.
      row_of: [B, C] int32, the row of each candidate in `rows`.
      finished: [B, P] float32 scores of finished beams, -inf for none.
    """

    rows: PrefillRows
    known: Array
    row_of: Array
    finished: Array


@flax.struct.dataclass
class BeamChoice:
    """The result of a beam step.

    Attributes:
      scores: [B, C] float32; -inf for duplicates and for beams that are not live.
      selected: [B, P] int32: a finished beam if below P, else P + the number of a candidate.
      selected_scores: [B, P] float32, best first; -inf if nothing is left to select.
    """

    scores: jax.Array
    selected: jax.Array
    selected_scores: jax.Array


def select_best(scores: jax.Array, finished: jax.Array) -> BeamChoice:
    """Selects the best P of finished beams [B, P] and candidates [B, C]; of equals the first."""
    selected_scores, selected = jax.lax.top_k(
        jnp.concatenate([finished, scores], axis=1), finished.shape[1]
    )
    return BeamChoice(scores=scores, selected=selected, selected_scores=selected_scores)


def duplicates(decoded: Decoded, states: jax.Array) -> jax.Array:
    """Returns which candidates equal an earlier one of their task and state: [B, C] bool.

    Args:
      decoded: Of B * C rows.
      states: [B, P] int32: beams with equal numbers continue the same state.
    """
    B, P = states.shape
    C = decoded.lengths.shape[0] // B
    tokens = decoded.tokens.reshape(B, C, -1)
    facts = jnp.stack(  # a reply that was cut off differs from one that was ended there
        [decoded.lengths.reshape(B, C), decoded.ended.reshape(B, C)], axis=-1
    )
    facts = jnp.concatenate([facts, jnp.repeat(states, C // P, axis=1)[..., None]], axis=-1)
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1)
    same &= jnp.all(facts[:, :, None] == facts[:, None], axis=-1)
    earlier = jnp.tril(jnp.ones((C, C), bool), k=-1)
    return jnp.any(same & earlier, axis=-1)


def score_replies(
    scorer: LoadedModel, context: Context, starts: jax.Array, decoded: Decoded, stop: jax.Array
) -> jax.Array:
    """Returns the score [R] of every reply at its stop token. Nothing is written to pages.

    Args:
      context: The scorer's pages of the G sequences; R / G replies follow each.
      starts: [G] int32, position of a reply's first token.
      stop: int32 scalar, the token after replies that were cut off.
    """
    assert scorer.readout is not None
    R, T = decoded.tokens.shape
    lengths = decoded.lengths + ~decoded.ended
    tokens = jnp.zeros((R, T + 1), jnp.int32).at[:, :T].set(decoded.tokens)
    tokens = jnp.where(jnp.arange(T + 1) == lengths[:, None] - 1, stop, tokens)
    rows = PrefillRows(
        tokens=tokens, lengths=lengths, starts=starts, context=context,
        pages=jnp.zeros((R, 0), jnp.int32),
    )  # fmt: skip
    last, _ = forward_rows(scorer, rows)
    return scorer.readout(scorer.head, last)


@functools.partial(jax.jit, static_argnames="plan")
def decode_select(
    policy: LoadedModel, scorer: LoadedModel, beams: BeamRows, plan: DecodePlan
) -> tuple[BeamChoice, Decoded, KeyValues]:
    """Decodes n candidates of each beam, scores them at their action and selects the best P.

    Returns:
      The choice, all candidates, and each layer's (k, v) [K, R, T, H] of the policy for `commit`.
    """
    rows, [n] = beams.rows, plan.branches
    new, decoded = decode_tokens(policy, rows, plan)
    starts = rows.positions[::n] + 1
    scores = score_replies(scorer, beams.scorer_context, starts, decoded, beams.stop)
    scores = jnp.where(rows.active, scores, -jnp.inf).reshape(beams.finished.shape[0], -1)
    scores = jnp.where(duplicates(decoded, beams.states), -jnp.inf, scores)
    return select_best(scores, beams.finished), decoded, new


@jax.jit
def prefill_select(
    scorer: LoadedModel, candidates: CandidateRows
) -> tuple[BeamChoice, jax.Array, KeyValues]:
    """Reads the observations of candidates, scores the candidates and selects the best P.

    Returns:
      The choice, the scores of the rows, and each layer's (k, v) [K, R, T, H] for `commit`.
    """
    new, read = prefill(scorer, candidates.rows)
    assert read is not None
    scores = jnp.where(jnp.isnan(candidates.known), read[candidates.row_of], candidates.known)
    return select_best(scores, candidates.finished), read, new
