"""Attention over pages, by kernels and without, against plain softmax over the tokens in them.

Kernels are interpreted here; that the TPU compiler takes them is a test where it is installed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import REQUESTS, STOP, request
from tpu_cases import abstract, num_kernels

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention import pallas, readers
from agentrm_jax.engine.attention.parts import Part
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool, commit, make_pool
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import generate, score
from agentrm_jax.engine.programs.decode import DecodePlan, decode
from agentrm_jax.engine.programs.model import LoadedModel
from agentrm_jax.engine.programs.prefill import prefill
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.engine.rows import DecodeRows, PrefillRows
from agentrm_jax.model import llama, parameters
from agentrm_jax.model.attention import Backend
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG, SAMPLING, SIZES

K, NUM_PAGES = 2, 24
INTERPRETED = Backend(name="pallas", interpret=True)


def random_pool(head_dim: int, page_size: int) -> Pool:
    """One layer of random keys and values, as the kernels want them."""
    rng = np.random.default_rng(0)
    row = max(head_dim, 128)
    shape = (K, NUM_PAGES, page_size * head_dim // row, row)
    k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    return Pool(k=(k,), v=(v,), page_size=page_size, backend=INTERPRETED)


def plainly(pool: Pool, head_dim: int) -> Pool:
    """The same pool for a backend without a kernel."""
    shape = (K, NUM_PAGES, pool.page_size, head_dim)
    (k,), (v,) = pool.k, pool.v
    return Pool(k=(k.reshape(shape),), v=(v.reshape(shape),), page_size=pool.page_size)


def sequences(page_size: int) -> PageTable:
    """Four sequences of partly filled pages: some, none, all, and one."""
    rng = np.random.default_rng(1)
    counts, width = (3, 0, 8, 1), 8
    pages = rng.permutation(NUM_PAGES)[: 4 * width // 2]
    pages = rng.choice(pages, (4, width)).astype(np.int32)  # some pages are shared
    fills = rng.integers(1, page_size + 1, (4, width)).astype(np.int32)
    used = np.arange(width) < np.asarray(counts)[:, None]
    return PageTable(pages=jnp.asarray(pages * used), fills=jnp.asarray(fills * used))


def with_shared_prefixes(page_size: int) -> Context:
    """The four with two shared prefixes, each from the start of a block; the third has none."""
    pages, fills = np.zeros((1, 24), np.int32), np.zeros((1, 24), np.int32)
    ids = np.full(24, -1, np.int32)
    for first, count, number in ((0, 3, 5), (8, 2, 0)):
        there = slice(first, first + count)
        pages[0, there], fills[0, there], ids[there] = range(count), page_size, number
        fills[0, first + count - 1] = 5
    return Context(
        shared=PageTable(pages=jnp.asarray(pages), fills=jnp.asarray(fills)),
        shared_ids=jnp.asarray(ids),
        prefix_ids=jnp.asarray([0, 5, -1, 0], jnp.int32),
        own=sequences(page_size),
    )


def attended(pool: Pool, q: np.ndarray, pages: np.ndarray, fills: np.ndarray):
    """The output and log-sum-exp of queries [K, M, H] over the tokens of some pages."""
    H = q.shape[-1]

    def tokens(layer: jax.Array) -> np.ndarray:
        there = np.arange(pool.page_size) < fills[:, None]
        return np.float64(layer).reshape(K, NUM_PAGES, -1, H)[:, pages][:, there]

    k, v = tokens(pool.k[0]), tokens(pool.v[0])
    weights = np.exp(np.einsum("kmh,ksh->kms", q, k) / np.sqrt(H))
    total = weights.sum(axis=-1)
    out = np.einsum("kms,ksh->kmh", weights, v) / np.maximum(total, 1e-30)[..., None]
    with np.errstate(divide="ignore"):
        return out, np.log(total)


def check(part: Part, wanted) -> None:
    """A part [K, G, M, ...] against a list of (output, log-sum-exp) for each sequence."""
    out, log_total = (np.stack(x, axis=1) for x in zip(*wanted, strict=True))
    empty = np.isneginf(log_total)
    total = np.asarray(part.total)
    assert np.all((total == 0) == empty)
    np.testing.assert_allclose(
        part.weighted / np.maximum(total, 1e-30)[..., None], out, atol=2e-6, rtol=0
    )
    with np.errstate(divide="ignore"):
        ours = np.where(empty, -np.inf, part.maximum + np.log(total))
    np.testing.assert_allclose(ours, log_total, atol=2e-6, rtol=1e-6)


def read_both(pool: Pool, context: Context, q: jax.Array) -> tuple[Part, Part]:
    """Queries [K, 4, M, H] to their own pages, and to shared prefixes."""
    sequence_of = jnp.repeat(jnp.arange(4), q.shape[2])
    together = q.reshape(K, 1, -1, q.shape[-1])
    return (
        readers.decode_own(pool, context.own, 8, 4 * context.own.pages.shape[1] // 8)(0, q),
        readers.decode_shared(pool, context, sequence_of)(0, together),
    )


@pytest.mark.parametrize(
    ("head_dim", "page_size", "mesh"),
    [(128, 64, None), (32, 128, None), (64, 128, (2, 1, 2))],
)
def test_parts_equal_plain_attention(head_dim, page_size, mesh, monkeypatch):
    """Also if queries do not fit into one block, and with a device for each half of the rows and
    of the heads. To the bit, a sequence's part is the same without the others."""
    monkeypatch.setattr(pallas, "_MOST_QUERIES", 8)
    pool, context, M = random_pool(head_dim, page_size), with_shared_prefixes(page_size), 6
    q = np.random.default_rng(2).standard_normal((K, 4, M, head_dim)).astype(np.float32)
    host = jax.device_get(context)
    own = [attended(pool, q[:, g], host.own.pages[g], host.own.fills[g]) for g in range(4)]
    shared = []
    for g, number in enumerate(host.prefix_ids):
        fills = host.shared.fills[0] * (host.shared_ids == number)
        shared.append(attended(pool, q[:, g], host.shared.pages[0], fills))
    if mesh is None:
        ways = [plainly(pool, head_dim), pool]
    else:
        backend = dataclasses.replace(INTERPRETED, mesh=mesh_of(*mesh))
        ways = [dataclasses.replace(pool, backend=backend)]
    alone = dataclasses.replace(
        context,
        own=jax.tree.map(lambda x: x.at[1:].set(0), context.own),
        prefix_ids=context.prefix_ids.at[1:].set(-1),
    )
    for way in ways:
        read = jax.jit(read_both)
        parts = jax.device_get(read(way, context, q))
        by_itself = jax.device_get(read(way, alone, q))
        for found, wanted in zip(parts, (own, shared), strict=True):
            check(jax.tree.map(lambda x: x.reshape(K, 4, M, *x.shape[3:]), found), wanted)
        for x, y in zip(jax.tree.leaves(parts), jax.tree.leaves(by_itself), strict=True):
            np.testing.assert_array_equal(
                x.reshape(K, 4, M, -1)[:, 0], y.reshape(K, 4, M, -1)[:, 0]
            )


