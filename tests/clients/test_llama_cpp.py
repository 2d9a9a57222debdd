"""The server of llama.cpp with a real model: a probe, best of 3, eight trees, a kill in the middle.

AGENTRM_LLAMA_SERVER names the program `llama-server`, AGENTRM_LLAMA_MODEL a GGUF file of a chat
model, for example SmolLM2-135M-Instruct. AGENTRM_REWARD_MODEL names a run with a reward model, for
example the quickstart's; without it a tiny one with random parameters decides.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest
from real_servers import RealServer, best_of_3, decoded_tokens, explored, running

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.connection import ServedModelConfig
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.registry import load_family
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths

PROGRAM, MODEL = (os.environ.get(f"AGENTRM_LLAMA_{name}", "") for name in ("SERVER", "MODEL"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PROGRAM and MODEL), reason="AGENTRM_LLAMA_SERVER and AGENTRM_LLAMA_MODEL are not set"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    # A request has an eighth of the context: with 2,048 tokens whole episodes were refused.
    with running([PROGRAM, "-m", MODEL, "-c", "32768", "-np", "8", "-t", "2"]) as server:
        yield server


def test_the_probe_and_best_of_3_under_a_reward_model(server, tmp_path: pathlib.Path):
    babyai = load_family("babyai")
    policy = ServerPolicy.connect(
        server.url,
        {"babyai": babyai.prompt()},
        sampling=Sampling(max_tokens=24),
        config=ServedModelConfig(wait_seconds=300),
    )
    facts = policy.facts
    print(facts)
    assert (facts.api, facts.n, facts.log_probs, facts.usage) == ("chat", True, True, True)
    assert facts.context == 4096
    for result in best_of_3(policy, tmp_path):
        assert all(decoded_tokens(rollout) > 0 for rollout in result.rollouts)


def test_eight_trees_with_a_kill_in_the_middle(server, tmp_path: pathlib.Path, capsys):
    trees = explored(server, tmp_path, kill_after=4)
    said = capsys.readouterr().err
    assert [len(tree.iterations) for tree in trees] == [2] * 8
    assert all(tree.error is None for tree in trees)
    assert "waiting for the server" in said
    assert "answers again after" in said
    assert read_json(RunPaths(tmp_path / "run").servers)["agent"][0]["answers_as"]
