"""Eight simulated devices: KV heads over `tensor`, rows and sequences over `data`."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from engine_cases import REQUESTS, STOP, weights

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import generate, score
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.model import parameters
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES

HEAD = np.random.default_rng(5).standard_normal(CONFIG.d_model).astype(np.float32)


def readout(head, hidden):
    return hidden @ head


def in_groups(engine):
    """Replies to requests for two and for one."""
    scheduler = Scheduler(engine, SAMPLING, Stopping(tokens=(STOP,)), (2, 1))
    tickets = [scheduler.submit(given, 2 - i % 2) for i, given in enumerate(REQUESTS)]
    found = {}
    while len(found) < len(tickets):
        found.update(scheduler.collect())
    return [found[ticket] for ticket in tickets]


def answers(mesh):
    params = weights(0)
    if mesh is not None:
        params = jax.device_put(params, parameters.shardings(CONFIG, mesh))
    engine = Engine(params, CONFIG, SIZES, readout=readout, head=HEAD, mesh=mesh)
    pool = engine.programs.model.pool.k[0]
    placed = pool.sharding, pool.shape
    replies = generate(engine, REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
    replies += in_groups(engine)
    scores = score(engine, REQUESTS)
    pool = engine.programs.model.pool.k[0]
    assert (pool.sharding, pool.shape) == placed  # writing moves nothing
    return engine, replies, scores


@pytest.fixture(scope="module")
def alone():
    return answers(None)


@pytest.mark.parametrize("sizes", [(1, 1, 2), (4, 1, 1), (2, 2, 2)], ids=["tensor", "data", "all"])
def test_replies_and_scores_are_those_of_one_device(alone, sizes):
    mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    engine, replies, scores = answers(mesh)
    _, expected, expected_scores = alone
    for group, wanted in zip(replies, expected, strict=True):
        for reply, other in zip(group, wanted, strict=True):
            assert dataclasses.replace(reply, log_probs=()) == dataclasses.replace(
                other, log_probs=()
            )
            np.testing.assert_allclose(reply.log_probs, other.log_probs, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    shard = engine.programs.model.pool.k[0].addressable_shards[0].data.shape
    assert shard[0] == CONFIG.num_kv_heads // sizes[2]
    assert len(engine.programs.model.pool.k[0].sharding.device_set) == np.prod(sizes)