def mesh_of(data: int, fsdp: int, tensor: int):
    if len(jax.devices()) < data * fsdp * tensor:
        pytest.skip(f"needs {data * fsdp * tensor} simulated devices")
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


WIDE = dataclasses.replace(CONFIG, num_heads=2, num_kv_heads=1, head_dim=64, num_layers=1)
PAGES_OF_64 = dataclasses.replace(
    SIZES, page_size=64, decode_tokens=64, extend_tokens=64, cache_tokens=4096, max_segments=16,
    instruction_tokens=64, siblings=2,
)  # fmt: skip


def engine_with(attention: str) -> Engine:
    """An engine of a small model whose attention is interpreted."""

    def grown(spec):
        draw = np.random.default_rng(spec.shape).standard_normal(spec.shape)
        return jnp.asarray(np.ones(spec.shape) if spec.scale is None else draw * 2 * spec.scale)

    params = jax.tree.map(
        grown,
        parameters.describe(WIDE),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )
    params = jax.tree.map(jnp.float32, params)
    engine = Engine(params, WIDE, PAGES_OF_64, readout=lambda head, hidden: hidden[:, 0], head=None)
    pool = make_pool(WIDE, engine.cache.num_pages, 64, jnp.float32, None, attention)
    backend = dataclasses.replace(pool.backend, interpret=True)
    programs = engine.programs
    pool = dataclasses.replace(pool, backend=backend)
    programs.model = dataclasses.replace(programs.model, pool=pool)
    return engine


def outcomes(attention: str):
    """Replies after shared prefixes and branches of them, and scores of siblings."""
    engine = engine_with(attention)
    requests = [
        dataclasses.replace(r, segments=[REQUESTS[2].segments[0], *r.segments]) for r in REQUESTS
    ] + [request(9, 30, 1)]
    requests = [dataclasses.replace(r, shared_prefix=True) for r in requests]
    sampling = dataclasses.replace(SAMPLING, max_tokens=4)
    replies = generate(engine, requests, n=2, sampling=sampling, stop=STOP)
    siblings = [
        TokenSequence(segments=[*r.segments, request(g, 5).segments[0]], shared_prefix=True)
        for r in requests
        for g in (1, 2)
    ]
    return replies, score(engine, siblings)


@pytest.fixture(scope="module")
def wanted():
    return outcomes("xla")


