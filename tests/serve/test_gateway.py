"""The gateway: which turn is chosen, what is returned, and policies behind it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import pathlib
import re
import types
from collections.abc import Sequence

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from serve_cases import policy_server

from agentrm_jax.engine.engine import Engine
from agentrm_jax.pipeline.model_folders import CONVERSATION
from agentrm_jax.pipeline.policies import ModelPolicy
from agentrm_jax.pipeline.reward_model import open_conversation_model
from agentrm_jax.serve.app import Limits, Service, create_app
from agentrm_jax.serve.conversations import Conversation
from agentrm_jax.serve.errors import RequestRefused
from agentrm_jax.serve.gateway import (
    Candidate,
    GatewayRequest,
    Proposed,
    TurnRequest,
    choose,
)
from agentrm_jax.serve.policy_model import PolicyModel
from agentrm_jax.serve.policy_server import PolicyServer
from agentrm_jax.serve.scoring import ConversationScorer, ScoreRequest, Scores
from agentrm_jax.testing import write_tiny_policy, write_tiny_reward_model

ASKED = [{"role": "user", "content": "Guess a number from 1 to 9."}]


class Listed:
    """A policy that proposes given texts, in order."""

    name = "listed"

    def __init__(self, *texts: str) -> None:
        self.texts, self.calls = texts, []

    async def propose(self, request: TurnRequest, n: int, number: int) -> Proposed:
        self.calls.append((n, number))
        texts = self.texts[number : number + n]
        candidates = [Candidate(message={"content": t}, finish_reason="stop") for t in texts]
        return Proposed(candidates=candidates, prompt_tokens=10, completion_tokens=3 * n)

    async def close(self) -> None:
        pass


async def by_length(requests: Sequence[ScoreRequest]) -> list[Scores]:
    """Scores a conversation by the length of its last reply."""
    found = []
    for request in requests:
        assert isinstance(request.conversation, Conversation)
        length = float(len(request.conversation.turns[-1]))
        found.append(Scores(values=(length,), tokens=100, truncated_steps=0))
    return found


def chosen(policy: Listed, n: int, method: str = "best_of_n"):
    body = {"messages": ASKED, "n": n, "method": method}
    return asyncio.run(choose(policy, by_length, GatewayRequest.of_body(body, 5)))


def test_the_best_score_wins_and_everything_is_counted():
    choice = chosen(Listed("aa", "aaaa", "a", "", "bbbb"), 5)
    assert choice.best == 1
    assert [c.score for c in choice.candidates] == [2, 4, 1, None, 4]
    assert choice.usage() == {
        "prompt_tokens": 10,
        "completion_tokens": 15,
        "total_tokens": 25,
        "reward_model_tokens": 400,
    }


def test_adaptive_stops_when_the_best_action_is_that_of_most():
    same = Listed("Thought: a.\nAction: go", "Action: go", *"xyz")
    assert len(chosen(same, 8, "adaptive").candidates) == 2
    split = Listed("Action: go", "Action: stop!", "Action: stop!", "stop", *"xyzwv")
    assert len(chosen(split, 4, "adaptive").candidates) == 4
    late = Listed("Action: a", "Action: bbb", "Action: bbb", "Action: bbb", *"xyzwv")
    choice = chosen(late, 8, "adaptive")
    assert late.calls == [(2, 0), (2, 2)]
    assert choice.chosen.action == "bbb"
    assert choice.usage()["prompt_tokens"] == 20
    never = Listed(*(f"Action: {'a' * i}" for i in range(1, 12)))
    assert len(chosen(never, 7, "adaptive").candidates) == 7
    assert never.calls == [(2, 0), (2, 2), (3, 4)]
    assert len(chosen(same, 1, "adaptive").candidates) == 1


def test_best_of_n_takes_all_even_if_they_agree():
    assert len(chosen(Listed(*["Action: go"] * 4), 4).candidates) == 4


def test_only_empty_turns_are_an_error():
    with pytest.raises(RequestRefused) as caught:
        chosen(Listed("", " "), 2)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"n": 0}, "n must be from 1 to 64 (got 0)"),
        ({"n": "3"}, "n must be from 1 to 64 (got '3')"),
        ({"method": "beam"}, "method must be best_of_n or adaptive (got 'beam')"),
        ({"stream_options": 1}, "stream_options must be an object (got 1)"),
        ({"messages": []}, "messages must be a list of messages"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": "5"}]},
            "messages must end with a message of the user or of a tool",
        ),
    ],
)
def test_refused_requests(more, reason):
    with pytest.raises(RequestRefused) as caught:
        GatewayRequest.of_body({"messages": ASKED, **more}, 5)
    assert caught.value.message.startswith(reason)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = write_tiny_reward_model(tmp_path_factory.mktemp("gateway") / "reward")
    return ConversationScorer(*open_conversation_model(folder))


@pytest.fixture
def behind(scorer):
    """Opens a client of the gateway in front of a policy."""
    opened = []

    def client(policy) -> TestClient:
        app = create_app(Service(scorer, "reward", Limits(candidates=4)), policy)
        opened.append(TestClient(app))
        return opened[-1].__enter__()

    yield client
    for each in opened:
        each.__exit__(None, None, None)


def ask(client: TestClient, **more):
    return client.post("/v1/chat/completions", json={"messages": ASKED, **more})


def test_a_server_as_policy(behind, scorer):
    with policy_server() as server:
        client = behind(PolicyServer(server.url, key="secret"))
        answer = ask(client, temperature=0.5, seed=7, model="any", unknown_to_us=1).json()
        [body] = server.bodies
        assert body == {
            "messages": ASKED, "model": "guesser", "n": 4, "temperature": 0.5, "seed": 7,
            "unknown_to_us": 1, "key": "Bearer secret",
        }  # fmt: skip
        scores = [candidate["score"] for candidate in answer["candidates"]]
        assert answer["chosen"] == scores.index(max(scores))
        best = answer["candidates"][answer["chosen"]]
        assert answer["choices"][0]["message"] == best["message"]
        assert answer["usage"]["completion_tokens"] == 28
        turns = Conversation(turns=(ASKED[0]["content"], best["message"]["content"]))
        [alone] = scorer([ScoreRequest(conversation=turns)])
        assert max(scores) == pytest.approx(alone.values[0], abs=1e-5)
        assert client.get("/v1/models").json()["data"][1]["id"] == "guesser"


@pytest.mark.parametrize("mode", ["single", "refuses_n"])
def test_a_server_without_n_gets_a_request_for_each_turn(behind, mode):
    with policy_server(mode) as server:
        client = behind(PolicyServer(server.url))
        for _ in range(2):
            answer = ask(client, seed=3, n=3).json()
            assert len(answer["candidates"]) == 3
            assert answer["usage"]["completion_tokens"] == 21
        singles = [body for body in server.bodies if "n" not in body]
        assert len(server.bodies) - len(singles) == 1  # n was tried once
        assert sorted(body["seed"] for body in singles[-3:]) == [3, 4, 5]


def test_tools_are_passed_on_and_come_back(behind):
    tools = [{"type": "function", "function": {"name": "guess", "parameters": {}}}]
    with policy_server("tools") as server:
        client = behind(PolicyServer(server.url))
        answer = ask(client, tools=tools, tool_choice="auto", n=2).json()
        assert server.bodies[0]["tools"] == tools
        assert server.bodies[0]["tool_choice"] == "auto"
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "guess"
        assert all(candidate["score"] is not None for candidate in answer["candidates"])


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_errors_of_the_policy_come_through_as_they_are(behind, status):
    with policy_server(str(status)) as server:
        response = ask(behind(PolicyServer(server.url, model="m")))
        assert response.status_code == status
        assert response.json() == {"error": {"message": f"mode {status}"}}
        assert len(server.bodies) == (2 if status == 400 else 1)  # 400 may be about n


def test_headers_that_cannot_be_passed_on_are_left_out(behind):
    headers = [("Retry-After", "später".encode()), ("Content-Type", b"text/plain")]
    transport = httpx.MockTransport(lambda _: httpx.Response(503, headers=headers, content=b"x"))
    response = ask(behind(PolicyServer("http://h", model="m", transport=transport)))
    assert (response.status_code, response.text) == (503, "x")
    assert "retry-after" not in response.headers
    assert response.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("{", "not JSON: "),
        ("[]", "status 200, no JSON object"),
        ("{}", "it has no choices"),
        ('{"choices": [3]}', "a choice has no message"),
        ('{"choices": [{"message": {"content": 3}}]}', "message.content must be a text (got 3)"),
    ],
)
def test_malformed_answers_of_the_policy_are_502(behind, answer, reason):
    with policy_server(answer) as server:
        response = ask(behind(PolicyServer(server.url, model="m")), n=1)
        assert response.status_code == 502
        message = response.json()["error"]["message"]
        assert message.startswith(f"the policy's server answered in another form: {reason}")


def test_lone_surrogates_pass_in_both_directions(behind):
    answer = '{"choices": [{"message": {"content": "Action: \\ud83d"}}]}'
    with policy_server(answer) as server:
        client = behind(PolicyServer(server.url, model="m"))
        body = b'{"n": 1, "messages": [{"role": "user", "content": "\\udc00 Go."}]}'
        headers = {"content-type": "application/json"}
        response = client.post("/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"] == "Action: \ufffd"
        assert server.bodies[0]["messages"][0]["content"] == "\ufffd Go."


@pytest.mark.parametrize("key", ["sk-very/secret", "sk-very-secret"])
def test_a_key_that_the_server_sends_back_is_masked(behind, key):
    escaped = json.dumps({"error": f"bad key {key}"}).replace("/", "\\/").replace("k-", "\\u006b-")
    for answer in (escaped, json.dumps({"choices": [{"message": {"content": f"Use {key}"}}]})):
        with policy_server(answer) as server:
            text = ask(behind(PolicyServer(server.url, model="m", key=key)), n=1).text
            assert server.bodies[0]["key"] == f"Bearer {key}"
        assert "secret" not in text
    assert "Use [key]" in text


def test_a_policy_on_this_machine_is_asked_without_the_proxy(behind, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with policy_server() as server:
        assert ask(behind(PolicyServer(server.url))).status_code == 200


def test_a_policy_that_cannot_be_reached(behind):
    with policy_server() as server:
        url = server.url
    assert ask(behind(PolicyServer(url, model="m"))).status_code == 502
    with policy_server() as server:
        server.delay = 5.0
        slow = ask(behind(PolicyServer(server.url, model="m", timeout=0.2)))
        assert slow.status_code == 504


def test_streaming_with_the_openai_client(behind):
    with policy_server() as server:
        client = behind(PolicyServer(server.url))
        ours = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)
        whole = ours.chat.completions.create(
            model="any", messages=ASKED, seed=5, extra_body={"n": 3}
        )
        events = list(
            ours.chat.completions.create(
                model="any", messages=ASKED, seed=5, extra_body={"n": 3}, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
    texts = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "stop"
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert events[-2].candidates == whole.candidates
    assert len(whole.candidates) == 3


def test_the_lines_of_the_guide(behind, monkeypatch):
    """The lines of Python in docs/guides/serving.md run as printed, against this gateway."""
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides" / "serving.md"
    [program] = re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)
    with policy_server() as server:
        client = behind(PolicyServer(server.url))
        client.base_url = "http://127.0.0.1:8000"
        package = types.SimpleNamespace(OpenAI=functools.partial(openai.OpenAI, http_client=client))
        names = {"openai": package, "messages": ASKED}
        exec(program, names)
        assert server.bodies[0]["temperature"] == 1.0
    answer = names["answer"]
    scores = [candidate["score"] for candidate in answer.candidates]
    assert 2 <= len(scores) <= 8
    best = answer.candidates[scores.index(max(scores))]
    assert answer.choices[0].message.content == best["message"]["content"]


def test_streamed_tool_calls(behind):
    with policy_server("tools") as server:
        lines = ask(behind(PolicyServer(server.url)), stream=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    [calls] = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["index"] == 0
    assert calls[0]["function"]["name"] == "guess"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_policy(tmp_path_factory.mktemp("policy") / "policy")
    return ModelPolicy.load(folder, prompts={CONVERSATION: None})


def test_a_model_directory_as_policy(behind, model):
    client = behind(PolicyModel(model, "tiny"))
    first, again = (ask(client, seed=3, n=4, max_tokens=6).json() for _ in range(2))
    assert first["candidates"] == again["candidates"]
    assert len({c["message"]["content"] for c in first["candidates"]}) > 1
    assert 4 <= first["usage"]["completion_tokens"] <= 24
    other = ask(client, n=4, max_tokens=6).json()
    assert other["candidates"] != first["candidates"]
    adaptive = ask(client, n=4, max_tokens=6, seed=3, method="adaptive").json()
    assert len(adaptive["candidates"]) in (2, 4)


@pytest.fixture
def small_model(model):
    """The policy with a cache that holds few conversations."""
    sizes = dataclasses.replace(model.engine.sizes, cache_tokens=512)
    engine = Engine.of(model.engine.programs.model.params, model.engine.config, sizes)
    policy = ModelPolicy(engine, model.tokenizer, model.prompts, model.sampling, 0)
    policy._prompts = model.prompts
    return policy


def proposals(policy: PolicyModel, *texts: str) -> list:
    """The answers to requests that wait together."""
    messages = ([{"role": "user", "content": text}] for text in texts)
    sampling = {"max_tokens": 32, "seed": 1}
    requests = [TurnRequest(messages=each, sampling=sampling) for each in messages]
    return policy._answer([policy._asked(request, 4, 0) for request in requests])


def test_a_request_that_does_not_fit_fails_no_other(small_model):
    policy = PolicyModel(small_model, "tiny")
    [alone] = proposals(policy, "Hi.")
    first, large, last = proposals(policy, "Hi.", "word 1 " * 150, "Ho.")
    assert first == alone
    assert isinstance(last, Proposed)
    assert isinstance(large, RequestRefused)
    assert "ask for fewer or shorter ones" in large.message
    asyncio.run(policy.close())


def test_a_call_that_failed_gives_its_pages_back(small_model, monkeypatch):
    policy = PolicyModel(small_model, "tiny")
    [before] = proposals(policy, "Hi.")
    decode = small_model.engine.programs.decode
    monkeypatch.setattr(small_model.engine.programs, "decode", lambda *_: 1 / 0)
    for i in range(8):
        assert {type(e) for e in proposals(policy, f"A {i}.", f"B {i}.")} == {ZeroDivisionError}
    monkeypatch.setattr(small_model.engine.programs, "decode", decode)
    assert proposals(policy, "Hi.") == [before]
    asyncio.run(policy.close())


def test_the_number_of_compiled_filters_is_bounded(model, monkeypatch):
    policy = PolicyModel(model, "tiny")
    sent, refused = [], []

    class Sent(Exception):
        """The request has passed the check, and is not decoded."""

    def submit(items):
        sent.append(items)
        raise Sent

    monkeypatch.setattr(policy._thread, "submit", submit)
    for i in range(1, 100):
        request = TurnRequest(messages=ASKED, sampling={"top_k": i % 50, "temperature": i / 10})
        with pytest.raises((Sent, RequestRefused)) as ended:
            asyncio.run(policy.propose(request, 2, 0))
        if ended.type is RequestRefused:
            refused.append(ended.value.message)
    assert (len(sent), len(refused)) == (63, 36)
    assert refused[0].startswith("top_k, top_p and min_p had 32 values already")
    asyncio.run(policy.close())


def test_a_model_directory_stops_at_texts(model):
    policy = PolicyModel(model, "tiny")

    async def texts(**sampling):
        request = TurnRequest(messages=ASKED, sampling={"seed": 1, "max_tokens": 8, **sampling})
        found = await policy.propose(request, 4, 0)
        return [(c.message["content"], c.finish_reason) for c in found.candidates]

    async def both():
        whole = await texts()
        mark = next(text[2] for text, _ in whole if len(text) > 3)
        cut = await texts(stop=[mark])
        await policy.close()
        return whole, mark, cut

    whole, mark, cut = asyncio.run(both())
    for (before, _), (after, reason) in zip(whole, cut, strict=True):
        assert after == before.partition(mark)[0]
        assert mark not in before or reason == "stop"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": [1]}, "tools is not supported by a model directory"),
        ({"stop": 3}, "stop must be a text or a list of texts (got 3)"),
        ({"seed": "x"}, "seed must be a whole number (got 'x')"),
        ({"temperature": -1}, "temperature must be at least 0 (got -1"),
        ({"top_p": 0}, "top_p must be above 0 (got 0"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number (got 1.5)"),
        ({"max_tokens": 100_000}, "engine.context must be above the most tokens of a reply"),
        ({"n": 64}, ""),
    ],
)
def test_requests_that_a_model_directory_refuses(behind, model, more, reason):
    response = ask(behind(PolicyModel(model, "tiny")), **{"max_tokens": 6, **more})
    if reason:
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(reason)
    else:
        assert len(response.json()["candidates"]) == 64
