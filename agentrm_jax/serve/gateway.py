"""The gateway: chooses, of the turns that a policy proposes, the one with the highest score."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import shown
from agentrm_jax.serve.conversations import conversation_of_messages, message_text
from agentrm_jax.serve.errors import RequestRefused
from agentrm_jax.serve.scoring import ScoreRequest, Scores

Method = Literal["best_of_n", "adaptive"]

MOST_CANDIDATES = 64
_FIRST = 2  # candidates of the first round of `adaptive`
_OWN_KEYS = ("n", "method", "messages", "model", "stream", "stream_options")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
    """A conversation whose next turn is asked for.

    Attributes:
      messages: Plain JSON, as the client sent them.
      sampling: All other fields that the client sent, such as `temperature`, `max_tokens`, `seed`,
        `stop` and `tools`.
    """

    messages: Sequence[Mapping[str, Any]]
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A turn that a policy proposes.

    Attributes:
      message: The message of the assistant as plain JSON, with `content` and perhaps `tool_calls`.
      finish_reason: `stop`, `length` or `tool_calls`.
      score: The reward model's score after the action; None if the turn is empty.
    """

    message: Mapping[str, Any]
    finish_reason: str
    score: float | None = None

    @property
    def action(self) -> str:
        """The action of its text; the whole text if there is none."""
        text = message_text(self.message)
        return parse_action(text) or text.strip()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Proposed:
    """The answer of a policy.

    Attributes:
      candidates: The turns.
      prompt_tokens: Tokens of the conversation, counted once for each request to the policy.
      completion_tokens: Tokens of all turns together.
    """

    candidates: Sequence[Candidate]
    prompt_tokens: int
    completion_tokens: int


class TurnPolicy(Protocol):
    """A policy as the gateway uses it."""

    @property
    def name(self) -> str:
        """The name of its model."""
        ...

    async def propose(self, request: TurnRequest, n: int, number: int) -> Proposed:
        """Returns n candidates for the next turn.

        Args:
          request: The conversation and how to sample.
          n: The number of candidates.
          number: Candidates that this request has already; with a seed, others are drawn.

        Raises:
          RequestRefused: The request is wrong, or the policy cannot be reached.
          PolicyRefused: The policy's server answered with an error.
        """
        ...

    async def close(self) -> None:
        """Frees its resources."""
        ...


Score = Callable[[Sequence[ScoreRequest]], Awaitable[list[Scores]]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GatewayRequest:
    """A request to `/v1/chat/completions`.

    Attributes:
      turn: What the policy is asked.
      n: Most candidates.
      method: `best_of_n` draws n candidates; `adaptive` draws two, then doubles them up to n until
        the best one's action is that of more than half of them.
      stream: Whether the chosen turn comes as server-sent events.
      stream_usage: Whether the last event holds the usage.
    """

    turn: TurnRequest
    n: int
    method: Method
    stream: bool = False
    stream_usage: bool = False

    @classmethod
    def of_body(cls, body: Mapping[str, Any], default_n: int) -> GatewayRequest:
        """Reads a request body.

        Args:
          body: As of OpenAI's chat completions, with `n` (candidates) and `method`.
          default_n: Candidates if the body has no `n`.

        Raises:
          RequestRefused: A field is of another form.
        """
        method = body.get("method") or "best_of_n"
        if method not in ("best_of_n", "adaptive"):
            raise RequestRefused(f"method must be best_of_n or adaptive (got {shown(method)})")
        n = default_n if body.get("n") is None else body["n"]
        if type(n) is not int or not 1 <= n <= MOST_CANDIDATES:
            raise RequestRefused(f"n must be from 1 to {MOST_CANDIDATES} (got {shown(n)})")
        options = body.get("stream_options") or {}
        if not isinstance(options, dict):
            raise RequestRefused(f"stream_options must be an object (got {shown(options)})")
        conversation_of_messages(body.get("messages")).replied("")  # refuses if no turn is next
        sampling = {key: value for key, value in body.items() if key not in _OWN_KEYS}
        return cls(
            turn=TurnRequest(messages=body["messages"], sampling=sampling),
            n=n,
            method=method,
            stream=body.get("stream") is True,
            stream_usage=options.get("include_usage") is True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The chosen turn and all candidates.

    Attributes:
      candidates: All candidates with their scores.
      best: The index of the chosen one.
      prompt_tokens: Tokens of the conversation that the policy was asked with, over all rounds.
      completion_tokens: Tokens of all candidates.
      reward_tokens: Tokens of the conversations that the reward model scored.
    """

    candidates: Sequence[Candidate]
    best: int
    prompt_tokens: int
    completion_tokens: int
    reward_tokens: int

    @property
    def chosen(self) -> Candidate:
        """The candidate with the best score."""
        return self.candidates[self.best]

    def usage(self) -> dict[str, int]:
        """Returns the usage: all candidates, and what the reward model read."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "reward_model_tokens": self.reward_tokens,
        }


async def choose(policy: TurnPolicy, score: Score, request: GatewayRequest) -> Choice:
    """Returns the turn with the highest score.

    Candidates are scored after their action, before any answer. Of equal scores the first wins.

    Args:
      policy: Proposes turns.
      score: Scores conversations.
      request: The conversation, the number of candidates and the method.

    Raises:
      RequestRefused: See `TurnPolicy.propose`; or all candidates are empty (502).
      PolicyRefused: See `TurnPolicy.propose`.
    """
    candidates: list[Candidate] = []
    prompt, completion, read = 0, 0, 0
    while True:
        wanted = request.n
        if request.method == "adaptive":
            wanted = min(request.n, 2 * len(candidates) or _FIRST)
        known = len(candidates)
        proposed = await policy.propose(request.turn, wanted - known, known)
        scored, tokens = await _scored(score, request.turn, proposed.candidates)
        candidates += scored
        prompt, completion = (
            prompt + proposed.prompt_tokens,
            completion + proposed.completion_tokens,
        )
        read += tokens
        best = _best(candidates)
        agreed = request.method == "adaptive" and _agreed(candidates, best)
        if agreed or len(candidates) >= request.n:
            return Choice(
                candidates=candidates,
                best=best,
                prompt_tokens=prompt,
                completion_tokens=completion,
                reward_tokens=read,
            )


async def _scored(
    score: Score, turn: TurnRequest, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], int]:
    """Returns candidates with their scores, and the tokens of the scored conversations."""
    conversation = conversation_of_messages(list(turn.messages))
    texts = [message_text(candidate.message) for candidate in candidates]
    written = [i for i, text in enumerate(texts) if text.strip()]
    asked = [ScoreRequest(conversation=conversation.replied(texts[i])) for i in written]
    scores = dict(zip(written, await score(asked) if asked else [], strict=True))
    scored = [
        dataclasses.replace(each, score=scores[i].values[0]) if i in scores else each
        for i, each in enumerate(candidates)
    ]
    return scored, sum(each.tokens for each in scores.values())


