"""The HTTP application: endpoints of the reward model and of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.core.text import described, first_line
from agentrm_jax.serve import gateway, shapes
from agentrm_jax.serve.batching import BatchThread
from agentrm_jax.serve.disconnects import ClientGone, while_connected
from agentrm_jax.serve.errors import PolicyRefused, RequestRefused
from agentrm_jax.serve.metrics import CONTENT_TYPE, Metrics, Values
from agentrm_jax.serve.scoring import ConversationScorer, ScoreRequest, Scores

Body = dict[str, Any]
_Parse = Callable[[Body], list[ScoreRequest]]
_Answer = Callable[[list[Scores], Body], Body]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a server.

    Attributes:
      waiting: Most conversations that wait to be scored; more are refused with status 429.
      body_bytes: Longest body of a request. The open requests together may have 16 times as much.
      body_seconds: Seconds in which a body must arrive.
      candidates: Candidates of the gateway if a request has no `n`.
    """

    waiting: int = 4096
    body_bytes: int = 16 << 20
    body_seconds: float = 60.0
    candidates: int = 5


class Json(JSONResponse):
    """JSON in which lone surrogates, which a policy's server may send, do not fail."""

    def render(self, content: Any) -> bytes:
        return json_text(content, separators=(",", ":")).encode()


