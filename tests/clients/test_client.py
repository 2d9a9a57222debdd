"""The client: what is asked again, what is not, and what the user sees."""

from __future__ import annotations

import json
import threading
import time

import pytest
from model_server import ModelServer

from agentrm_jax.clients.client import Cancelled, Client, RequestFailed
from agentrm_jax.clients.config import ServerConfig, server_url
from agentrm_jax.clients.keys import masked, read_key
from agentrm_jax.core.errors import UserError

CHAT = "/v1/chat/completions"
BODY = {"model": "toy", "messages": [{"role": "user", "content": "Any animal?"}]}
QUICK = {"connect_seconds": 1.0, "request_seconds": 0.5, "wait_seconds": 2.0}


def client(server: ModelServer, said: list[str] | None = None, **config) -> Client:
    say = None if said is None else said.append
    return Client(server.url, ServerConfig(**QUICK | config), say)


@pytest.mark.parametrize("fault", ["500", "429", "half", "reset", "slow"])
def test_a_request_without_an_answer_is_sent_again(fault):
    with ModelServer() as server:
        server.behaviour.fail(fault, times=2)
        said: list[str] = []
        value = client(server, said, wait_seconds=30.0).post(CHAT, BODY)
        assert value["choices"][0]["message"]["content"].startswith("I like the")
        assert len(server.posts(CHAT)) == 3
        assert said == []  # two attempts are no outage


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("not json", "is not JSON"),
        ("deep", "nested more than 100 levels deep"),
        ("refused", "HTTP 400: the prompt is too long"),
    ],
)
def test_an_answer_that_is_useless_is_not_asked_for_again(fault, reason):
    with ModelServer() as server:
        server.behaviour.fail(fault)
        with pytest.raises(RequestFailed, match=reason):
            client(server).post(CHAT, BODY)
        assert len(server.posts(CHAT)) == 1


def test_a_server_that_is_away_is_waited_for():
    server = ModelServer().start()
    server.stop()
    said: list[str] = []
    threading.Timer(1.5, server.start).start()
    value = client(server, said, wait_seconds=30.0).post(CHAT, BODY)
    assert value["choices"]
    server.stop()
    assert len(said) == 2
    assert "waiting for the server, " in said[0]
    assert "answers again after" in said[1]


def test_a_server_that_stays_away_ends_the_run():
    server = ModelServer().start()
    server.stop()
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no answer for \d+ s .*give the same command again"):
        client(server, said, wait_seconds=1.0).post(CHAT, BODY)
    assert time.monotonic() - began < 10
    assert len(said) == 1


def test_a_request_on_which_the_server_always_fails_does_not_stop_the_others():
    with ModelServer() as server:
        asking = client(server, attempts=3, wait_seconds=60.0)
        stop = threading.Event()

        def others() -> None:
            while not stop.is_set():
                asking.post(CHAT, BODY)
                time.sleep(0.01)

        server.behaviour.poison = "Poison"
        poisoned = [{"role": "user", "content": "Any animal? Poison."}]
        asking.post(CHAT, BODY)
        thread = threading.Thread(target=others)
        thread.start()
        try:
            with pytest.raises(RequestFailed, match=r"failed \d times: HTTP 500"):
                asking.post(CHAT, {**BODY, "messages": poisoned})
        finally:
            stop.set()
            thread.join()


def test_a_redirect_is_refused():
    with ModelServer() as server:
        server.behaviour.fail("redirect")
        with pytest.raises(UserError, match="answers with a redirect"):
            client(server).post(CHAT, BODY)


def test_https_where_there_is_none_is_not_waited_for():
    with ModelServer() as server:
        url = server.url.replace("http://", "https://")
        asking = Client(url, ServerConfig(wait_seconds=60.0))
        began = time.monotonic()
        with pytest.raises(UserError, match="SSL"):
            asking.post(CHAT, BODY)
        assert time.monotonic() - began < 10


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-secret-1")
    with ModelServer(key="sk-secret-1") as server:
        said: list[str] = []
        asking = client(server, said, key_env="TOY_KEY", wait_seconds=1.5)
        assert asking.post(CHAT, BODY)["choices"]
        server.behaviour.fail("500", times=99)
        with pytest.raises(UserError, match=r"Bearer \[key\]") as caught:
            asking.post(CHAT, BODY)
        assert "secret" not in str(caught.value) + "".join(said) + repr(asking.config)
        with pytest.raises(UserError, match="refuses the key") as caught:
            client(server).post(CHAT, BODY)
        assert "no variable is named" in str(caught.value)


@pytest.mark.parametrize("key", ["none", "1"])
def test_a_placeholder_for_a_key_changes_no_answer(monkeypatch, key):
    monkeypatch.setenv("TOY_KEY", key)
    with ModelServer(key=key, model=f"toy-{key}") as server:
        value = client(server, key_env="TOY_KEY").post(CHAT, BODY)
        assert value["model"] == f"toy-{key}"


def test_keys_are_masked_escaped_or_not(monkeypatch):
    key = 'sk-a/b"c+d'
    monkeypatch.setenv("TOY_KEY", f" {key} ")
    assert read_key("TOY_KEY", "key_env") == key
    escaped = json.dumps(key)[1:-1].replace("/", "\\/").replace("+", "\\u002B")
    for text in (key, json.dumps(key)[1:-1], escaped):
        assert masked(f"<{text}>".encode(), key) == b"<[key]>"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"key_env": "sk-ant-key"}, "must be the name of an environment variable"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"wait_seconds": -1.0}, "wait_seconds must be at least 0"),
    ],
)
def test_configurations_that_are_refused(config, message):
    with pytest.raises(UserError, match=message) as caught:
        ServerConfig(**config)
    assert "sk-ant" not in str(caught.value)


def test_a_variable_without_a_key(monkeypatch):
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(UserError, match="key_env names TOY_KEY, which is not set"):
        Client("http://127.0.0.1:1", ServerConfig(key_env="TOY_KEY"))


def test_addresses_with_and_without_the_version():
    assert server_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000"
    assert server_url("https://host/openai/v1") == "https://host/openai"
    with pytest.raises(UserError, match=r"--policy must be the address of a server, .*'host:8000'"):
        server_url("host:8000", "--policy")


def test_a_cancelled_request_ends_at_once():
    server = ModelServer().start()
    server.stop()
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        client(server, [], wait_seconds=60.0).post(CHAT, BODY, cancelled)
    assert time.monotonic() - began < 5
