"""The kernel for NVIDIA GPUs against plain softmax over the tokens in the pages.

It is interpreted here; that the GPU compiler takes it is a test where it is installed.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_cases import KINDS, on_gpu
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.attention import triton
from agentrm_jax.engine.attention.parts import Part
from agentrm_jax.engine.cache.memory import head_bytes
from agentrm_jax.engine.cache.pages import Context, PageTable, commit, make_pool
from agentrm_jax.engine.programs.decode import DecodePlan, decode
from agentrm_jax.engine.programs.model import LoadedModel
from agentrm_jax.engine.programs.prefill import prefill
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.rows import DecodeRows, PrefillRows
from agentrm_jax.model import parameters
from agentrm_jax.model.attention import Backend
from agentrm_jax.model.eight_bits import abstract_in_eight_bits
from agentrm_jax.plan.abstract_engine import unstacked
from agentrm_jax.plan.hlo import parse
from agentrm_jax.plan.traffic import Assumed, traffic_of
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG

INTERPRETED = Backend(name="triton", interpret=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """K KV heads, G sequences of at most C pages, M queries of each."""

    K: int
    G: int
    M: int
    H: int
    C: int
    page_size: int
    seed: int

    def draw(self):
        """Queries, a pool and a page table; sequences are of any length, none as well."""
        rng = np.random.default_rng(self.seed)
        num_pages = 2 * self.C
        pool = (self.K, num_pages, self.page_size, self.H)
        q, k, v = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((self.K, self.G, self.M, self.H), pool, pool)
        )
        pages = rng.integers(0, num_pages, (self.G, self.C)).astype(np.int32)
        fills = rng.integers(1, self.page_size + 1, (self.G, self.C)).astype(np.int32)
        used = np.arange(self.C) < rng.integers(0, self.C + 1, (self.G, 1))
        return q, k, v, pages * used, fills * used


CASES = st.builds(
    Case,
    K=st.sampled_from([1, 2]),
    G=st.integers(1, 3),
    M=st.sampled_from([1, 4, 20, 130]),
    H=st.sampled_from([16, 64]),
    C=st.integers(1, 12),
    page_size=st.sampled_from([4, 16, 24, 96]),
    seed=st.integers(0, 2**16),
)


def densely(q, k, v, pages, seen):
    """Output and log-sum-exp of queries [K, M, H] over some pages; `seen` is [M, C, page_size]."""
    K, M, H = q.shape
    keys, values = (np.float64(x)[:, pages].reshape(K, -1, H) for x in (k, v))
    scores = np.einsum("kmh,ksh->kms", q, keys) / np.sqrt(H)
    weights = np.exp(scores) * seen.reshape(1, M, -1)
    total = weights.sum(axis=-1)
    out = np.einsum("kms,ksh->kmh", weights, values) / np.maximum(total, 1e-30)[..., None]
    return out, total


def check(part: Part, g: int, wanted) -> None:
    out, total = wanted
    ours = np.float64(part.total[:, g])
    np.testing.assert_array_equal(ours == 0, total == 0)
    got = part.weighted[:, g] / np.maximum(ours, 1e-30)[..., None]
    np.testing.assert_allclose(got, out, atol=3e-6, rtol=0)
    scaled = np.exp(np.float64(part.maximum[:, g])) * ours
    np.testing.assert_allclose(scaled, total, rtol=1e-5)


@settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(CASES)
def test_parts_equal_dense_attention(case):
    q, k, v, pages, fills = case.draw()
    table = triton.make_table(PageTable(pages=pages, fills=fills))
    part = jax.device_get(
        triton.attend_pages(q, jnp.asarray(k), jnp.asarray(v), table, INTERPRETED)
    )
    for g in range(case.G):
        filled = np.arange(case.page_size) < fills[g][:, None]
        seen = np.broadcast_to(filled, (case.M, *filled.shape))
        check(part, g, densely(q[:, g], k, v, pages[g], seen))


@settings(max_examples=4, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(CASES)
def test_queries_read_the_pages_with_their_label(case):
    """Shared prefixes: labels of pages and queries, some of which nobody has."""
    case = dataclasses.replace(case, G=1)
    q, k, v, pages, fills = case.draw()
    rng = np.random.default_rng(case.seed + 1)
    labels = rng.integers(-1, 3, case.C).astype(np.int32)
    fills = fills * (labels >= 0)  # unused columns have label -1
    readers = rng.integers(-1, 4, (1, case.M)).astype(np.int32)
    table = triton.make_table(PageTable(pages=pages, fills=fills), jnp.asarray(labels))
    part = triton.attend_pages(
        q, jnp.asarray(k), jnp.asarray(v), table, INTERPRETED, jnp.asarray(readers)
    )
    filled = np.arange(case.page_size) < fills[0][:, None]
    seen = filled & (labels == readers[0][:, None])[..., None]
    check(jax.device_get(part), 0, densely(q[:, 0], k, v, pages[0], seen))


def test_a_sequence_does_not_depend_on_the_others():
    """To the bit; also with several devices, each with half of the sequences and of the heads."""
    case = Case(K=2, G=4, M=8, H=32, C=10, page_size=16, seed=7)
    q, k, v, pages, fills = case.draw()

    def read(fills, backend=INTERPRETED):
        table = triton.make_table(PageTable(pages=pages, fills=fills))
        part = triton.attend_pages(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), table, backend)
        return jax.device_get(part)

    together = read(fills)
    alone = read(fills * (np.arange(4) == 2)[:, None])
    for x, y in zip(together, alone, strict=True):
        np.testing.assert_array_equal(x[:, 2], y[:, 2])
    if len(jax.devices()) >= 4:
        mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
        divided = read(fills, dataclasses.replace(INTERPRETED, mesh=mesh))
        for x, y in zip(together, divided, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-6)


def test_splits_change_nothing_but_rounding(monkeypatch):
    case = Case(K=1, G=2, M=4, H=16, C=40, page_size=16, seed=3)
    q, k, v, pages, fills = case.draw()
    table = triton.make_table(PageTable(pages=pages, fills=fills))
    parts = []
    for programs in (1, 64):
        monkeypatch.setattr(triton, "_PROGRAMS", programs)
        part = triton.attend_pages(q, jnp.asarray(k), jnp.asarray(v), table, INTERPRETED)
        parts.append(part.weighted / jnp.maximum(part.total, 1e-30)[..., None])
    np.testing.assert_allclose(*parts, atol=2e-6)


def test_rows_read_what_they_have_decoded():
    """The tokens of a call, of which only the first are there."""
    case = Case(K=2, G=1, M=4, H=16, C=1, page_size=24, seed=5)
    q = np.random.default_rng(0).standard_normal((2, 3, 4, 16)).astype(np.float32)
    k, v = np.random.default_rng(1).standard_normal((2, 2, 3, 24, 16)).astype(np.float32)
    for used in (1, 17):
        part = triton.attend_rows(*map(jnp.asarray, (q, k, v, used)), INTERPRETED)
        seen = np.broadcast_to(np.arange(24) < used, (case.M, 1, 24))
        for r in range(3):
            check(jax.device_get(part), r, densely(q[:, r], k, v, [r], seen))


def test_heads_that_the_kernel_cannot_read():
    triton.check_shapes(CONFIG)
    with pytest.raises(
        UserError, match=r"^engine.attention must be xla because triton needs heads of 16, 32, 64, "
        r"128 or 256, not 80$"
    ):  # fmt: skip
        triton.check_shapes(dataclasses.replace(CONFIG, head_dim=80))


def test_pools_that_32_bits_cannot_address():
    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    table = triton.Table(shape(1, 4, dtype=jnp.int32), shape(1, 4, dtype=jnp.int32), shape(1))
    pool = shape(8, 2**18, 16, 128)
    with pytest.raises(UserError, match=r"^engine.cache_tokens must be at most 2,097,151 with"):
        jax.eval_shape(
            lambda q, k, v, t: triton.attend_pages(q, k, v, t, INTERPRETED),
            shape(8, 1, 4, 128), pool, pool, table,
        )  # fmt: skip


def abstract_model(kind: str, kv: str | None):
    """A model of two layers with a large pool, on one GPU; weights have 8 bits if `kv` has."""
    config = dataclasses.replace(
        CONFIG, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=64, d_model=128, d_ff=128
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = parameters.abstract_of(parameters.describe(config), jnp.bfloat16, mesh)
    params = unstacked(params if kv is None else abstract_in_eight_bits(params), mesh)
    pool = jax.eval_shape(lambda: make_pool(config, 16_384, 16, jnp.bfloat16, None, "triton", kv))
    return config, *on_gpu((params, pool), kind)


def check_donation(writing, pool) -> None:
    """The program that writes pages returns every array of the pool in the place of the old one."""
    head, _, _ = writing.as_text().partition("entry_computation_layout")
    aliases = {int(argument) for argument in re.findall(r"\}: \((\d+), \{\}", head)}
    assert aliases == set(range(len(jax.tree.leaves(pool))))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool))
    assert writing.memory_analysis().alias_size_in_bytes == size


@pytest.mark.gpu_compile
@pytest.mark.parametrize("kv", [None, "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_compiler_takes_the_engine(kind, kv):
    """Reading and decoding, in bfloat16 and in 8 bits: nothing copies the pool or a context.

    Greedy and sampled tokens and their log-probabilities need no sort, and pages are written in
    place.
    """
    G, n, C, T, tail = 4, 3, 64, 32, 4
    config, params, pool = abstract_model(kind, kv)

    def ints(*shape: int, dtype=jnp.int32):
        return on_gpu(jax.ShapeDtypeStruct(shape, dtype), kind)

    context = Context(
        shared=PageTable(pages=ints(1, 16), fills=ints(1, 16)),
        shared_ids=ints(16),
        prefix_ids=ints(G),
        own=PageTable(pages=ints(G, C), fills=ints(G, C)),
    )
    R = G * n
    rows = DecodeRows(
        contexts=(context,), slots=None, tails=PageTable(pages=ints(R, tail), fills=ints(R, tail)),
        last_tokens=ints(R), positions=ints(R), offsets=ints(R), keys=ints(R, 2, dtype=jnp.uint32),
        branches=ints(R), temperature=ints(R, dtype=jnp.float32), limits=ints(R),
        active=ints(R, dtype=bool), ends=ints(config.vocab_size, dtype=bool),
    )  # fmt: skip
    new = PrefillRows(
        tokens=ints(R, T), lengths=ints(R), starts=ints(G), context=context, pages=ints(R, T // 16)
    )
    plan = DecodePlan(
        branches=(n,), length=16, tile=4, num_tiles=(G * C // 4,), filter=Sampling().filter
    )
    model = LoadedModel(params, pool, config=config)
    options = {"xla_gpu_autotune_level": 0}
    decoding = decode.lower(model, rows, plan).compile(options)
    scorer = dataclasses.replace(model, readout=lambda _, hidden: hidden)
    reading = prefill.lower(scorer, new).compile(options)
    layers = on_gpu(jax.eval_shape(lambda: prefill(model, new)[0]), kind)
    writing = commit.lower(pool, layers, new.pages).compile(options)
    for compiled in (decoding, reading, writing):
        assert " sort(" not in compiled.as_text()
    check_donation(writing, pool)
    head = head_bytes(config.head_dim, 2, kv)
    page = 2 * 16 * config.num_kv_heads * head  # keys and values of a layer
    for compiled, kernels in ((decoding, 2 * 4), (reading, 2 if kv is None else 2 * 2)):
        assert compiled.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') == kernels
    pool_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pool))
    for compiled in (reading, writing):
        assert compiled.memory_analysis().temp_size_in_bytes < pool_bytes / 8
    assert decoding.memory_analysis().temp_size_in_bytes < 2 * G * C * page
    paged = 2 * page * (G * C + R * tail + 16)
    moved = traffic_of(parse(decoding.as_text()), Assumed(trips={"tokens": 1.0})).by_kind
    assert paged <= moved["attention"] < 2 * paged
    assert moved["copies"] < sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
