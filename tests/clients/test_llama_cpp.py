"""The server of llama.cpp with a real model: a probe, eight trees, a kill in the middle, best of 3.

AGENTRM_LLAMA_SERVER names the program `llama-server`, AGENTRM_LLAMA_MODEL a GGUF file of a chat
model, for example SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.connection import ServedModelConfig
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.policy_kinds import POLICIES
from agentrm_jax.pipeline.server_kinds import ServerAgent
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.testing import GUESS_PROMPT, Guess, guess_scorer, guess_tasks

PROGRAM, MODEL = (os.environ.get(f"AGENTRM_LLAMA_{name}", "") for name in ("SERVER", "MODEL"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PROGRAM and MODEL), reason="AGENTRM_LLAMA_SERVER and AGENTRM_LLAMA_MODEL are not set"
    ),
]

RUN = """
environments: [{name: babyai, kinds: [GoToRedBallGrey], max_steps: 4}]
seed: 1
rewards: [explicit]
agent: {wait_seconds: 300}
explore:
  num_tasks: 8
  sampling: {max_tokens: 24}
  search: {num_iterations: 2, expansion_width: 3, concurrency: 8}
"""


class LlamaServer:
    """The server's process; it is started again at the same port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        sizes = ["-c", "16384", "-np", "8", "-t", "2"]
        command = [PROGRAM, "-m", MODEL, "--port", str(self.port), *sizes]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    running = LlamaServer()
    yield running
    with contextlib.suppress(ProcessLookupError):
        running.kill()


def test_the_probe_and_best_of_3(server):
    policy = ServerPolicy.connect(
        server.url,
        {"guess": GUESS_PROMPT},
        sampling=Sampling(max_tokens=24),
        config=ServedModelConfig(wait_seconds=120),
    )
    facts = policy.facts
    print(facts)
    assert (facts.api, facts.n, facts.log_probs, facts.usage) == ("chat", True, True, True)
    assert facts.context == 2048
    with EnvPool({"guess": Guess}) as envs:
        results = best_of_n(policy, guess_scorer, envs, guess_tasks(3, max_steps=3), n=3)
    rollouts = [rollout for result in results for rollout in result.rollouts]
    assert all(rollout.error is None for rollout in rollouts)
    for rollout in rollouts:
        decoded = sum(len(step.log_probs) for step in rollout.trajectory.steps)
        assert rollout.policy_tokens == decoded > 0


def test_eight_trees_with_a_kill_in_the_middle(server, tmp_path: pathlib.Path, capsys):
    if "server" not in POLICIES.names():
        POLICIES.register("server")(ServerAgent)
    path, output = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(RUN)

    def kill_and_start() -> None:
        trees = RunPaths(output).trees / "trees.jsonl"
        while not trees.exists() or trees.read_text().count('"iteration"') < 4:
            time.sleep(0.2)
        server.kill()
        time.sleep(5.0)
        server.start()

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    runner.run_stage(load_config(path, [f"--policy={server.url}"]), output, "explore")
    killer.join()
    trees = TreeStore.read(RunPaths(output).trees, finished=True).values()
    assert [len(tree.iterations) for tree in trees] == [2] * 8
    assert all(tree.error is None for tree in trees)
    said = capsys.readouterr().err
    assert "waiting for the server" in said
    assert "answers again after" in said
    assert read_json(RunPaths(output).servers)["agent"][0]["answers_as"]