def _best(candidates: Sequence[Candidate]) -> int:
    scores = [candidate.score for candidate in candidates]
    known = [score for score in scores if score is not None]
    if not known:
        raise RequestRefused("the policy proposed only empty turns", 502)
    return scores.index(max(known))


def _agreed(candidates: Sequence[Candidate], best: int) -> bool:
    """Whether the best candidate's action is that of more than half of the candidates."""
    counts = Counter(candidate.action for candidate in candidates)
    return 2 * counts[candidates[best].action] > len(candidates)


def completion(choice: Choice, model: str) -> dict[str, Any]:
    """Returns the answer of `/v1/chat/completions`, with `candidates` next to OpenAI's fields."""
    return {
        **_head("chat.completion", model),
        "choices": [
            {
                "index": 0,
                "message": {**choice.chosen.message, "role": "assistant"},
                "logprobs": None,
                "finish_reason": choice.chosen.finish_reason,
            }
        ],
        "usage": choice.usage(),
        **_all_candidates(choice),
    }


def chunks(choice: Choice, model: str, *, usage: bool) -> Iterator[dict[str, Any]]:
    """Yields the events of a streamed answer; the one with the finish reason holds `candidates`.

    Args:
      choice: The chosen turn.
      model: The name of the model.
      usage: Whether an event with the usage is the last.
    """
    head = _head("chat.completion.chunk", model)

    def chunk(delta: Mapping[str, Any], reason: str | None, **more: Any) -> dict[str, Any]:
        part = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [part], **more}

    message = {k: v for k, v in choice.chosen.message.items() if k != "role"}
    calls = message.pop("tool_calls", None)
    yield chunk({"role": "assistant", "content": ""}, None)
    yield chunk(message, None)
    if calls:
        yield chunk({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}, None)
    yield chunk({}, choice.chosen.finish_reason, **_all_candidates(choice))
    if usage:
        yield {**head, "choices": [], "usage": choice.usage()}


def _head(kind: str, model: str) -> dict[str, Any]:
    created = int(time.time())
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": created, "model": model
    }  # fmt: skip


def _all_candidates(choice: Choice) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "index": i,
                "message": {**each.message, "role": "assistant"},
                "finish_reason": each.finish_reason,
                "score": each.score,
            }
            for i, each in enumerate(choice.candidates)
        ],
        "chosen": choice.best,
    }
