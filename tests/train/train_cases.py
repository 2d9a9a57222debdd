"""A tiny model, packed rows and meshes for the tests of training."""

import functools

import jax
import numpy as np
import pytest

from agentrm_jax.data.packing import PackedRows, pack
from agentrm_jax.data.sequences import TokenSequence
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import PAPER_HEAD
from agentrm_jax.model.value import init_reward
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    tie_embeddings=True,
)


def mesh_of(data=1, fsdp=1, tensor=1):
    if len(jax.devices()) < data * fsdp * tensor:
        pytest.skip(f"needs {data * fsdp * tensor} simulated devices")
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


@functools.cache
def _initial():
    return jax.device_get(parameters.init(jax.random.key(0), CONFIG))


def policy_params(mesh=None):
    copies = jax.tree.map(np.array, _initial())  # training may reuse the memory that it is handed
    return jax.device_put(copies, None if mesh is None else parameters.shardings(CONFIG, mesh))


def reward_params(mesh=None, head=PAPER_HEAD):
    """A reward model whose head is no longer at rest, so that gradients reach the trunk."""
    params = init_reward(policy_params(mesh), 0.3, head)
    shape = params["value_head"]["kernel"].shape
    params["value_head"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), shape)
    return params


def sequences(n: int, seed: int = 0) -> list[TokenSequence]:
    """Random tokens with labels at a third of them, among others at the first."""
    rng = np.random.default_rng(seed)
    made = []
    for size in rng.integers(4, 24, n):
        weights = rng.random(size).astype(np.float32) * (rng.random(size) < 0.3)
        weights[0] = 1.0
        made.append(
            TokenSequence(
                tokens=rng.integers(1, CONFIG.vocab_size, size).astype(np.int32),
                weights=weights.astype(np.float32),
                targets=rng.random(size).astype(np.float32),
            )
        )
    return made


def rows_of(n: int, length: int = 32, seed: int = 0) -> PackedRows:
    return pack(sequences(n, seed), length)


def batch_of(rows: PackedRows) -> dict[str, np.ndarray]:
    return rows.take(np.arange(len(rows)))


def assert_gradients_close(a, b, tolerance):
    """Each parameter's gradient within so much of its own size."""
    for path, x in jax.tree_util.tree_leaves_with_path(a):
        y = functools.reduce(lambda tree, key: tree[key.key], path, b)
        error = np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(y)
        assert error < tolerance, (path, error)
