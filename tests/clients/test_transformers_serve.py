"""`transformers serve` with a real model: a probe, best of 3, eight trees, a kill in the middle.

AGENTRM_TRANSFORMERS names the program `transformers` (with its extra `serving`),
AGENTRM_TRANSFORMERS_MODEL a Hugging Face directory of a chat model: SmolLM2-135M-Instruct as
`agentrm convert` writes it. AGENTRM_REWARD_MODEL is that of `test_llama_cpp.py`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator

import pytest
from real_servers import RealServer, best_of_3, explored, running

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.client import Client
from agentrm_jax.clients.config import ServerConfig
from agentrm_jax.clients.connection import ServedModelConfig
from agentrm_jax.clients.probe import probe
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.registry import load_family
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths

PROGRAM = os.environ.get("AGENTRM_TRANSFORMERS", "")
MODEL = os.environ.get("AGENTRM_TRANSFORMERS_MODEL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PROGRAM and MODEL),
        reason="AGENTRM_TRANSFORMERS and AGENTRM_TRANSFORMERS_MODEL are not set",
    ),
]

SAMPLING = json.dumps({"generation_config": json.dumps({"do_sample": True})})
# It answers one request after another, each of which reads its whole conversation.
FEW_TOKENS = (
    "--explore.sampling.max_tokens=8",
    "--explore.search.num_iterations=1",
    "--explore.search.expansion_width=2",
)


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with running([PROGRAM, "serve", MODEL, "--device", "cpu", "--dtype", "float32"]) as server:
        yield server


def test_what_the_probe_finds(server):
    asking = Client(server.url, ServerConfig(wait_seconds=600))
    assert not probe(asking).samples  # it decodes greedily, whatever temperature is asked for
    facts = probe(asking, extra=json.loads(SAMPLING))
    print(facts)
    assert facts.samples
    assert (facts.api, facts.model) == ("chat", MODEL)
    assert facts.usage
    # It ignores these fields, or refuses the whole request.
    found = (facts.n, facts.log_probs, facts.token_ids_in, facts.continues)
    assert found == (False, False, False, False)


def test_best_of_3_under_a_reward_model(server, tmp_path: pathlib.Path):
    policy = ServerPolicy.connect(
        server.url,
        {"babyai": load_family("babyai").prompt()},
        sampling=Sampling(max_tokens=8),
        config=ServedModelConfig(wait_seconds=600, request_seconds=900, extra_body=SAMPLING),
    )
    results = best_of_3(policy, tmp_path, max_steps=4)
    assert len(results) == 2


def test_eight_trees_with_a_kill_in_the_middle(server, tmp_path: pathlib.Path, capsys):
    arguments = (*FEW_TOKENS, f"--agent.extra_body='{SAMPLING}'")
    trees = explored(server, tmp_path, *arguments, kill_after=2)
    said = capsys.readouterr().err
    assert [len(tree.iterations) for tree in trees] == [1] * 8
    assert all(tree.error is None for tree in trees)
    assert "waiting for the server" in said
    assert "answers again after" in said
    [record] = read_json(RunPaths(tmp_path / "run").servers)["agent"]
    assert not record["n"]