@pytest.mark.parametrize("attention", ["cudnn", "pallas", "triton"])
def test_an_engine_says_the_same(attention, wanted):
    replies, scores = outcomes(attention)
    for ours, theirs in zip(replies, wanted[0], strict=True):
        assert [reply.tokens for reply in ours] == [reply.tokens for reply in theirs]
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x.log_probs, y.log_probs, atol=1e-5)
    np.testing.assert_allclose(scores, wanted[1], atol=1e-5)
    assert np.std(scores) > 0.1


def test_refusals():
    with pytest.raises(UserError, match=r"^attention must be one of xla, cudnn, triton, pal"):
        EngineConfig(attention="flash")
    params = jax.eval_shape(lambda: parameters.init(jax.random.key(0), WIDE, jnp.float32, None))
    if jax.devices()[0].platform == "cpu":
        for name, needs in (
            ("cudnn", "an NVIDIA GPU"),
            ("triton", "an NVIDIA GPU"),
            ("pallas", "a TPU"),
        ):
            message = f"^engine.attention is '{name}', which needs {needs}; this machine has cpu$"
            with pytest.raises(UserError, match=message):
                Engine(params, WIDE, dataclasses.replace(PAGES_OF_64, attention=name))
    pallas.check_shapes(WIDE, 16)
    with pytest.raises(UserError, match=r"^engine.page_size .* multiple of 16 for heads of 64"):
        pallas.check_shapes(WIDE, 8)
    with pytest.raises(UserError, match=r"^engine.attention must be xla .*, not 16$"):
        pallas.check_shapes(CONFIG, 16)
    many = PageTable(pages=jnp.zeros((512, 600), jnp.int32), fills=jnp.zeros((512, 600), jnp.int32))
    with pytest.raises(UserError, match=r"^engine.attention .*take fewer engine.decode_rows"):
        pallas.make_steps(random_pool(128, 32), many)


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("kind", "head_dim"), [("v4", 64), ("v5e", 64), ("v5p", 128), ("v6e", 64), ("v6e", 128)]
)
def test_tpu_compiler_takes_the_engine(kind, head_dim):
    """Reading and decoding, in bfloat16; and nothing copies the pool."""
    config = dataclasses.replace(
        WIDE, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=head_dim, d_model=128, d_ff=128
    )
    num_pages, page_size, G, n, C, T = 16_384, 16, 4, 3, 24, 32
    params = jax.eval_shape(
        lambda: llama.unstacked(parameters.init(jax.random.key(0), config, jnp.bfloat16, None))
    )
    pool = jax.eval_shape(
        lambda: make_pool(config, num_pages, page_size, jnp.bfloat16, None, "pallas")
    )
    params, pool = abstract((params, pool), kind)

    def ints(*shape: int, dtype=jnp.int32):
        return abstract(jax.ShapeDtypeStruct(shape, dtype), kind)

    context = Context(
        shared=PageTable(pages=ints(1, 16), fills=ints(1, 16)),
        shared_ids=ints(16),
        prefix_ids=ints(G),
        own=PageTable(pages=ints(G, C), fills=ints(G, C)),
    )
    R = G * n
    rows = DecodeRows(
        contexts=(context,), slots=None, tails=PageTable(pages=ints(R, 4), fills=ints(R, 4)),
        last_tokens=ints(R), positions=ints(R), offsets=ints(R), keys=ints(R, 2, dtype=jnp.uint32),
        branches=ints(R), temperature=ints(R, dtype=jnp.float32), limits=ints(R),
        active=ints(R, dtype=bool), ends=ints(config.vocab_size, dtype=bool),
    )  # fmt: skip
    new = PrefillRows(
        tokens=ints(R, T), lengths=ints(R), starts=ints(G), context=context,
        pages=ints(R, T // page_size),
    )  # fmt: skip
    plan = DecodePlan(
        branches=(n,), length=16, tile=4, num_tiles=(G * C // 4,), filter=Sampling().filter
    )
    model = LoadedModel(params, pool, config=config)
    decoding = decode.lower(model, rows, plan).compile()
    assert num_kernels(decoding) == 2 * 3  # own pages, shared prefixes and tails
    scorer = dataclasses.replace(model, readout=lambda _, hidden: hidden)
    reading = prefill.lower(scorer, new).compile()
    assert num_kernels(reading) == 2 * 2
    layers = abstract(jax.eval_shape(lambda: prefill(model, new)[0]), kind)
    writing = commit.lower(pool, layers, new.pages).compile()
    pool_bytes = sum(2 * x.size for x in jax.tree.leaves(pool))
    for compiled in (decoding, reading, writing):
        assert compiled.memory_analysis().temp_size_in_bytes < pool_bytes / 16
