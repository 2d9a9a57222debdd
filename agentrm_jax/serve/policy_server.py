"""A policy on an OpenAI-compatible server, for the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from agentrm_jax.clients.answers import token_count
from agentrm_jax.clients.config import server_url
from agentrm_jax.clients.keys import masked
from agentrm_jax.core.addresses import is_loopback
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.core.text import described, first_line
from agentrm_jax.serve.conversations import message_text
from agentrm_jax.serve.errors import PolicyRefused, RequestRefused
from agentrm_jax.serve.gateway import Candidate, Proposed, TurnRequest

_MOST_BYTES = 64 << 20
_PASSED_HEADERS = ("content-type", "retry-after")
_REFUSES_N = (400, 422)
_JSON = {"Content-Type": "application/json"}


class PolicyServer:
    """A policy that a server of OpenAI's chat completions answers for.

    Errors of the server are passed on as they are. A server that refuses `n` (400, 422), or answers
    with fewer turns, gets a request for each turn from then on; nothing else is asked again.

    Args:
      url: Its address, with or without `/v1`.
      model: The name of its model; empty takes the first that it lists.
      key: Its API key; empty sends none.
      timeout: Seconds until an answer must be there.
      transport: The transport of the HTTP client; None is the network.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: str = "",
        timeout: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._model, self._key, self._takes_n = server_url(url), model, key, True
        self._client = httpx.AsyncClient(
            base_url=f"{self._url}/v1",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=64),
            trust_env=not is_loopback(self._url),
            transport=transport,
        )

    @property
    def name(self) -> str:
        """The name of its model, or its address until the name is known."""
        return self._model or self._url

    async def propose(self, request: TurnRequest, n: int, number: int) -> Proposed:
        """Returns n candidates as `TurnPolicy.propose` does.

        Raises:
          RequestRefused: The server cannot be reached (502, 504), or its answer is malformed (502).
          PolicyRefused: The server answered with an error.
        """
        if not self._model:
            self._model = await self._first_model()
        if n == 1 or not self._takes_n:
            return await self._singly(request, n, number)
        try:
            proposed = await self._ask(request, n, number)
        except PolicyRefused as error:
            if error.status not in _REFUSES_N:
                raise
            proposed = await self._ask(request, 1, number)
        if (known := len(proposed.candidates)) < n:
            self._takes_n = False
            return _joined([proposed, await self._singly(request, n - known, number + known)])
        return proposed

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _singly(self, request: TurnRequest, n: int, number: int) -> Proposed:
        asked = (self._ask(request, 1, number + i) for i in range(n))
        return _joined(await asyncio.gather(*asked))

    async def _ask(self, request: TurnRequest, n: int, number: int) -> Proposed:
        body = {**request.sampling, "model": self._model, "messages": list(request.messages)}
        if n > 1:
            body["n"] = n
        if type(seed := request.sampling.get("seed")) is int:
            body["seed"] = seed + number
        return _proposed(await self._call("POST", "/chat/completions", body), n)

    async def _first_model(self) -> str:
        answer = await self._call("GET", "/models", None)
        models = answer.get("data")
        first = models[0] if isinstance(models, list) and models else {}
        name = first.get("id") if isinstance(first, dict) else None
        if not isinstance(name, str):
            raise RequestRefused("the policy's server lists no model: give --policy-model", 502)
        return name

    async def _call(self, method: str, path: str, body: Any) -> Mapping[str, Any]:
        """Returns the server's answer, a JSON object."""
        try:
            status, content, headers = await self._exchange(method, path, body)
        except httpx.TimeoutException as error:
            raise RequestRefused(
                f"the policy's server is too slow ({described(error)})", 504
            ) from None
        except httpx.HTTPError as error:
            reason = described(error)
            raise RequestRefused(f"the policy's server cannot be reached ({reason})", 502) from None
        if status >= 400:
            raise PolicyRefused(status, content, headers)
        try:
            answer = parse_json(content)
        except ValueError as error:
            raise _malformed(f"not JSON: {first_line(error)}") from None
        if status != 200 or not isinstance(answer, dict):
            raise _malformed(f"status {status}, no JSON object")
        return answer

    async def _exchange(
        self, method: str, path: str, body: Any
    ) -> tuple[int, bytes, dict[str, str]]:
        sent: dict[str, Any] = {}
        if body is not None:
            sent = {"content": json_text(body).encode(), "headers": _JSON}
        async with self._client.stream(method, path, **sent) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise _malformed(f"more than {_MOST_BYTES:,} bytes")
            headers = ((k, response.headers.get(k, "")) for k in _PASSED_HEADERS)
            passed = {k: v for k, v in headers if v.isascii() and v.isprintable() and v}
            return response.status_code, masked(bytes(content), self._key), passed


def _proposed(answer: Mapping[str, Any], n: int) -> Proposed:
    """The turns of an answer, at most n.

    Raises:
      RequestRefused: It holds no turn, or a turn of another form.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _malformed("it has no choices")
    candidates = []
    for choice in choices[:n]:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise _malformed("a choice has no message")
        if message.get("content") is None and not message.get("tool_calls"):
            message = {**message, "content": ""}
        try:
            message_text(message)
        except RequestRefused as error:
            raise _malformed(error.message) from None
        reason = choice.get("finish_reason")
        reason = reason if isinstance(reason, str) else "stop"
        candidates.append(Candidate(message=message, finish_reason=reason))
    usage = answer.get("usage")
    return Proposed(
        candidates=candidates,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int:
    return (token_count(usage.get(name)) if isinstance(usage, dict) else None) or 0


def _joined(parts: Sequence[Proposed]) -> Proposed:
    return Proposed(
        candidates=[candidate for part in parts for candidate in part.candidates],
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        completion_tokens=sum(part.completion_tokens for part in parts),
    )


def _malformed(reason: str) -> RequestRefused:
    return RequestRefused(f"the policy's server answered in another form: {reason}", 502)
