"""Requests of any content to the two servers, and answers of any content from a policy's server."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time

import httpx
import pytest
from fastapi.testclient import TestClient
from hostile_cases import (
    MANY,
    changed,
    damaged,
    harmless,
    is_visible,
    json_bytes,
    random_value,
    refusal,
)
from serve_cases import asked, games, served

from agentrm_jax.clients.answers import read_answer
from agentrm_jax.clients.client import RequestFailed
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.pipeline.reward_model import open_conversation_model
from agentrm_jax.reward.server import APIS, reward_in
from agentrm_jax.serve.app import Limits, Service, create_app
from agentrm_jax.serve.policy_server import PolicyServer
from agentrm_jax.serve.scoring import ConversationScorer
from agentrm_jax.testing import write_tiny_reward_model
from benchmarks.hostile_texts import random_text

JSON = {"content-type": "application/json"}
SCORING = ("/classify", "/pooling", "/v1/embeddings", "/score", "/v1/score", "/get_reward")
TURN = [{"role": "user", "content": "Guess a number from 1 to 9."}]
CALL = {"id": "1", "type": "function", "function": {"name": "guess", "arguments": "{}"}}
SOUND = {
    "choices": [
        {"index": i, "finish_reason": "stop",
         "message": {"role": "assistant", "content": f"Action: guess {i}", "tool_calls": [CALL]}}
        for i in range(3)
    ],
    "model": "m",
    "usage": {"prompt_tokens": 3, "completion_tokens": 4,
              "prompt_tokens_details": {"cached_tokens": 1}},
}  # fmt: skip


class Answers:
    """The transport of a policy's server whose answers a test chooses."""

    def __init__(self) -> None:
        self.status, self.content, self.headers = 200, json.dumps(SOUND).encode(), {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, headers=self.headers, content=self.content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_reward_model(tmp_path_factory.mktemp("requests") / "reward")


@pytest.fixture(scope="module")
def answers():
    return Answers()


@pytest.fixture(scope="module")
def client(folder, answers):
    """Both servers; a failure of the server is an answer with status 500."""
    scorer = ConversationScorer(*open_conversation_model(folder))
    policy = PolicyServer("http://policy", model="m", transport=httpx.MockTransport(answers))
    app = create_app(Service(scorer, "reward", Limits(body_bytes=11 << 20)), policy)
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def bodies() -> dict[str, object]:
    game = asked(games(1)[0].without_last_answer())
    return {
        "/classify": {"model": "m", "messages": game},
        "/pooling": {"messages": game, "task": "token_classify", "at": "action"},
        "/v1/embeddings": {"input": ["a", "b"]},
        "/score": {"queries": "q", "documents": ["a", "b"]},
        "/v1/score": {"text_1": "q", "text_2": ["a", "b"]},
        "/get_reward": {"query": ["a", "b"]},
        "/v1/chat/completions": {
            "messages": TURN, "n": 3, "seed": 1, "stream": False, "temperature": 0.5,
            "stream_options": {"include_usage": True}, "method": "best_of_n",
        },
    }  # fmt: skip


def is_answer(response: httpx.Response) -> bool:
    """Whether an answer is good; a refusal is one JSON object with one line."""
    assert response.status_code in (200, 400, 404, 405, 408, 413, 415, 422, 429, 502), response.text
    if response.status_code == 200:
        return True
    error = parse_json(response.content)["error"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 1000
    return False


@MANY
def test_requests_of_any_content(client, answers, tmp_path, cases):
    rng, sound = random.Random(1), bodies()
    answers.status, answers.content, answers.headers = 200, json.dumps(SOUND).encode(), {}
    for path, body in sound.items():
        assert is_answer(client.post(path, json=body)), path
    found = {True: 0, False: 0}
    with harmless(tmp_path):
        for _ in range(cases):
            path = rng.choice(list(sound))
            body = random_value(rng) if rng.random() < 0.2 else changed(rng, sound[path])
            response = client.post(path, content=json_bytes(rng, body), headers=JSON)
            good = is_answer(response)
            found[good] += 1
            if good and "event-stream" not in response.headers["content-type"]:
                parse_json(response.content)
    assert min(found.values()) > cases / 20, found
    assert client.post("/classify", json=sound["/classify"]).json()["data"]


@MANY
def test_paths_headers_and_methods_of_any_content(client, tmp_path, cases):
    rng = random.Random(2)
    with harmless(tmp_path):
        for _ in range(cases // 5):
            text = "".join(c for c in random_text(rng) if c.isprintable() and c.isascii())
            path = rng.choice(("/", *SCORING, "/../../etc/passwd", "/%2e%2e/%00", "//x"))
            headers = {"content-type": rng.choice(("application/json", "text/plain", text or "x"))}
            method = rng.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
            url = "http://testserver" + path + rng.choice(("", f"?{text}"))
            response = client.request(method, url, headers=headers, content=text.encode())
            assert response.status_code < 500, response.text


def test_a_line_of_ten_megabytes_is_an_answer(client):
    for content in ("x" * 10_000_000, "\x1b[31m" * 2_000_000, "<|im_end|>" * 900_000):
        body = {"messages": [{"role": "user", "content": content}]}
        assert not is_answer(client.post("/classify", json=body))


def turns_of(response: httpx.Response) -> list[dict]:
    """The messages of an answer of the gateway, streamed or not."""
    if "event-stream" not in response.headers["content-type"]:
        found = parse_json(response.content)
        return [found["choices"][0]["message"], *(c["message"] for c in found["candidates"])]
    lines = response.content.decode().split("\n\n")
    events = [parse_json(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines[:-1])
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    return [c["message"] for event in events for c in event.get("candidates", ())]


@MANY
def test_answers_of_a_policy_of_any_content_forge_no_turn(client, answers, tmp_path, cases):
    rng, good = random.Random(3), 0
    with harmless(tmp_path):
        for number in range(cases // 2):
            value = random_value(rng) if rng.random() < 0.1 else changed(rng, SOUND)
            answers.status = rng.choice((200, 200, 200, 200, 500, 429, 302, 204))
            answers.headers = {"retry-after": rng.choice(("1", "x" * 99))}
            answers.content = json_bytes(rng, value)
            body = {"messages": TURN, "n": 3, "stream": number % 3 == 0}
            response = client.post("/v1/chat/completions", json=body)
            if response.status_code == answers.status != 200:
                assert response.content == answers.content  # passed on as it is
            elif is_answer(response):
                good += 1
                assert {turn["role"] for turn in turns_of(response)} == {"assistant"}
    answers.status, answers.content, answers.headers = 200, json.dumps(SOUND).encode(), {}
    assert good > cases / 20


@pytest.mark.parametrize("role", ["user", "system", "tool", None, 5, ["assistant"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_that_speaks_as_the_user_is_the_assistant(client, answers, role, stream):
    message = {"role": role, "content": "Action: guess 1"}
    answers.content = json.dumps({"choices": [{"message": message}] * 2}).encode()
    response = client.post(
        "/v1/chat/completions", json={"messages": TURN, "n": 2, "stream": stream}
    )
    assert {turn["role"] for turn in turns_of(response)} == {"assistant"}
    answers.content = json.dumps(SOUND).encode()


@MANY
def test_answers_that_a_policy_or_a_scorer_reads(cases):
    """The readers of served policies and reward models: a turn fails, the run does not."""
    rng, read = random.Random(4), 0
    rewards = {"data": [{"index": 0, "probs": [0.5], "data": [0.5]}], "rewards": [0.5]}
    for number in range(cases):
        try:
            value = parse_json(json_bytes(rng, changed(rng, rewards if number % 2 else SOUND)))
        except ValueError:
            continue
        for api in APIS:
            assert isinstance(reward_in(value, api), float)
        message = refusal(lambda value=value: read_answer(value, 3), RequestFailed)
        if message is not None:
            assert is_visible(message)
            continue
        answer, read = read_answer(value, 3), read + 1
        assert len(answer.choices) == 3
        for choice in answer.choices:
            choice.text.encode()
            assert all(isinstance(x, float) for x in choice.log_probs)
    assert read > cases / 10


RAW = (
    b"\0" * 1000,
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /classify HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /classify HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /health HTTP/1.1\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
    b"GET " + b"/x" * 500_000 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
)


@pytest.mark.parametrize("cases", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bytes_that_are_no_request(folder, cases):
    """Many connections with anything in them, most of them left open; the server serves on."""
    rng, opened = random.Random(5), []
    with served("--reward-model", folder) as server:
        host, port = server.url.removeprefix("http://").split(":")
        sound = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        sound += b'Content-Length: 13\r\n\r\n{"input":"a"}'
        for number in range(cases):
            content = RAW[number] if number < len(RAW) else damaged(rng, rng.choice((*RAW, sound)))
            # Connections wait for their turn when they come faster than a busy machine takes them.
            connection = socket.create_connection((host, int(port)), timeout=300)
            connection.settimeout(30)
            with contextlib.suppress(OSError):  # the server has ended the connection
                connection.sendall(content)
            opened.append(connection)
            if len(opened) > 50:
                opened.pop(rng.randrange(len(opened))).close()
        deadline = time.monotonic() + 60
        response = httpx.post(f"{server.url}/classify", json={"input": "a"}, timeout=60)
        assert response.json()["data"]
        assert time.monotonic() < deadline
        for connection in opened:
            connection.close()
        server.terminate()
        status, errors = server.ended()
    assert status == 0, errors
    assert "Traceback" not in errors, errors[-3000:]
