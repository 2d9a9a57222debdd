"""The kernels for trees and packed sequences against the plain softmax over all scores.

They are interpreted here; that the compilers for GPUs and TPUs take them is a test where these are
installed.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_cases import KINDS, compile_for_gpu, on_gpu
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tpu_cases import abstract, num_kernels

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import interval_tpu, interval_triton
from agentrm_jax.model.attention import Backend, causal_attention, dense_attention
from agentrm_jax.model.interval_attention import visited_blocks

NAMES = ("triton", "pallas")


@dataclasses.dataclass(frozen=True)
class Case:
    """B rows of T tokens with trees of random sizes, N = K * G heads."""

    B: int
    T: int
    K: int
    G: int
    H: int
    seed: int

    def draw(self):
        """q, k, v, weights of a loss, and the ends of subtrees: several trees, then padding."""
        rng = np.random.default_rng(self.seed)
        N = self.K * self.G
        q, k, v, weights = (
            rng.standard_normal((self.B, self.T, heads, self.H)).astype(np.float32)
            for heads in (N, self.K, self.K, N)
        )
        return q, k, v, weights, np.stack([random_ends(rng, self.T) for _ in range(self.B)])


def random_ends(rng: np.random.Generator, length: int) -> np.ndarray:
    """The ends [length] of the subtrees of random trees in preorder."""
    ends = np.zeros(length, np.int32)
    stack: list[list[int]] = []  # tokens of the nodes on the path
    used = length - int(rng.integers(0, min(length, 9)))
    begin = 0
    while begin < used:
        size = int(rng.integers(1, max(2, length // 4)))
        for node in stack[(depth := int(rng.integers(0, len(stack) + 1))) :]:
            ends[node] = begin
        stack = [*stack[:depth], list(range(begin, min(used, begin + size)))]
        begin += size
    for node in stack:
        ends[node] = used
    ends[used:] = length  # padding attends to padding
    return ends


def mask_of(ends: np.ndarray) -> np.ndarray:
    """Pair by pair, slowly."""
    B, T = ends.shape
    return np.asarray(
        [[[i <= j < ends[b, i] for i in range(T)] for j in range(T)] for b in range(B)]
    )


CASES = st.builds(
    Case,
    B=st.sampled_from([1, 2]),
    T=st.integers(1, 150),
    K=st.sampled_from([1, 2]),
    G=st.sampled_from([1, 3]),
    H=st.sampled_from([64]),
    seed=st.integers(0, 2**16),
)


def with_gradients(attend, weights, *given):
    def weighed(*given):
        out = attend(*given)
        return jnp.sum(weights * out), out

    (_, out), gradients = jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True)(*given)
    return out, *gradients


def assert_close(ours, wanted):
    for x, y in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(case=CASES)
def test_trees_equal_dense_attention(name, case):
    """Output and gradients, on random shapes."""
    q, k, v, weights, ends = case.draw()
    wanted = with_gradients(lambda *x: dense_attention(*x, mask_of(ends)), weights, q, k, v)
    backend = Backend(name=name, interpret=True)
    attend = functools.partial(
        causal_attention, segments=jnp.ones_like(ends), backend=backend, subtree_ends=ends
    )
    assert_close(with_gradients(attend, weights, q, k, v), wanted)


@pytest.mark.parametrize("module", [interval_triton, interval_tpu])
def test_queries_without_keys(module):
    """Zeros, and no gradients: padding may be seen by nobody."""
    q, k, v, weights, _ = Case(B=1, T=24, K=1, G=2, H=64, seed=0).draw()
    ends = np.where(np.arange(24) < 20, 20, 0)[None].astype(np.int32)
    mask = mask_of(ends)
    weights = weights * (np.arange(24) < 20)[:, None, None]
    attend = functools.partial(module.attend, visible_until=ends, interpret=True)
    out, *gradients = with_gradients(attend, weights, q, k, v)
    assert not np.asarray(out)[:, 20:].any()
    wanted = with_gradients(lambda *x: dense_attention(*x, mask), weights, q, k, v)
    assert_close((out[:, :20], *gradients), (wanted[0][:, :20], *wanted[1:]))


def test_blocks_that_are_visited():
    """An opening of one block, a branch of two and a branch of one."""
    ends = np.repeat([16, 12, 12, 16], 4)[None].astype(np.int32)
    blocks = visited_blocks(jnp.asarray(ends), 4)
    keys = [[0], [0, 1], [0, 1, 2], [0, 3]]
    queries = [[0, 1, 2, 3], [1, 2], [2], [3]]
    for lists, counts, wanted in (
        (blocks.keys, blocks.num_keys, keys),
        (blocks.queries, blocks.num_queries, queries),
    ):
        assert counts[0].tolist() == [len(own) for own in wanted]
        assert lists[0].tolist() == [own + own[-1:] * (4 - len(own)) for own in wanted]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_that_nobody_sees_are_not_read(name):
    """Even a product with zero would give a NaN."""
    size = 64 if name == "triton" else 128
    q, k, v, weights, _ = Case(B=1, T=3 * size, K=1, G=1, H=64, seed=1).draw()
    ends = np.repeat([3 * size, 2 * size, 3 * size], size)[None].astype(np.int32)
    module = {"triton": interval_triton, "pallas": interval_tpu}[name]
    branch = slice(size, 2 * size)
    broken = [x.copy() for x in (q, k, v)]
    for x in broken:
        x[:, branch] = np.nan
    attend = functools.partial(module.attend, visible_until=ends, interpret=True)
    wanted, ours = (with_gradients(attend, weights, *given) for given in ((q, k, v), broken))
    for x, y in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(x[:, 2 * size :], y[:, 2 * size :])


def test_heads_that_triton_cannot_read():
    q, k, v, _, ends = Case(B=1, T=8, K=1, G=1, H=80, seed=0).draw()
    with pytest.raises(
        UserError, match=r"^model.head_dim must be 16, 32, 64, 128 or 256 for triton .*\(got 80\)"
    ):
        causal_attention(q, k, v, ends, Backend(name="triton"), ends)


def shapes(dtype):
    q, k = ((2, 1000, heads, 128) for heads in (8, 2))
    return (*(jax.ShapeDtypeStruct(shape, dtype) for shape in (q, k, k)),
            jax.ShapeDtypeStruct((2, 1000), jnp.int32))  # fmt: skip


def gradients_of(backend: Backend):
    @jax.grad
    def gradients(given, ends):
        out = causal_attention(*given, ends, backend, ends)
        return jnp.sum(out.astype(jnp.float32))

    return gradients


@pytest.mark.gpu_compile
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_compiler_takes_trees(kind):
    q, k, v, ends = on_gpu(shapes(jnp.bfloat16), kind)
    compiled = compile_for_gpu(gradients_of(Backend(name="triton")), (q, k, v), ends)
    text = compiled.as_text()
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3  # forward, two backward
    assert "[2,8,1000,1000]" not in text
    assert "[2,8,1024,1024]" not in text


@pytest.mark.tpu_compile
@pytest.mark.parametrize("kind", ["v5e", "v5p", "v6e"])
def test_tpu_compiler_takes_trees(kind):
    q, k, v, ends = abstract(shapes(jnp.bfloat16), kind)
    compiled = jax.jit(gradients_of(Backend(name="pallas"))).lower((q, k, v), ends).compile()
    assert num_kernels(compiled) == 3
    assert "[2,8,1024,1024]" not in compiled.as_text()