class Service:
    """A reward model in a thread of its own, and the endpoints' answers.

    Args:
      scorer: Scores conversations.
      name: The name of the model.
      limits: The limits of the server.
    """

    def __init__(self, scorer: ConversationScorer, name: str, limits: Limits) -> None:
        self.scorer, self.name, self.limits = scorer, name, limits
        self.open_bytes = 0  # of the bodies of all open requests
        self.thread: BatchThread[ScoreRequest, Scores] = BatchThread(
            scorer, name="reward model", most_waiting=limits.waiting
        )

    async def scores(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Returns the scores of conversations, in order.

        Args:
          requests: The conversations. Those of all waiting requests are scored in one call.

        Raises:
          RequestRefused: The queue is full, or a conversation cannot be read.
        """
        futures = map(asyncio.wrap_future, self.thread.submit(requests))
        answers = await asyncio.gather(*futures, return_exceptions=True)
        for number, answer in enumerate(answers):
            if isinstance(answer, UserError):
                place = f"conversation {number}: " if len(answers) > 1 else ""
                raise RequestRefused(f"{place}{answer}") from None
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, Scores)]

    def values(self) -> Values:
        """Returns what `/metrics` shows of the model."""
        usage = self.scorer.model.engine.usage
        return {
            "conversations_total": (
                "counter", "Conversations scored.", lambda: self.thread.answered
            ),
            "engine_calls_total": (
                "counter", "Calls of the engine; each scores all that wait.",
                lambda: self.thread.calls,
            ),
            "tokens_read_total": (
                "counter", "Tokens that the engine has read; cached ones are not read.",
                lambda: usage.read,
            ),
            "engine_seconds_total": (
                "counter", "Seconds of the engine's calls.", lambda: usage.seconds
            ),
            "conversations_waiting": (
                "gauge", "Conversations that wait for the engine.", lambda: self.thread.waiting
            ),
            "peak_memory_bytes": (
                "gauge", "Largest resident memory of the process.",
                lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            ),
        }  # fmt: skip


def create_app(
    service: Service, policy: gateway.TurnPolicy | None = None, api_key: str = ""
) -> FastAPI:
    """Returns the application.

    Args:
      service: The reward model.
      policy: The policy of the gateway `/v1/chat/completions`; None: no gateway.
      api_key: The key that requests must send as `Authorization: Bearer KEY`; empty asks for none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield  # after the last request is answered
        if policy is not None:
            await policy.close()
        await asyncio.to_thread(service.thread.close)

    app = FastAPI(
        lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    metrics = Metrics(service.values())
    _add_information(app, service, policy, metrics)
    _add_scoring(app, service)
    if policy is not None:
        _add_gateway(app, service, policy)
    _add_errors(app)
    paths = frozenset(path for route in app.routes if (path := getattr(route, "path", "")))
    app.add_middleware(_Gate, api_key=api_key, metrics=metrics, paths=paths)
    return app


def _add_information(
    app: FastAPI, service: Service, policy: gateway.TurnPolicy | None, metrics: Metrics
) -> None:
    began = int(time.time())

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Body:
        return {"status": "ok"}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", response_model=None)
    async def models() -> Response:
        model = {"object": "model", "created": began, "owned_by": "agentrm"}
        data = [{"id": service.name, **model, "max_model_len": service.scorer.context}]
        if policy is not None:
            data.append({"id": policy.name, **model})
        return Json({"object": "list", "data": data})


def _add_scoring(app: FastAPI, service: Service) -> None:
    def add(path: str, parse: _Parse, answer: _Answer) -> None:
        async def endpoint(request: Request) -> Response:
            async with _read_body(request, service) as body:
                scores = await while_connected(request, service.scores(parse(body)))
                return Json(answer(scores, body))

        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)

    def pooled(scores: list[Scores], body: Body) -> Body:
        return shapes.pooled(scores, service.name, steps=body.get("task") == "token_classify")

    def one_each(body: Body) -> list[ScoreRequest]:
        if body.get("task") == "token_classify":
            raise RequestRefused("task token_classify is answered by /pooling")
        return shapes.scored_inputs(body)

    def paired(scores: list[Scores], body: Body) -> Body:
        return shapes.paired(scores, service.name)

    add("/classify", one_each, lambda scores, body: shapes.classified(scores, service.name))
    add("/v1/embeddings", one_each, lambda scores, body: shapes.embedded(scores, service.name))
    add("/pooling", shapes.scored_inputs, pooled)
    add("/score", shapes.scored_pairs, paired)
    add("/v1/score", shapes.scored_pairs, paired)
    add("/get_reward", shapes.queried, lambda scores, body: shapes.rewards(scores))


def _add_gateway(app: FastAPI, service: Service, policy: gateway.TurnPolicy) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def complete(request: Request) -> Response:
        async with _read_body(request, service) as body:
            asked = gateway.GatewayRequest.of_body(body, service.limits.candidates)
            choosing = gateway.choose(policy, service.scores, asked)
            choice = await while_connected(request, choosing)
        if not asked.stream:
            return Json(gateway.completion(choice, policy.name))
        events = gateway.chunks(choice, policy.name, usage=asked.stream_usage)
        return StreamingResponse(_event_lines(events), media_type="text/event-stream")


def _event_lines(events: Iterator[Body]) -> Iterator[str]:
    for event in events:
        yield f"data: {json.dumps(event)}\n\n"
    yield "data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def _read_body(request: Request, service: Service) -> AsyncIterator[Body]:
    """Reads the JSON object that a request sent; its bytes count as open within the block.

    Raises:
      RequestRefused: It is too long (413) or too slow (408), is not sent as JSON (415), is no JSON
        object of bounded depth, or the open requests are too large together (429).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # pages of other sites can send everything else from a browser
        raise RequestRefused("send the body as Content-Type: application/json", 415)
    content = bytearray()
    try:
        try:
            async with asyncio.timeout(service.limits.body_seconds):
                async for part in request.stream():
                    content += part
                    service.open_bytes += len(part)
                    _check_size(len(content), service)
        except TimeoutError:
            raise RequestRefused("the body did not arrive in time", 408) from None
        except ClientDisconnect:
            raise RequestRefused("the body ends too early") from None
        yield _object_of(bytes(content))
    finally:
        service.open_bytes -= len(content)


def _check_size(size: int, service: Service) -> None:
    most = service.limits.body_bytes
    if size > most:
        raise RequestRefused(f"the body must have at most {most:,} bytes", 413)
    if service.open_bytes > 16 * most:
        raise RequestRefused(
            "the open requests are too large together; try again later", 429, {"Retry-After": "1"}
        )


def _object_of(content: bytes) -> Body:
    try:
        body = parse_json(content)
    except ValueError as error:
        raise RequestRefused(f"the body is not JSON: {first_line(error)}") from None
    if not isinstance(body, dict):
        raise RequestRefused("the body must be a JSON object")
    return body


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestRefused)
    async def refused(request: Request, error: RequestRefused) -> Response:
        return _refusal(error)

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return _refusal(RequestRefused(str(error)))

    @app.exception_handler(PolicyRefused)
    async def passed_on(request: Request, error: PolicyRefused) -> Response:
        return Response(error.content, error.status, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # for `/metrics` only; 499 is the status that nginx counts

    @app.exception_handler(404)
    async def unknown(request: Request, error: Exception) -> Response:
        return _refusal(RequestRefused(f"no endpoint {request.url.path[:100]}", 404))

    @app.exception_handler(405)
    async def other_method(request: Request, error: Exception) -> Response:
        return _refusal(RequestRefused(f"{request.url.path[:100]} takes another method", 405))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _refusal(RequestRefused(f"the server failed ({described(error)})", 500))


def _refusal(error: RequestRefused) -> Response:
    return Json(error.body(), error.status, headers=error.headers)


class _Gate:
    """Asks for the key, and counts requests. `/health` needs no key.

    Args:
      app: The application.
      api_key: The key; empty asks for none.
      metrics: Where requests are counted.
      paths: The endpoints that are counted by name.
    """

    def __init__(self, app: ASGIApp, api_key: str, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths
        self._expected = f"Bearer {api_key}".encode() if api_key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._expected and path != "/health" and not self._has_key(scope):
                error = RequestRefused("send the API key as Authorization: Bearer KEY", 401)
                await _refusal(error)(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        finally:
            self._metrics.observe(path, status, time.perf_counter() - began)

    def _has_key(self, scope: Scope) -> bool:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        return hmac.compare_digest(headers.get(b"authorization", b""), self._expected)
