"""Request and response bodies of the scoring endpoints, in the shapes of vLLM and OpenRLHF."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.text import admit_text, shown
from agentrm_jax.serve.conversations import Conversation, conversation_of_messages
from agentrm_jax.serve.errors import RequestRefused
from agentrm_jax.serve.scoring import ScoreRequest, Scores

_INPUTS = "a text, token ids, messages, or a list of one of these"
_NOT_SUPPORTED = {
    "activation": "values are those of the reward model and never squashed",
    "use_activation": "values are those of the reward model and never squashed",
    "softmax": "values are those of the reward model and never squashed",
    "truncate_prompt_tokens": "messages lose their oldest steps; texts and ids must fit",
    "dimensions": "a score has one dimension",
}


def scored_inputs(body: Mapping[str, Any]) -> list[ScoreRequest]:
    """Returns the conversations of a body of `/classify`, `/pooling` or `/v1/embeddings`.

    Args:
      body: With `input` (a text, token ids, or a list of these) or `messages`. For `/pooling`,
        `task: token_classify` asks for each step, at its `at`: `observation` or `action`.

    Raises:
      RequestRefused: It has neither, or a field that is not supported.
    """
    _check_fields(body)
    steps = None
    if (task := body.get("task") or "classify") == "token_classify":
        steps = body.get("at") or "observation"
        if steps not in ("observation", "action"):
            raise RequestRefused(f"at must be observation or action (got {shown(steps)})")
    elif task not in ("classify", "score", "embed"):
        raise RequestRefused(f"task must be classify or token_classify (got {shown(task)})")
    field = "messages" if body.get("messages") is not None else "input"
    conversations = _inputs(body.get(field), field)
    return [ScoreRequest(conversation=each, steps=steps) for each in conversations]


def scored_pairs(body: Mapping[str, Any]) -> list[ScoreRequest]:
    """Returns the conversations of a body of `/score`: each a query with one candidate reply.

    Args:
      body: With `queries` (or `text_1`): a text, which is one message of the user, or messages, or
        a list of these; and `documents` (or `text_2`): replies. One query goes with all replies;
        else both have the same number.

    Raises:
      RequestRefused: A field is missing or of another form.
    """
    _check_fields(body)
    queries_field = "text_1" if "text_1" in body else "queries"
    replies_field = "text_2" if "text_2" in body else "documents"
    queries = _inputs(body.get(queries_field), queries_field)
    replies = _texts(body.get(replies_field), replies_field)
    if len(queries) == 1:
        queries = queries * len(replies)
    if len(queries) != len(replies):
        raise RequestRefused(
            f"{queries_field} must hold one query or {len(replies)}, as {replies_field} "
            f"(got {len(queries)})"
        )
    conversations = []
    for query, reply in zip(queries, replies, strict=True):
        if isinstance(query, tuple):
            raise RequestRefused(f"{queries_field} must hold texts or messages, not token ids")
        opened = Conversation(turns=(query,)) if isinstance(query, str) else query
        conversations.append(opened.replied(reply))
    return [ScoreRequest(conversation=each) for each in conversations]


def queried(body: Mapping[str, Any]) -> list[ScoreRequest]:
    """Returns the conversations of a body of `/get_reward`, `{"query": [texts]}`.

    Raises:
      RequestRefused: The body has no list of texts.
    """
    return [ScoreRequest(conversation=each) for each in _inputs(body.get("query"), "query")]


def classified(scores: Sequence[Scores], model: str) -> dict[str, Any]:
    """Returns the answer of vLLM's `/classify`: one class, whose value is the score."""
    data = [
        {**_entry(i, each), "label": "LABEL_0", "probs": list(each.values), "num_classes": 1}
        for i, each in enumerate(scores)
    ]
    return _listed("classify", data, scores, model)


def pooled(scores: Sequence[Scores], model: str, *, steps: bool) -> dict[str, Any]:
    """Returns the answer of vLLM's `/pooling`: `[v]`, or `[[v], ...]` for steps."""
    data = [
        {
            **_entry(i, each),
            "object": "pooling",
            "data": [[value] for value in each.values] if steps else list(each.values),
        }
        for i, each in enumerate(scores)
    ]
    return _listed("pool", data, scores, model)


def paired(scores: Sequence[Scores], model: str) -> dict[str, Any]:
    """Returns the answer of vLLM's `/score`."""
    data = [
        {**_entry(i, each), "object": "score", "score": each.values[0]}
        for i, each in enumerate(scores)
    ]
    return _listed("score", data, scores, model)


def embedded(scores: Sequence[Scores], model: str) -> dict[str, Any]:
    """Returns the answer of `/v1/embeddings`: vectors of one number, the score."""
    data = [
        {**_entry(i, each), "object": "embedding", "embedding": list(each.values)}
        for i, each in enumerate(scores)
    ]
    return _listed("embd", data, scores, model)


def rewards(scores: Sequence[Scores]) -> dict[str, Any]:
    """Returns the answer of OpenRLHF's `/get_reward`."""
    return {"rewards": [each.values[0] for each in scores]}


def _inputs(value: Any, field: str) -> list[Conversation | str | tuple[int, ...]]:
    if isinstance(value, list) and value and not _is_one(value):
        return [_input(each, f"{field}[{i}]") for i, each in enumerate(value)]
    return [_input(value, field)]


def _input(value: Any, field: str) -> Conversation | str | tuple[int, ...]:
    if isinstance(value, str):
        return admit_text(value)
    if isinstance(value, dict) and "messages" in value:
        return conversation_of_messages(value["messages"], f"{field}.messages")
    if isinstance(value, list) and value and _is_one(value):
        if isinstance(value[0], dict):
            return conversation_of_messages(value, field)
        if all(type(token) is int and abs(token) < 1 << 31 for token in value):
            return tuple(value)
    raise RequestRefused(f"{field} must be {_INPUTS} (got {shown(value)})")


def _is_one(value: list[Any]) -> bool:
    """Whether a list is one conversation: token ids, or messages."""
    first = value[0]
    return type(first) is int or (isinstance(first, dict) and "messages" not in first)


def _texts(value: Any, field: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise RequestRefused(f"{field} must be a text or a list of texts (got {shown(value)})")
    return list(map(admit_text, texts))


def _check_fields(body: Mapping[str, Any]) -> None:
    for field, reason in _NOT_SUPPORTED.items():
        if body.get(field) not in (None, False):
            raise RequestRefused(f"{field} must be left out: {reason}")


def _entry(index: int, scores: Scores) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": index}
    if scores.truncated_steps:
        entry["truncated_steps"] = scores.truncated_steps
    return entry


def _listed(
    kind: str, data: Sequence[Mapping[str, Any]], scores: Sequence[Scores], model: str
) -> dict[str, Any]:
    tokens = sum(each.tokens for each in scores)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": list(data),
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }
