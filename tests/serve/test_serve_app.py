"""The scoring endpoints: shapes that clients parse, limits, the key and the metrics."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest
from fastapi.testclient import TestClient
from serve_cases import asked, games

from agentrm_jax.pipeline.reward_model import RewardModel, open_conversation_model
from agentrm_jax.serve.app import Limits, Service, create_app
from agentrm_jax.serve.batching import BatchThread
from agentrm_jax.serve.errors import RequestRefused
from agentrm_jax.serve.metrics import Metrics
from agentrm_jax.serve.scoring import ConversationScorer
from agentrm_jax.testing import write_tiny_reward_model

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_reward_model(tmp_path_factory.mktemp("app") / "reward")


@pytest.fixture(scope="module")
def scorer(folder):
    return ConversationScorer(*open_conversation_model(folder))


@pytest.fixture
def client(scorer):
    with TestClient(create_app(Service(scorer, "reward", Limits()))) as client:
        yield client


@pytest.fixture(scope="module")
def expected(folder):
    """Games, and the score of each after its last action."""
    played = games()
    scored = RewardModel.load(folder).score_steps(played)
    return played, [each.after_action[-1] for each in scored]


def blind(game) -> list[dict]:
    return asked(game.without_last_answer())


def said(response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def test_classify_as_vllm_answers_and_verl_parses(client, expected):
    played, scores = expected
    for game, score in zip(played, scores, strict=True):
        response = client.post("/classify", json={"model": "m", "messages": blind(game)})
        found = json.loads(response.text, object_hook=lambda o: SimpleNamespace(**o))
        assert found.data[-1].probs[-1] == pytest.approx(score, abs=1e-5)  # verl's line
        assert found.data[-1].num_classes == 1
        assert found.usage.total_tokens == found.usage.prompt_tokens > 10
        assert (found.object, found.model) == ("list", "reward")


def test_pooling_gives_the_score_or_one_of_each_step(client, folder, expected):
    played, _ = expected
    for game, each in zip(played, RewardModel.load(folder).score_steps(played), strict=True):
        body = {"messages": asked(game)}
        [one] = client.post("/pooling", json=body).json()["data"]
        assert one == {"index": 0, "object": "pooling", "data": one["data"]}
        assert one["data"] == [pytest.approx(each.after_observation[-1], abs=1e-5)]
        body["task"] = "token_classify"
        [steps] = client.post("/pooling", json=body).json()["data"]
        assert steps["data"] == [[pytest.approx(v, abs=1e-5)] for v in each.after_observation]
        [steps] = client.post("/pooling", json={**body, "at": "action"}).json()["data"]
        assert steps["data"] == [[pytest.approx(v, abs=1e-5)] for v in each.after_action]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("fields", [("queries", "documents"), ("text_1", "text_2")])
def test_score_reads_replies_to_one_conversation(client, expected, path, fields):
    [game, *_], [score, *_] = expected
    *before, reply = blind(game)
    body = {fields[0]: {"messages": before}, fields[1]: [reply["content"], "Action: wait"]}
    data = client.post(path, json=body).json()["data"]
    assert [entry["index"] for entry in data] == [0, 1]
    assert data[0]["score"] == pytest.approx(score, abs=1e-5)
    assert data[1]["score"] != pytest.approx(score, abs=1e-4)
    pairs = {fields[0]: ["Hi.", "Ho."], fields[1]: ["Action: a", "Action: b"]}
    two = [entry["score"] for entry in client.post(path, json=pairs).json()["data"]]
    single = [
        client.post(path, json={fields[0]: q, fields[1]: d}).json()["data"][0]["score"]
        for q, d in zip(pairs[fields[0]], pairs[fields[1]], strict=True)
    ]
    assert two == pytest.approx(single, abs=1e-5)


def test_get_reward_as_openrlhf_parses(client, scorer):
    texts = ["<|begin|><|user|>Guess.<|assistant|>Action: guess 3<|end|>", "<|begin|>Hello."]
    answer = client.post("/get_reward", json={"query": texts, "prompts": texts, "labels": None})
    rewards = answer.json()["rewards"]  # OpenRLHF's line
    classes = client.post("/classify", json={"input": texts}).json()["data"]
    assert rewards == [entry["probs"][0] for entry in classes]
    ids = [scorer.model.renderer.tokenizer.encode_marked(text) for text in texts]
    by_ids = client.post("/classify", json={"input": ids}).json()["data"]
    assert rewards == pytest.approx([entry["probs"][0] for entry in by_ids], abs=1e-5)
    one = client.post("/classify", json={"input": ids[0]}).json()["data"]
    assert [entry["probs"][0] for entry in one] == pytest.approx(rewards[:1], abs=1e-5)


def test_embeddings_and_models_with_the_openai_client(client, expected):
    [game, *_], [score, *_] = expected
    ours = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)
    [model] = ours.models.list().data
    assert (model.id, model.object) == ("reward", "model")
    found = ours.embeddings.create(model=model.id, input=[blind(game)])  # type: ignore[list-item]
    assert found.data[0].embedding[-1] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/classify", {}, "input must be a text, token ids, messages, or a list of one of these"),
        ("/classify", {"input": [1, "a"]}, "input must be a text, token ids, messages"),
        ("/classify", {"input": ["a", 1]}, "input[1] must be a text, token ids, messages"),
        ("/classify", {"input": []}, "input must be a text, token ids, messages"),
        ("/classify", {"input": [1 << 70]}, "input must be a text, token ids, messages"),
        ("/classify", {"input": [[5], [-1]]}, "conversation 1: token ids must be at least one"),
        ("/classify", {"input": [5] * 513}, "must have at most 512 tokens (got 513)"),
        ("/classify", {"messages": [{"role": "user"}]}, "messages[0].content must be a text"),
        ("/classify", {"input": "a", "use_activation": True}, "use_activation must be left out"),
        ("/classify", {"input": "a", "task": "token_classify"}, "task token_classify is answered"),
        ("/pooling", {"input": "a", "task": "rank"}, "task must be classify or token_classify"),
        ("/pooling", {"input": "a", "task": "token_classify"}, "a conversation without a reply"),
        (
            "/pooling",
            {"input": "a", "task": "token_classify", "at": "x"},
            "at must be observation or action (got 'x')",
        ),
        ("/score", {"queries": "a"}, "documents must be a text or a list of texts (got None)"),
        ("/score", {"queries": ["a", "b"], "documents": ["c"]}, "queries must hold one query or 1"),
        ("/score", {"queries": [3, 4], "documents": ["c"]}, "queries must hold texts or messages"),
        ("/get_reward", {"query": 3}, "query must be a text"),
    ],
)
def test_refused_bodies(client, path, body, reason):
    assert said(client.post(path, json=body)).startswith(reason)


def test_bodies_that_are_no_json_objects(client):
    assert said(client.post("/classify", content=b"{", headers=JSON)).startswith(
        "the body is not JSON: "
    )
    assert (
        said(client.post("/classify", content=b"[]", headers=JSON))
        == "the body must be a JSON object"
    )
    deep = b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    assert "nested more than" in said(client.post("/classify", content=deep, headers=JSON))
    assert said(client.get("/nothing"), 404) == "no endpoint /nothing"
    elsewhere = {"host": "elsewhere"}  # a redirect would name it
    slash = client.post("/classify/", json={}, headers=elsewhere, follow_redirects=False)
    assert said(slash, 404) == "no endpoint /classify/"
    assert client.head("/health").status_code == 200
    assert said(client.get("/classify"), 405) == "/classify takes another method"


def test_too_long_a_body(scorer):
    app = create_app(Service(scorer, "reward", Limits(body_bytes=1000)))
    with TestClient(app) as client:
        assert client.post("/classify", json={"input": "a" * 900}).status_code == 200
        message = said(client.post("/classify", json={"input": "a" * 1000}), 413)
        assert message == "the body must have at most 1,000 bytes"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_what_a_page_in_a_browser_can_send_is_refused(client, kind):
    headers = {"content-type": kind} if kind else {}
    refused = client.post("/classify", content=b'{"input": "a"}', headers=headers)
    assert said(refused, 415) == "send the body as Content-Type: application/json"
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/classify", content=b'{"input": "a"}', headers=headers).status_code == 200


async def stalled(app, parts: list[dict], began: asyncio.Event | None = None) -> tuple[int, str]:
    """Sends parts of a request and then nothing; returns the status and the message."""
    scope = {
        "type": "http", "method": "POST", "path": "/classify", "raw_path": b"/classify",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    left, sent = list(parts), []

    async def receive() -> dict:
        if not left:
            if began is not None:
                began.set()
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]


def test_a_body_that_never_comes_or_breaks_off(scorer):
    service = Service(scorer, "reward", Limits(body_seconds=0.1))
    app, part = create_app(service), {"type": "http.request", "body": b"{", "more_body": True}
    assert asyncio.run(stalled(app, [part])) == (408, "the body did not arrive in time")
    broken = asyncio.run(stalled(app, [part, {"type": "http.disconnect"}]))
    assert broken == (400, "the body ends too early")  # and no traceback
    assert service.open_bytes == 0


def test_all_open_bodies_together_are_bounded(scorer):
    service = Service(scorer, "reward", Limits(body_bytes=1000, body_seconds=1.0))
    app = create_app(service)
    part = {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def many() -> list[tuple[int, str]]:
        events = [asyncio.Event() for _ in range(16)]
        tasks = [asyncio.create_task(stalled(app, [part], event)) for event in events]
        await asyncio.gather(*(event.wait() for event in events))
        one_more = await stalled(app, [part])
        return [one_more, *await asyncio.gather(*tasks)]

    first, *others = asyncio.run(many())
    assert first == (429, "the open requests are too large together; try again later")
    assert {status for status, _ in others} == {408}
    assert service.open_bytes == 0


def test_a_full_queue_is_429_with_retry_after():
    entered, leave = threading.Event(), threading.Event()

    def work(items):
        entered.set()
        leave.wait(60)
        return items

    thread: BatchThread[int, int] = BatchThread(work, name="test", most_waiting=3)
    [first] = thread.submit([0])
    assert entered.wait(60)
    waiting = thread.submit([1, 2])
    with pytest.raises(RequestRefused) as caught:
        thread.submit([3, 4])
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    with pytest.raises(RequestRefused) as caught:
        thread.submit([1, 2, 3, 4])
    assert caught.value.status == 400
    leave.set()
    thread.close()  # everything that waited is answered
    assert [f.result(0) for f in (first, *waiting)] == [0, 1, 2]
    assert thread.calls == 2
    with pytest.raises(RequestRefused) as caught:
        thread.submit([5])
    assert caught.value.status == 503


def test_a_failed_call_fails_its_requests_alone():
    def work(items):
        if "bad" in items:
            raise ZeroDivisionError("bad")
        return [ValueError(item) if item == "half" else item for item in items]

    thread: BatchThread[str, str] = BatchThread(work, name="test", most_waiting=9)
    for bad, kind in (("bad", ZeroDivisionError), ("half", ValueError)):
        with pytest.raises(kind):
            thread.submit([bad])[0].result(60)
    assert thread.submit(["good"])[0].result(60) == "good"
    thread.close()


def test_queue_limits_over_http(scorer):
    held = threading.Event()

    class Slow(ConversationScorer):
        def __call__(self, requests):
            held.wait(60)
            return super().__call__(requests)

    slow = Slow(scorer.model, {})
    service = Service(slow, "reward", Limits(waiting=4))
    with TestClient(create_app(service)) as client, ThreadPoolExecutor(2) as pool:
        body = {"input": ["a", "b", "c"]}
        first = pool.submit(client.post, "/classify", json=body)
        while service.thread.waiting or not first.running():
            time.sleep(0.01)
        time.sleep(0.2)  # it is being worked on
        second = pool.submit(client.post, "/classify", json=body)
        while service.thread.waiting < 3:
            time.sleep(0.01)
        third = client.post("/classify", json=body)
        assert said(third, 429) == "3 requests wait already; try again later"
        assert third.headers["retry-after"] == "1"
        held.set()
        assert first.result(60).status_code == second.result(60).status_code == 200
        many = client.post("/classify", json={"input": ["a"] * 5})
        assert said(many).startswith("must ask for at most 4 answers at a time")


def test_the_key(scorer):
    with TestClient(create_app(Service(scorer, "reward", Limits()), api_key="secret")) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            refused = client.post("/classify", json={"input": "a"}, headers=headers)
            assert said(refused, 401) == "send the API key as Authorization: Bearer KEY"
            assert client.get("/metrics", headers=headers).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert client.post("/classify", json={"input": "a"}, headers=key).status_code == 200
        shown = client.get("/metrics", headers=key).text
        assert "secret" not in shown
        assert 'agentrm_requests_total{path="/classify",status="401"} 3' in shown


def test_metrics_are_prometheus_text(client):
    client.post("/classify", json={"input": ["a", "b"]})
    client.post("/classify", json={})
    client.get("/" + "x" * 50)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['agentrm_requests_total{path="/classify",status="200"}'] == "1"
    assert values['agentrm_requests_total{path="/classify",status="400"}'] == "1"
    assert values['agentrm_requests_total{path="other",status="404"}'] == "1"
    assert values['agentrm_request_seconds_bucket{path="/classify",le="+Inf"}'] == "2"
    assert values['agentrm_request_seconds_count{path="/classify"}'] == "2"
    assert values["agentrm_conversations_total"] == "2"
    assert float(values["agentrm_tokens_read_total"]) > 0
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    named = {key.partition("{")[0] for key in values}
    assert {t for t in types if "seconds" not in t or "engine" in t} <= named


def test_large_counters_have_all_their_digits():
    shown = Metrics({"tokens_total": ("counter", "Tokens.", lambda: 123_456_789)}).text()
    assert shown.splitlines()[-1] == "agentrm_tokens_total 123456789"


def test_64_threads_get_the_scores_of_one(client, expected):
    played, _ = expected
    states = [g for game in played for g in (game, game.without_last_answer())]
    bodies = [
        {"messages": asked(state)[: len(asked(state)) - 2 * cut]}
        for state in states
        for cut in range(len(state.steps))
    ]
    bodies = (bodies * 64)[:128]

    def score(body: dict) -> float:
        return client.post("/classify", json=body).json()["data"][0]["probs"][0]

    alone = [score(body) for body in bodies]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(score, bodies))
    assert together == pytest.approx(alone, abs=1e-6)
