"""How many programs a mixed workload compiles: shapes are bucketed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import CONFIG, SAMPLING, STOP, request, weights

from agentrm_jax.engine import engine as engine_module
from agentrm_jax.engine import extend as extend_module
from agentrm_jax.engine.engine import Engine, EngineConfig


@pytest.fixture
def programs(monkeypatch):
    """Traces each program once and answers with zeros: nothing is compiled or computed."""
    signatures: dict[object, object] = {}

    def counted(module, name):
        original = getattr(module, name)

        def call(*arguments, **named):
            leaves, tree = jax.tree.flatten((arguments, named))
            shapes = tuple((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves)
            signature = (name, tree, shapes)
            if signature not in signatures:
                signatures[signature] = original.eval_shape(*arguments, **named)
            if name == "commit":  # the pool stays: it is large
                return arguments[0]
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), signatures[signature])

        monkeypatch.setattr(module, name, call)

    counted(extend_module, "read_to_last")
    counted(extend_module, "commit")
    counted(engine_module, "decode")
    return signatures


@pytest.mark.parametrize(
    "sizes",
    [
        EngineConfig(context=512, page_size=4, extend_tokens=16, cache_tokens=16_384),
        EngineConfig(context=512, cache_tokens=65_536),
    ],
    ids=["small pages", "defaults"],
)
def test_a_mixed_workload_compiles_at_most_a_dozen_programs(programs, sizes):
    """Expanding (n = 5), rolling out (n = 1) and scoring, over conversations of all lengths."""
    policy = Engine(weights(0), CONFIG, sizes)
    scorer = Engine(weights(0), CONFIG, sizes, readout=lambda head, x: x[:, 0], head=None)
    rng = np.random.default_rng(0)
    for seed in range(40):
        lengths = rng.integers(1, 40, size=int(rng.integers(1, 12)))
        given = request(seed, *lengths)
        policy.generate([given], n=5, sampling=SAMPLING, stop=STOP)
        policy.generate([given] * int(rng.integers(1, 9)), n=1, sampling=SAMPLING, stop=STOP)
        scorer.score([given.pieces, given.pieces[:1]])
    assert 3 <= len(programs) <= 12
    assert {signature[0] for signature in programs} == {"read_to_last", "commit", "decode"}
