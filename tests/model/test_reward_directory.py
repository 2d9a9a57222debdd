"""Reward models as sequence classifiers, in and out."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from model_cases import (
    FAMILIES,
    TOKENS,
    assert_equal,
    mesh_of,
    params_of,
    tensors_of,
    write_directory,
)

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import hugging_face, llama, parameters
from agentrm_jax.model.value import readout

CLASSES = {
    "llama31": "Llama", "gqa_tied": "Llama", "mistral": "Mistral", "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}  # fmt: skip
PAD = 95  # `TOKENS` may hold it, but no row ends with it


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


def reward_of(config, bias=0.25):
    trunk = jax.tree.map(jnp.asarray, params_of(config, tensors_of(config, 1)))
    trunk.pop("lm_head", None)
    kernel = np.random.RandomState(3).standard_normal(config.d_model).astype(np.float32)
    head = {"kernel": jnp.asarray(kernel), "bias": jnp.float32(bias)}
    return {"trunk": trunk, "value_head": head}


def load(directory, dtype=jnp.float32, mesh=None):
    config = hugging_face.load_config(directory, "reward")
    return hugging_face.load_params(directory, config, dtype, mesh, "reward")


@pytest.mark.parametrize("bias", [0.25, 0.0])
def test_what_is_saved_is_read_again(name, bias, tmp_path):
    config, directory = FAMILIES[name], tmp_path / "model"
    params = reward_of(config, bias)
    hugging_face.save(directory, config, params, settings={"pad_token_id": PAD})
    assert hugging_face.load_config(directory, "reward") == config
    assert_equal(load(directory), params)
    contents = json.loads((directory / "config.json").read_text())
    assert contents["architectures"] == [f"{CLASSES[name]}ForSequenceClassification"]
    assert (contents["num_labels"], contents["problem_type"]) == (1, "regression")
    assert (contents["pad_token_id"], contents["model_type"]) == (PAD, config.family)
    assert contents.get("agentrm_value_bias") == (bias or None)
    stored = safetensors.numpy.load_file(directory / "model.safetensors")
    wanted = tensors_of(config, 1).keys() - {"lm_head.weight"} | {"score.weight"}
    assert stored.keys() == (wanted | {"agentrm_value_bias"} if bias else wanted)
    assert stored["score.weight"].shape == (1, config.d_model)


def test_a_head_stays_in_float32(tmp_path):
    config = FAMILIES["qwen2"]
    params = reward_of(config)
    low = {**params, "trunk": parameters.cast(params["trunk"], jnp.bfloat16)}
    hugging_face.save(tmp_path / "model", config, low)
    assert_equal(load(tmp_path / "model", jnp.bfloat16), low)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_read_into_shards(tmp_path):
    config, mesh = FAMILIES["qwen2"], mesh_of(data=2, fsdp=2, tensor=2)
    params = reward_of(config)
    for bias in (0.25, 0.0):
        params["value_head"]["bias"] = jnp.float32(bias)
        hugging_face.save(tmp_path / "model", config, params, most_bytes=30_000)
        read = load(tmp_path / "model", mesh=mesh)
        described = parameters.describe_reward(config)
        assert jax.tree.map(lambda x: x.sharding, read) == parameters.shardings_of(described, mesh)
        assert_equal(jax.device_get(read), params)


def test_one_kind_is_not_taken_for_the_other(tmp_path):
    config = FAMILIES["qwen3"]
    hugging_face.save(tmp_path / "reward", config, reward_of(config))
    write_directory(tmp_path / "policy", config)
    with pytest.raises(UserError, match=r"config\.json: architectures: a reward model, a policy"):
        hugging_face.load_config(tmp_path / "reward")
    with pytest.raises(UserError, match=r"config\.json: architectures: a policy model, a reward"):
        hugging_face.load_config(tmp_path / "policy", "reward")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score.weight": None}, r"the tensor score\.weight is missing"),
        (
            {"score.weight": np.ones((2, 32), np.float32)},
            r"score\.weight has shape \(2, 32\), .*\(1",
        ),
        ({"agentrm_value_bias": np.ones(2, np.float32)}, r"agentrm_value_bias has shape \(2,\)"),
        ({"lm_head.weight": np.ones((96, 32), np.float32)}, r"lm_head\.weight is left over"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    config = FAMILIES["mistral"]
    hugging_face.save(tmp_path, config, reward_of(config))
    file = tmp_path / "model.safetensors"
    stored = safetensors.numpy.load_file(file) | change
    safetensors.numpy.save_file({k: v for k, v in stored.items() if v is not None}, file)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@functools.partial(jax.jit, static_argnames="config")
def values_of(params, config, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = llama.forward(params["trunk"], config, tokens, positions, jnp.ones_like(positions))
    return readout(params["value_head"], hidden)


@pytest.mark.parity
@pytest.mark.parametrize("bias", [0.25, 0.0])
@pytest.mark.parametrize("side", ["right", "left"])
def test_transformers_gives_the_same_scores(name, bias, side, tmp_path):
    """Of rows of different lengths, padded on either side."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    config = FAMILIES[name]
    params = reward_of(config, bias)
    hugging_face.save(tmp_path, config, params, settings={"pad_token_id": PAD})
    model, found = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert type(model).__name__ == f"{CLASSES[name]}ForSequenceClassification"
    assert not found["missing_keys"]
    assert set(found["unexpected_keys"]) == ({"agentrm_value_bias"} if bias else set())
    assert getattr(model.config, "agentrm_value_bias", 0.0) == bias
    ends, width = (23, 15), TOKENS.shape[1]
    rows, mask = np.full((2, width), PAD), np.zeros((2, width), int)
    for row, seen, given, end in zip(rows, mask, TOKENS, ends, strict=True):
        at = slice(0, end) if side == "right" else slice(width - end, width)
        row[at], seen[at] = given[:end], 1
        assert given[end - 1] != PAD
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(rows), torch.tensor(mask)).logits[:, 0].numpy()
    ours = values_of(params, config, TOKENS)[np.arange(2), np.asarray(ends) - 1]
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(theirs + bias, ours, atol=1e-4, rtol=0)
