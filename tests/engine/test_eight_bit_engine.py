"""Engines with weights, keys and values in 8 bits, against models with the rounded numbers.

Kernels are interpreted here; that the GPU compiler takes them is tested in
`test_triton_attention.py` where it is installed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import REQUESTS, STOP, assert_same_replies, simple, weights

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention import triton
from agentrm_jax.engine.cache import memory
from agentrm_jax.engine.cache.pages import PageTable, make_pool
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import generate, score
from agentrm_jax.engine.simple import SimpleEngine
from agentrm_jax.model import llama, parameters
from agentrm_jax.model.attention import Backend, causal_mask, dense_attention
from agentrm_jax.model.eight_bits import EightBits, decode, encode, in_eight_bits
from agentrm_jax.plan.abstract_engine import AbstractEngine
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES

HEAD = jax.random.normal(jax.random.key(5), (CONFIG.d_model,))
WEIGHTS = dataclasses.replace(SIZES, weights="int8")
KV = dataclasses.replace(SIZES, kv="int8")


def readout(head, hidden):
    return hidden @ head


def decoded(params):
    kept = in_eight_bits(params)
    return jax.tree.map(decode, kept, is_leaf=lambda x: isinstance(x, EightBits))


@jax.jit
def rounded_hidden(params, tokens):
    """Hidden states [T, D]; keys and values are rounded to 8 bits before they are attended to."""
    positions = jnp.arange(tokens.shape[0])[None]
    rotation = llama.rope(positions, CONFIG)
    mask = causal_mask(jnp.ones_like(positions))

    def attend(q, k, v):
        return dense_attention(q, decode(encode(k)), decode(encode(v)), mask), None

    x = llama.embed(params, tokens[None])
    for layer in llama.unstacked(params)["layers"]:
        x, _ = llama.block(layer, CONFIG, x, rotation, attend)
    return llama.final_norm(params, CONFIG, x)[0]


class RoundedKeysAndValues(SimpleEngine):
    """The oracle of `kv: int8`."""

    def last_hidden(self, tokens):
        padded = np.zeros(-(-len(tokens) // 64) * 64, np.int32)
        padded[: len(tokens)] = tokens
        return rounded_hidden(self.params, padded)[len(tokens) - 1]


def test_weights_in_8_bits_give_what_the_rounded_model_gives():
    params = decoded(weights(0))
    oracle = SimpleEngine(params=params, config=CONFIG, readout=readout, head=HEAD)
    engine = Engine(weights(0), CONFIG, WEIGHTS, readout=readout, head=HEAD)
    found = generate(engine, REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
    assert_same_replies(found, oracle.generate(REQUESTS, n=2, sampling=SAMPLING, stop=STOP))
    scores = score(engine, REQUESTS)
    np.testing.assert_allclose(scores, oracle.score(REQUESTS), atol=1e-4)
    plain = simple(0, readout=readout, head=HEAD).score(REQUESTS)
    assert np.abs(np.subtract(scores, plain)).max() > 1e-3  # it is another model


def test_keys_and_values_in_8_bits_give_what_rounded_ones_give():
    """Whatever the sizes of calls and of pages: a token is rounded when it is computed."""
    params = weights(0)
    oracle = RoundedKeysAndValues(params=params, config=CONFIG, readout=readout, head=HEAD)
    wanted = oracle.generate(REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
    scores = oracle.score(REQUESTS)
    others = dataclasses.replace(KV, page_size=8, decode_tokens=8, extend_batch=16, extend_rows=2)
    for sizes in (KV, others):
        engine = Engine(params, CONFIG, sizes, readout=readout, head=HEAD)
        found = generate(engine, REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
        assert_same_replies(found, wanted)
        np.testing.assert_allclose(score(engine, REQUESTS), scores, atol=1e-4)
        pool = engine.programs.model.pool
        assert pool.k[0].values.dtype == jnp.int8
        assert pool.k[0].scales.shape == pool.k[0].shape[:3]
    plain = simple(0, readout=readout, head=HEAD).score(REQUESTS)
    assert np.abs(np.subtract(scores, plain)).max() > 1e-3


def test_cudnn_reads_rounded_keys_and_values():
    engine = Engine(weights(0), CONFIG, KV, readout=readout, head=HEAD)
    programs = engine.programs
    backend = Backend(name="cudnn", interpret=True)
    programs.model = dataclasses.replace(
        programs.model, pool=dataclasses.replace(programs.model.pool, backend=backend)
    )
    oracle = RoundedKeysAndValues(params=weights(0), config=CONFIG, readout=readout, head=HEAD)
    np.testing.assert_allclose(score(engine, REQUESTS), oracle.score(REQUESTS), atol=1e-4)


def test_the_triton_kernel_reads_what_8_bits_stand_for():
    """Own pages, shared prefixes with labels, and what rows have decoded."""
    K, G, M, H, C, page_size = 2, 3, 5, 32, 6, 8
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((K, G, M, H)), jnp.float32)
    k, v = (
        encode(jnp.asarray(rng.standard_normal((K, 12, page_size, H)), jnp.float32))
        for _ in range(2)
    )
    fills = rng.integers(0, page_size + 1, (G, C)).astype(np.int32)
    table = PageTable(pages=rng.integers(0, 12, (G, C)).astype(np.int32), fills=fills)
    one = PageTable(pages=table.pages[:1], fills=np.full((1, C), page_size, np.int32))
    labels = jnp.asarray([0, 0, 1, 1, -1, 2], jnp.int32)
    readers = jnp.asarray(rng.integers(-1, 3, (1, G * M)), jnp.int32)
    backend = Backend(name="triton", interpret=True)

    def parts(k, v):
        own = triton.attend_pages(q, k, v, triton.make_table(table), backend)
        together = q.reshape(K, 1, -1, H)
        shared = triton.attend_pages(
            together, k, v, triton.make_table(one, labels), backend, readers
        )
        rows = [jax.tree.map(lambda x: x[:, :G], x) for x in (k, v)]
        return own, shared, triton.attend_rows(q, *rows, jnp.int32(5), backend)

    wanted = parts(decode(k), decode(v))
    for x, y in zip(jax.tree.leaves(parts(k, v)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6, rtol=1e-5)


def test_what_is_planned_is_what_an_engine_holds():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sizes = dataclasses.replace(WEIGHTS, kv="int8")
    params = jax.device_put(weights(0), parameters.shardings(CONFIG, mesh))
    engine = Engine.of(jax.tree.map(jnp.copy, params), CONFIG, sizes, mesh=mesh)
    planned = AbstractEngine(
        parameters.abstract_of(parameters.describe(CONFIG), "float32", mesh),
        CONFIG, sizes, mesh=mesh,
    )  # fmt: skip
    ours, theirs = (each.programs.model for each in (planned, engine))

    def check(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(check, (ours.params, ours.pool), (theirs.params, theirs.pool))


@pytest.mark.slow
def test_several_devices_say_what_one_says():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sizes = dataclasses.replace(WEIGHTS, kv="int8")
    params = jax.device_put(weights(0), parameters.shardings(CONFIG, mesh))
    found, wanted = (
        generate(engine, REQUESTS, n=2, sampling=SAMPLING, stop=STOP)
        for engine in (
            Engine(params, CONFIG, sizes, mesh=mesh),
            Engine(weights(0), CONFIG, sizes),
        )
    )
    assert_same_replies(found, wanted)


def test_memory_is_reckoned_in_8_bits():
    """A head of 16 numbers takes 16 bytes and a scale in place of 64."""
    assert memory.head_bytes(16, 4, None) == 64
    assert memory.head_bytes(16, 4, "int8") == 20
    sizes = dataclasses.replace(KV, cache_tokens=0)
    ours, plain = (
        memory.free_tokens(CONFIG, each, jnp.float32, None)
        for each in (sizes, dataclasses.replace(sizes, kv=None))
    )
    assert ours == pytest.approx(plain * 64 / 20, rel=0.01)
    pool = make_pool(CONFIG, 8, 4, jnp.float32, None, kv="int8")
    held = sum(x.nbytes for x in jax.tree.leaves(pool))
    assert held == 2 * CONFIG.num_layers * CONFIG.num_kv_heads * 8 * 4 * 20


def test_refusals():
    with pytest.raises(UserError, match=r"^weights must be one of int8 \(got 'int4'\)$"):
        EngineConfig(weights="int4")
    with pytest.raises(UserError, match=r"^kv must be one of int8 \(got 'fp8'\)$"):
        EngineConfig(kv="fp8")
    with pytest.raises(
        UserError, match=r"^attention must be one of xla, cudnn, triton with kv: int8 .*'pallas'"
    ):
        EngineConfig(kv="int8", attention="pallas")
    EngineConfig(weights="int8", attention="pallas")
