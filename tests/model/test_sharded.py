"""Eight simulated devices: what is computed does not depend on where the parameters live."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from model_cases import (
    assert_equal,
    mesh_of,
    params_of,
    tensors_of,
    write_directory,
)

from agentrm_jax.model import hugging_face, llama, parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.options import ForwardOptions

CONFIG = LlamaConfig(
    vocab_size=64, d_model=32, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=6, d_ff=48
)
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (2, 1, 4), "all": (2, 2, 2)}
TOKENS = np.random.RandomState(0).randint(0, 64, (8, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(CONFIG)


@pytest.fixture(scope="module")
def directories(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return [
        write_directory(folder / "one", CONFIG, tensors),
        write_directory(folder / "five", CONFIG, tensors, files=5),
    ]


def loss_and_logits(params, tokens, mesh, remat):
    """Next-token loss over packed rows of two sequences."""
    at = jnp.arange(tokens.shape[1])
    positions = jnp.broadcast_to(at % 12, tokens.shape)
    segments = jnp.broadcast_to(1 + at // 12, tokens.shape)
    options = ForwardOptions(mesh=mesh, remat=remat)
    hidden = llama.forward(params, CONFIG, tokens, positions, segments, options=options)
    logits = llama.logits(params, CONFIG, hidden)
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1).mean(), logits


@functools.partial(jax.jit, static_argnames=("mesh", "remat"))
def differentiate(params, tokens, mesh=None, remat="none"):
    differentiated = jax.value_and_grad(loss_and_logits, has_aux=True)
    (_, logits), gradients = differentiated(params, tokens, mesh, remat)
    return logits, gradients


def assert_close(ours, wanted):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def one_device(tensors):
    return differentiate(jax.tree.map(jnp.asarray, params_of(CONFIG, tensors)), TOKENS)


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_same_logits_and_gradients(name, directories, one_device):
    mesh = mesh_of(*MESHES[name])
    params = hugging_face.load_params(directories[0], CONFIG, jnp.float32, mesh)
    assert_close(differentiate(params, TOKENS, mesh), one_device)


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_memory_only(remat, directories, one_device):
    params = hugging_face.load_params(directories[0], CONFIG, jnp.float32)
    assert_close(differentiate(params, TOKENS, remat=remat), one_device)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_loaded_into_shards_equals_loaded_whole(sizes, tensors, directories):
    mesh = mesh_of(*sizes)
    whole = params_of(CONFIG, tensors)
    for directory in directories:
        params = hugging_face.load_params(directory, CONFIG, jnp.float32, mesh)
        assert jax.tree.map(lambda x: x.sharding, params) == parameters.shardings(CONFIG, mesh)
        assert_equal(jax.device_get(params), whole)
    for x in jax.tree.leaves(params):
        assert len(x.sharding.device_set) == 8


def test_each_part_is_read_once_and_alone(directories, monkeypatch):
    """Split over all devices, no read is longer than one device's part of a tensor."""
    reads: list[tuple[str, int, int]] = []

    class Slice:
        def __init__(self, name, values):
            self.name, self.values = name, values
            self.get_shape, self.get_dtype = values.get_shape, values.get_dtype

        def __getitem__(self, index):
            found = self.values[index]
            reads.append((self.name, found.size, int(np.prod(self.get_shape()))))
            return found

    class File:
        def __init__(self, *args):
            self.file = safetensors_open(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return Slice(name, self.file.get_slice(name))

    safetensors_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", File)
    hugging_face.load_params(directories[1], CONFIG, jnp.float32, mesh_of(data=2, fsdp=2, tensor=2))
    sizes = {name: whole for name, _, whole in reads}
    for name, whole in sizes.items():
        parts = [size for other, size, _ in reads if other == name]
        assert sum(parts) == whole  # replicas on `data` are not read again
        assert len(parts) == (1 if "norm" in name else 4)


def test_replicas_do_not_share_memory(directories):
    """A donated parameter may be overwritten where it lies; no other may change with it."""
    mesh = mesh_of(data=8)
    params = hugging_face.load_params(directories[0], CONFIG, jnp.float32, mesh)
    places = [
        shard.data.unsafe_buffer_pointer()
        for x in jax.tree.leaves(params)
        for shard in x.addressable_shards
    ]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_saved_from_shards(sizes, directories, tensors, tmp_path):
    params = hugging_face.load_params(directories[0], CONFIG, jnp.float32, mesh_of(*sizes))
    hugging_face.save(tmp_path / "again", CONFIG, params)
    with safetensors.safe_open(str(tmp_path / "again" / "model.safetensors"), "np") as file:
        assert set(file.keys()) == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), value)
