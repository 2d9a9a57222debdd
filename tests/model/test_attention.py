"""Every backend of attention against the plain softmax over all scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FAMILIES, TOKENS, mesh_of, params_of, tensors_of
from tpu_cases import abstract, num_kernels

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import llama
from agentrm_jax.model.attention import (
    Backend,
    causal_attention,
    check_device,
    dense_attention,
    masked_attention,
)
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.model.tiled_attention import attend_tiles
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.train.fit import FitConfig

NAMES = ("xla", "cudnn", "triton", "pallas")
PALLAS = ForwardOptions(attention="pallas")
PLATFORM = jax.devices()[0].platform


def packed(length: int, rows: int = 2, head_dim: int = 64, dtype=jnp.float32):
    """q, k, v and segments: sequences of all lengths, one of a single token, and padding."""
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, head_dim) for heads in (4, 2, 2)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    cuts = [[7, 8, length // 2, length - 5]] * (rows - 1) + [[length] * 4]  # the last is one whole
    ends = jnp.asarray(cuts)[..., None] <= jnp.arange(length)  # [rows, 4, length]
    segments = 1 + ends.sum(axis=1)
    return q, k, v, jnp.where(segments == 5, 0, segments).astype(jnp.int32)


def mask_of(segments):
    at = jnp.arange(segments.shape[1])
    return (segments[:, :, None] == segments[:, None]) & (at[:, None] >= at)


def with_gradients(attend, q, k, v):
    """What attention gives, and the gradients of a sum that weighs every number otherwise."""
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

    def weighed(q, k, v):
        out = attend(q, k, v)
        return jnp.sum(weights * out), out

    differentiated = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = differentiated(q, k, v)
    return out, *gradients


def assert_close(ours, wanted, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)


def compare(backend: Backend, length: int, tolerance=1e-5, **sizes) -> None:
    q, k, v, segments = packed(length, **sizes)
    wanted = with_gradients(lambda *x: dense_attention(*x, mask_of(segments)), q, k, v)
    ours = with_gradients(lambda *x: causal_attention(*x, segments, backend), q, k, v)
    assert_close(ours, wanted, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_with_gradients(name):
    """A length that is no multiple of anything: kernels fill it up."""
    compare(Backend(name=name, interpret=True), 141)


@pytest.mark.parametrize("name", NAMES)
def test_each_device_computes_its_part(name):
    compare(Backend(name=name, mesh=mesh_of(2, 1, 2), interpret=True), 40, rows=4)


def random_trees(length: int, rows: int):
    """Returns `subtree_ends` of random trees of up to six nodes in preorder, and their mask."""
    rng = np.random.default_rng(3)
    subtree_ends, mask = (
        np.full((rows, length), length, np.int32),
        np.zeros((rows, length, length), bool),
    )
    for row in range(rows):
        ends = [0, *np.sort(rng.choice(np.arange(1, length - 8), 6, replace=False))]
        on_path: list[int] = []  # ancestors of the node, itself the last
        for node in range(6):
            del on_path[rng.integers(1, len(on_path) + 1) if on_path else 0 :]
            on_path.append(node)
            own = slice(ends[node], ends[node + 1])
            for other in on_path:
                mask[row, own, ends[other] : ends[other + 1]] = True
        for key in range(ends[-1]):
            subtree_ends[row, key] = 1 + np.flatnonzero(mask[row, :, key]).max()
        mask[row, ends[-1] :, ends[-1] :] = True  # padding sees itself
    return jnp.asarray(subtree_ends), jnp.asarray(mask & np.tri(length, dtype=bool))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mesh", [None, (2, 1, 2)])
def test_trees_with_gradients(name, mesh):
    q, k, v, segments = packed(141, rows=4)
    subtree_ends, mask = random_trees(141, 4)
    backend = Backend(name=name, mesh=mesh and mesh_of(*mesh), interpret=True)
    wanted = with_gradients(lambda *x: dense_attention(*x, mask), q, k, v)
    ours = with_gradients(lambda *x: causal_attention(*x, segments, backend, subtree_ends), q, k, v)
    assert_close(ours, wanted)


@pytest.mark.parametrize("size", [8, 24, 128])
def test_tiles_of_all_sizes(size):
    q, k, v, _ = packed(141, rows=4)
    subtree_ends, mask = random_trees(141, 4)
    wanted = with_gradients(lambda *x: dense_attention(*x, mask), q, k, v)
    ours = with_gradients(lambda *x: attend_tiles(*x, subtree_ends, size), q, k, v)
    assert_close(ours, wanted)


def test_tiles_that_nobody_sees_are_left_out():
    """Two branches behind an opening of 16: what the second tile of each row holds can't matter to
    the third, not even by a product with zero."""
    q, k, v, _ = packed(48)
    subtree_ends = jnp.asarray(
        [[48] * 16 + [32] * 16 + [48] * 16, [16] * 16 + [32] * 16 + [48] * 16]
    )
    at = slice(16, 32)
    broken = [x.at[:, at].set(jnp.nan) for x in (q, k, v)]
    wanted = with_gradients(lambda *x: attend_tiles(*x, subtree_ends, 16), q, k, v)
    ours = with_gradients(lambda *x: attend_tiles(*x, subtree_ends, 16), *broken)
    for x, y in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(x[:, 32:], y[:, 32:])
    for x, y in zip(ours, wanted, strict=True):  # in the second row nobody sees them
        np.testing.assert_array_equal(x[1, :16], y[1, :16])


@pytest.mark.parametrize("mesh", [None, (2, 1, 2)])
def test_rows_with_masks_of_their_own(mesh):
    q, k, v, _ = packed(12)
    mask = jnp.asarray(np.random.default_rng(2).random((2, 12, 12)) < 0.3).at[:, :, 3].set(True)
    backend = Backend(name="cudnn", mesh=mesh and mesh_of(*mesh), interpret=True)
    attend = jax.jit(masked_attention, static_argnums=4)
    assert_close(attend(q, k, v, mask, backend), dense_attention(q, k, v, mask))


def test_no_backend_changes_the_types():
    q, k, v, segments = packed(10, dtype=jnp.bfloat16)
    for name in ("xla", "cudnn"):
        out = causal_attention(q, k, v, segments, Backend(name=name, interpret=True))
        assert (out.shape, out.dtype) == (q.shape, q.dtype)


@pytest.mark.skipif(PLATFORM != "gpu", reason="needs an NVIDIA GPU")
def test_cudnn_itself():
    check_device("engine.attention", "cudnn", None)
    for length, head_dim in ((141, 64), (512, 128)):  # rounded to bfloat16 within
        compare(Backend(name="cudnn"), length, tolerance=0.05, head_dim=head_dim)


@pytest.mark.skipif(PLATFORM != "tpu", reason="needs a TPU")
def test_pallas_itself():
    check_device("engine.attention", "pallas", None)
    with jax.default_matmul_precision("highest"):
        compare(Backend(name="pallas"), 300, tolerance=0.02)


@pytest.mark.tpu_compile
@pytest.mark.parametrize(("kind", "head_dim"), [("v5e", 64), ("v5p", 128)])
def test_tpu_compiler_takes_the_forward_and_backward_pass(kind, head_dim):
    config = LlamaConfig(
        vocab_size=256, d_model=128, num_layers=1, num_heads=4, num_kv_heads=2,
        head_dim=head_dim, d_ff=128,
    )  # fmt: skip
    params = abstract(jax.tree.map(jnp.asarray, params_of(config, tensors_of(config))), kind)
    tokens = abstract(jax.ShapeDtypeStruct((2, 500), jnp.int32), kind)

    @jax.jit
    @jax.grad
    def gradient(params, tokens, positions, segments):
        hidden = llama.forward(params, config, tokens, positions, segments, options=PALLAS)
        return jnp.sum(hidden)

    compiled = gradient.lower(params, tokens, tokens, tokens).compile()
    assert num_kernels(compiled) == 3  # forward, and two backward


def test_the_forward_pass_asks_the_backend():
    config = FAMILIES["mha"]
    params = jax.tree.map(jnp.asarray, params_of(config, tensors_of(config)))
    with pytest.raises(UserError, match=r"^model.head_dim must be a multiple of 64 .*\(got 8\)"):
        llama.forward(params, config, TOKENS, TOKENS, TOKENS, options=PALLAS)


def test_heads_that_cudnn_does_not_know():
    with pytest.raises(UserError, match=r"^model.head_dim must be a multiple of 8 .*\(got 12\)"):
        causal_attention(*packed(8, head_dim=12), Backend(name="cudnn"))


@pytest.mark.skipif(PLATFORM != "cpu", reason="needs a machine without an accelerator")
@pytest.mark.parametrize(("name", "needs"), [("cudnn", "an NVIDIA GPU"), ("pallas", "a TPU")])
def test_what_the_device_cannot_run(name, needs):
    wanted = f"^attention is '{name}', which needs {needs}; this machine has cpu$"
    with pytest.raises(UserError, match=wanted):
        FitConfig(attention=name).check_mesh(make_mesh(MeshConfig(), jax.devices()[:1]))


def test_names_that_are_none():
    with pytest.raises(
        UserError, match=r"^attention must be one of xla, cudnn, triton, pallas .got 'flash'.$"
    ):
        FitConfig(attention="flash")
