"""Scores of conversations: requests, their tokens, and one call of the engine for all of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Prompt
from agentrm_jax.data.chat import tokens_of
from agentrm_jax.engine import front
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.pipeline.reward_model import RewardModel
from agentrm_jax.serve.conversations import Conversation, KnownPrompts, check_length
from agentrm_jax.serve.errors import RequestRefused

End = Literal["observation", "action"]

_REMEMBERED_CHARACTERS = 64_000_000
"""Characters of rendered texts after which the renderer forgets the tokens of all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """A conversation to score.

    Attributes:
      conversation: Turns; or the text of a chat template with its special tokens; or token ids.
        Texts and ids are scored at their last token.
      steps: None scores the end of the conversation. Else the end of each step is scored: `action`
        before its answer, `observation` after it (an unanswered last step before it).
    """

    conversation: Conversation | str | tuple[int, ...]
    steps: End | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The scores of one request.

    Attributes:
      values: One score, or one for each step.
      tokens: Tokens of the conversation.
      truncated_steps: Number of steps that did not fit into the context; see `RenderedState`.
    """

    values: tuple[float, ...]
    tokens: int
    truncated_steps: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Encoded:
    sequences: Sequence[TokenSequence]
    tokens: int
    truncated_steps: int


class ConversationScorer:
    """Scores conversations with one reward model. Only one thread may call it.

    All conversations of a call are read in one call of the engine. Those with equal beginnings
    read these once, also in later calls while the prefix cache holds them.

    Args:
      model: The reward model; its environment `CONVERSATION` has no prompt.
      prompts: The prompts that it was trained with, by environment.
    """

    def __init__(self, model: RewardModel, prompts: Mapping[str, Prompt]) -> None:
        self.model, self._prompts = model, KnownPrompts(prompts)
        tokenizer = model.renderer.tokenizer
        opened = tokens_of(tokenizer, tokenizer.chat.assistant_open, tokenizer.chat.stop_token)
        self._reply_begins = np.asarray(opened, np.int32)
        self._remembered = 0

    @property
    def context(self) -> int:
        """The longest conversation that the model reads, in tokens."""
        return self.model.context

    def warm_up(self) -> None:
        """Compiles the programs."""
        self.model.engine.warm_up()

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[Scores | Exception]:
        """Scores conversations together.

        Args:
          requests: Any number of them.

        Returns:
          For each request its scores, or the reason why it cannot be read.
        """
        encoded = [self._tried(request) for request in requests]
        readable = [each for each in encoded if isinstance(each, _Encoded)]
        sequences = [sequence for each in readable for sequence in each.sequences]
        with self.model.engine.usage.timed():
            values = iter(front.score(self.model.engine, sequences))
        return [
            _scores(each, [next(values) for _ in each.sequences])
            if isinstance(each, _Encoded)
            else each
            for each in encoded
        ]

    def _tried(self, request: ScoreRequest) -> _Encoded | Exception:
        try:
            encoded = self._encoded(request)
            for sequence in encoded.sequences:
                self._check_pages(sequence)
        except (UserError, RequestRefused) as error:
            return error
        return encoded

    def _encoded(self, request: ScoreRequest) -> _Encoded:
        given = request.conversation
        if isinstance(given, str):
            check_length(len(given), self.context)
            tokenizer = self.model.renderer.tokenizer
            given = (
                tuple(tokenizer.encode_marked(given))
                if tokenizer.has_marks(given)
                else Conversation(turns=(given,))
            )
        if isinstance(given, Conversation):
            return self._encoded_turns(given, request.steps)
        return self._encoded_ids(np.asarray(given, np.int32), request.steps)

    def _encoded_turns(self, conversation: Conversation, steps: End | None) -> _Encoded:
        renderer = self.model.renderer
        check_length(conversation.characters, self.context)
        self._remember(conversation.characters)
        trajectory = self._prompts.trajectory(conversation)
        shared = renderer.instruction(trajectory.task) is not None
        if steps is None:
            end = renderer.last_end(trajectory)
            chosen, truncated = [end.segments], end.truncated_steps
        else:
            if not trajectory.steps:
                raise UserError("a conversation without a reply has no steps to score")
            ends, truncated = renderer.both_ends(trajectory)
            chosen = [
                end.state if steps == "observation" and step.answered else end.action or []
                for end, step in zip(ends[1:], trajectory.steps, strict=True)
            ]
        sequences = [self._sequence(segments, shared) for segments in chosen]
        return _Encoded(sequences, sequences[-1].length, truncated)

    def _encoded_ids(self, ids: np.ndarray, steps: End | None) -> _Encoded:
        vocabulary = self.model.engine.config.vocab_size
        if not len(ids) or ids.min() < 0 or ids.max() >= vocabulary:
            raise UserError(f"token ids must be at least one, each from 0 to {vocabulary - 1}")
        if len(ids) > self.context:
            raise UserError(f"must have at most {self.context} tokens (got {len(ids)})")
        begins = self._begins_of_replies(ids)
        if steps == "action":
            stops = np.flatnonzero(ids == self.model.renderer.tokenizer.chat.stop_token) + 1
            after = np.searchsorted(stops, begins)
            ends = [int(stops[i]) if i < len(stops) else len(ids) for i in after]
        elif steps == "observation":
            ends = [*begins[1:], len(ids)]
        else:
            ends = [len(ids)]
        if not begins and steps is not None:
            raise UserError("a conversation without a reply has no steps to score")
        sequences = [self._sequence(_cut(ids[:end], begins), False) for end in ends]
        return _Encoded(sequences, len(ids), 0)

    def _begins_of_replies(self, ids: np.ndarray) -> list[int]:
        """Returns the positions at which replies begin, after the text that opens them."""
        n = len(self._reply_begins)
        if len(ids) <= n:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(ids, n)
        begins = np.flatnonzero((windows == self._reply_begins).all(axis=1)) + n
        return [int(position) for position in begins if position < len(ids)]

    def _sequence(self, segments: Sequence[np.ndarray], shared: bool) -> TokenSequence:
        """Returns a sequence with no more segments than the engine takes: the last are joined."""
        most = self.model.engine.sizes.max_segments
        if len(segments) > most:
            segments = [*segments[: most - 1], np.concatenate(segments[most - 1 :])]
        return TokenSequence(segments=segments, shared_prefix=shared)

    def _check_pages(self, sequence: TokenSequence) -> None:
        """Refuses a sequence that does not fit into the pool, which would fail for all others."""
        cache = self.model.engine.cache
        pages = sum(-(-len(segment) // cache.page_size) for segment in sequence.segments)
        if pages > cache.num_pages:
            raise UserError(
                f"the prefix cache holds {cache.num_pages} pages, and the conversation needs "
                f"{pages}; start the server with a larger --engine.cache_tokens"
            )

    def _remember(self, characters: int) -> None:
        self._remembered += characters
        if self._remembered > _REMEMBERED_CHARACTERS:
            self.model.renderer.forget()
            self._remembered = 0


def _cut(ids: np.ndarray, begins: Sequence[int]) -> list[np.ndarray]:
    """Cuts token ids where replies begin, so that equal beginnings are read once."""
    cuts = [0, *(position for position in begins if position < len(ids)), len(ids)]
    return [ids[start:end] for start, end in itertools.pairwise(cuts)]


def _scores(encoded: _Encoded, values: Sequence[float]) -> Scores | Exception:
    if not all(map(math.isfinite, values)):
        return RequestRefused(
            "the reward model's score is not finite; its weights are damaged", 500
        )
    return Scores(
        values=tuple(values), tokens=encoded.tokens, truncated_steps=encoded.truncated_steps
    )
