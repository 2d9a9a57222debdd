"""Models with biases and with normed heads: the engine against a dense forward pass."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import REQUESTS, STOP, assert_same_replies

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import generate, score
from agentrm_jax.engine.simple import SimpleEngine
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES


def drawn(config: LlamaConfig):
    """Parameters of which every one has a say, biases and norms included."""
    rng = np.random.default_rng(3)

    def draw(spec):
        spread = 2 * spec.scale if spec.scale else 0.5
        values = spread * rng.standard_normal(spec.shape)
        return jnp.float32(values + (spec.scale is None))

    return jax.tree.map(
        draw,
        parameters.describe(config),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )


def readout(head, hidden):
    return hidden @ head


@pytest.mark.parametrize(("family", "tensor"), [("qwen2", 2), ("qwen3", 1)])
def test_replies_and_scores_equal_a_dense_forward_pass(family, tensor):
    config = dataclasses.replace(CONFIG, family=family)
    params = drawn(config)
    head = jax.random.normal(jax.random.key(5), (config.d_model,))
    mesh = make_mesh(MeshConfig(tensor=tensor)) if tensor > 1 else None
    placed = jax.device_put(params, mesh and parameters.shardings(config, mesh))
    engine = Engine(placed, config, SIZES, readout=readout, head=head, mesh=mesh)
    replies = generate(engine, REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
    dense = SimpleEngine(params=params, config=config, readout=readout, head=head)
    wanted = dense.generate(REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
    assert_same_replies(replies, wanted)
    np.testing.assert_allclose(score(engine, REQUESTS), dense.score(REQUESTS), atol=1e-4)


def test_a_context_beyond_the_sliding_window_is_refused():
    config = dataclasses.replace(CONFIG, family="mistral", sliding_window=SIZES.context - 1)
    with pytest.raises(
        UserError, match=r"engine\.context must be at most 255, .*\(its sliding wind"
    ):
        Engine(drawn(config), config, SIZES)
    whole = dataclasses.replace(config, sliding_window=SIZES.context)
    assert Engine(drawn(whole), whole, SIZES).config.longest == SIZES.context
