"""Answers of `/v1/chat/completions` and `/v1/completions`, read without trust.

Missing fields are empty, malformed ones make the turn fail: nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.clients.client import RequestFailed
from agentrm_jax.core.text import admit_text, printable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One text of an answer.

    Attributes:
      text: The text; empty if it failed.
      log_probs: Log-probability of each token; empty if the answer has none.
      tokens: The text of each of these tokens.
      token_ids: Ids of the tokens by the server; empty if the answer has none.
      stopped: Whether the model ended the text; False if it reached the length limit.
      failure: The reason why there is no text.
    """

    text: str = ""
    log_probs: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    stopped: bool = True
    failure: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer.

    Attributes:
      choices: As many as requested; missing ones have failed.
      model: Name of the model that answered; empty if the answer has none.
      prompt_tokens: Tokens of the prompt; None if the answer has no count.
      cached_tokens: Tokens of the prompt that were read from a prefix cache.
      completion_tokens: Decoded tokens by the server's count, which may be that of one choice.
    """

    choices: tuple[Choice, ...]
    model: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None


def read_answer(value: Any, n: int) -> Answer:
    """Returns an answer of a chat or a completions endpoint.

    Args:
      value: The JSON value.
      n: Number of texts that were requested.

    Raises:
      RequestFailed: It has another form.
    """
    choices = value.get("choices") if isinstance(value, Mapping) else None
    if not isinstance(choices, list):
        message = _error_in(value)
        raise RequestFailed(f"the answer has no choices{message}")
    parsed = [_choice(choice) for choice in _in_order(choices)[:n]]
    missing = f"the server returned {len(parsed)} of {n} choices"
    parsed += [Choice(failure=missing)] * (n - len(parsed))
    model, usage = value.get("model"), value.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = token_count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    return Answer(
        choices=tuple(parsed),
        model=printable(admit_text(model, 200)) if isinstance(model, str) else "",
        prompt_tokens=token_count(usage.get("prompt_tokens")),
        cached_tokens=cached or 0,
        completion_tokens=token_count(usage.get("completion_tokens")),
    )


def _in_order(choices: Sequence[Any]) -> list[Any]:
    """The choices in the order of their indices, if all indices differ."""
    indices = [c.get("index") if isinstance(c, Mapping) else None for c in choices]
    if all(type(i) is int for i in indices) and len(set(indices)) == len(indices):
        return [choice for _, choice in sorted(zip(indices, choices, strict=True), key=_first)]
    return list(choices)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _choice(choice: Any) -> Choice:
    if not isinstance(choice, Mapping):
        return Choice(failure="a choice is no object")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if not isinstance(text, str):
        return Choice(failure="a choice has no text" + _reasoning_in(message))
    if not text.strip():
        return Choice(failure="the reply is empty" + _reasoning_in(message))
    log_probs, tokens, ids = _log_probs(choice.get("logprobs"))
    for key in ("token_ids", "tokens"):
        if (given := _ids(choice.get(key))) is not None:
            ids = given
    return Choice(
        text=admit_text(text),
        log_probs=log_probs,
        tokens=tokens,
        token_ids=ids,
        stopped=choice.get("finish_reason") != "length",
    )


def _log_probs(value: Any) -> tuple[tuple[float, ...], tuple[str, ...], tuple[int, ...]]:
    """Log-probabilities, texts and ids of tokens in either of the two forms; empty if malformed."""
    nothing = ((), (), ())
    if not isinstance(value, Mapping):
        return nothing
    entries = value.get("content")
    if isinstance(entries, list):  # the form of chat
        if not all(isinstance(entry, Mapping) for entry in entries):
            return nothing
        numbers = [entry.get("logprob") for entry in entries]
        tokens = [entry.get("token") for entry in entries]
        ids = _ids([entry.get("id") for entry in entries]) or ()
    else:
        numbers, tokens, ids = value.get("token_logprobs"), value.get("tokens"), ()
    if not isinstance(numbers, list) or not isinstance(tokens, list):
        return nothing
    if len(numbers) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        return nothing
    if not all(isinstance(x, int | float) and type(x) is not bool and _finite(x) for x in numbers):
        return nothing
    return tuple(map(float, numbers)), tuple(map(admit_text, tokens)), ids


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        return False


def _ids(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        return None
    return tuple(value)


def token_count(value: Any) -> int | None:
    """Returns a number of tokens in an answer; None if the value is not one.

    Args:
      value: Any JSON value.
    """
    return value if type(value) is int and 0 <= value < 2**53 else None


def _reasoning_in(message: Any) -> str:
    if isinstance(message, Mapping):
        for key in ("reasoning_content", "reasoning"):
            if isinstance(message.get(key), str) and message[key]:
                return ": the model only reasoned; raise max_tokens or turn reasoning off"
    return ""


def _error_in(value: Any) -> str:
    error = value.get("error") if isinstance(value, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return f" ({printable(admit_text(message, 200))})" if isinstance(message, str) else ""
