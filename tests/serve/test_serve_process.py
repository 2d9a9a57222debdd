"""`agentrm serve` as a process: the example, many clients at once, the key, and its end."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from serve_cases import ROOT, asked, games, policy_server, served

from agentrm_jax.cli.main import main
from agentrm_jax.pipeline.reward_model import RewardModel
from agentrm_jax.testing import write_tiny_policy, write_tiny_reward_model

EXAMPLE = ROOT / "docs" / "examples" / "served_agent.py"


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> pathlib.Path:
    return write_tiny_reward_model(tmp_path_factory.mktemp("process") / "reward")


@pytest.fixture(scope="module")
def running(reward_model):
    """The gateway in front of a policy's server."""
    with policy_server() as policy:
        arguments = ("--reward-model", reward_model, "--policy", policy.url)
        with served(
            *arguments, "--policy-key-env", "POLICY_KEY", environment={"POLICY_KEY": "k"}
        ) as server:
            server.policy = policy
            yield server


def post(url: str, body: object, headers: dict[str, str] | None = None) -> dict:
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        url, data, {"Content-Type": "application/json", **(headers or {})}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())


def test_an_agent_of_the_openai_package(running, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLE, f"{running.url}/v1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *turns, last = done.stdout.splitlines()
    assert turns
    assert all("guess" in turn and "of 4 candidates" in turn for turn in turns)
    assert last in ("solved", "not solved")
    assert {body["key"] for body in running.policy.bodies} == {"Bearer k"}


def test_64_clients_get_the_scores_of_agentrm_score(running, reward_model):
    states = [s for game in games() for s in (game, game.without_last_answer())]
    model = RewardModel.load(reward_model)
    expected = []
    for played in model.score_steps(states[::2]):
        expected += [played.after_observation[-1], played.after_action[-1]]
    client = openai.OpenAI(base_url=running.url, api_key="none")

    def score(number: int) -> float:
        body = {"messages": asked(states[number % len(states)])}
        return client.post("/classify", body=body, cast_to=object)["data"][0]["probs"][0]  # type: ignore[index]

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(score, range(128)))
    assert found == pytest.approx([expected[i % len(states)] for i in range(128)], abs=1e-5)


def test_sigterm_answers_what_was_asked(reward_model):
    with policy_server() as policy:
        policy.delay = 3.0
        arguments = ("--reward-model", reward_model, "--policy", policy.url)
        with served(*arguments) as server, ThreadPoolExecutor(1) as pool:
            body = {"messages": [{"role": "user", "content": "Guess from 1 to 9."}], "n": 2}
            answer = pool.submit(post, f"{server.url}/v1/chat/completions", body)
            while not policy.bodies:  # the request is with the policy
                threading.Event().wait(0.05)
            server.terminate()
            assert len(answer.result(60)["candidates"]) == 2
            status, errors = server.ended()
            assert (status, errors) == (0, "")
            with pytest.raises(urllib.error.URLError):
                post(f"{server.url}/classify", {"input": "a"})


SIGTERM_AT_ONCE = """
import os, signal, sys, uvicorn
from agentrm_jax.cli.main import main

run = uvicorn.Server.run

def late(server, **given):
    os.kill(os.getpid(), signal.SIGTERM)
    run(server, **given)

uvicorn.Server.run = late
sys.exit(main(["serve", "--reward-model", sys.argv[1], "--port", "0"]))
"""


def test_sigterm_before_uvicorn_handles_it(reward_model):
    done = subprocess.run(
        [sys.executable, "-c", SIGTERM_AT_ONCE, reward_model],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("listening on")


def test_a_key_from_the_environment(reward_model, tmp_path):
    policy = write_tiny_policy(tmp_path / "policy")
    arguments = ("--reward-model", reward_model, "--policy", policy, "--host", "0.0.0.0")
    key = {"THE_KEY": "very-secret"}
    with served(*arguments, "--api-key-env", "THE_KEY", environment=key) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{url}/classify", {"input": "a"})
        assert caught.value.code == 401
        headers = {"Authorization": "Bearer very-secret"}
        assert post(f"{url}/classify", {"input": "a"}, headers)["data"]
        body = {"messages": [{"role": "user", "content": "Go."}], "n": 2, "max_tokens": 4}
        assert len(post(f"{url}/v1/chat/completions", body, headers)["candidates"]) == 2
        server.terminate()
        status, errors = server.ended()
    assert status == 0
    assert "very-secret" not in errors


def fails(capsys, *arguments: object) -> str:
    assert main(["serve", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_mistakes_are_one_line(capsys, monkeypatch, reward_model, tmp_path):
    monkeypatch.delenv("NO_KEY", raising=False)
    given = ("--reward-model", reward_model)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails(capsys, *given, "--port", port)
    assert f"--port {port}: cannot listen on 127.0.0.1" in message
    message = fails(capsys, *given, "--api-key-env", "NO_KEY", "--port", 0)
    assert "--api-key-env names NO_KEY, which is not set in this environment" in message
    message = fails(capsys, *given, "--api-key-env", "sk-a-key", "--port", 0)
    assert "--api-key-env must be the name of an environment variable" in message
    assert "sk-a-key" not in message
    message = fails(capsys, *given, "--policy", "ftp://there", "--port", 0)
    assert (
        "--policy must be the address of a server, http://HOST:PORT or https://HOST (got 'ftp://there')"
        in message
    )
    message = fails(capsys, *given, "--policy", "http://me:secret@there", "--port", 0)
    assert "--policy must hold no user name" in message
    assert "secret" not in message
    message = fails(capsys, "--reward-model", tmp_path, "--port", 0)
    assert "no reward model here" in message


def test_a_missing_package_is_named(capsys, monkeypatch, reward_model):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = fails(capsys, "--reward-model", reward_model, "--port", 0)
    assert message.endswith("agentrm serve needs uvicorn: pip install 'agentrm-jax[serve]'")
