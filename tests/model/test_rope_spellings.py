"""Every spelling of rotary scaling in `config.json`: read as transformers reads it, or refused."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FAMILIES, write_directory

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import hugging_face, llama
from agentrm_jax.model.config import LlamaConfig, RopeScaling

BASE = FAMILIES["wide_heads"]
TOKENS = np.random.RandomState(3).randint(0, 96, (1, 96)).astype(np.int32)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FULL = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}
OLD = {"type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}
TOP = "original_max_position_embeddings"
READ = {
    "nothing": {},
    "theta": {"rope_theta": 1e6},
    "whole theta": {"rope_theta": 1000000},
    "old": {"rope_theta": 1e6, "rope_scaling": FULL},
    "old, no theta": {"rope_scaling": FULL},
    "old, type": {"rope_theta": 1e6, "rope_scaling": OLD},
    "old, null": {"rope_theta": 1e6, "rope_scaling": None},
    "old, empty": {"rope_theta": 1e6, "rope_scaling": {}},
    "old, default": {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
    "old, theta inside": {"rope_theta": 1e4, "rope_scaling": {**FULL, "rope_theta": 1e6}},
    "new": {"rope_parameters": DEFAULT},
    "new, null": {"rope_parameters": None, "rope_theta": 1e6},
    "new, llama3": {"rope_parameters": {**FULL, "rope_theta": 1e6}},
    "new, type": {"rope_parameters": {**OLD, "rope_theta": 1e6}},
    "new, theta outside": {"rope_parameters": FULL, "rope_theta": 1e6},
    "new, two thetas": {"rope_parameters": DEFAULT, "rope_theta": 1e4},
    "new, no type": {"rope_parameters": {"rope_theta": 1e6}},
    "both types, rope_type first": {"rope_parameters": {**DEFAULT, "type": "llama3", **LLAMA3}},
    "both": {"rope_parameters": DEFAULT, "rope_scaling": FULL},
    "both and theta": {"rope_parameters": DEFAULT, "rope_scaling": FULL, "rope_theta": 1e5},
    "both, the second null": {"rope_parameters": {**FULL, "rope_theta": 1e5}, "rope_scaling": None},
    "both, the second empty": {"rope_parameters": {**FULL, "rope_theta": 1e5}, "rope_scaling": {}},
    "both, the second default": {
        "rope_parameters": {**FULL, "rope_theta": 1e5}, "rope_scaling": {"type": "default"}},
    "both, the second with theta": {
        "rope_parameters": DEFAULT, "rope_scaling": {**FULL, "rope_theta": 1e5}},
    "no original length": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "original length outside": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, TOP: 32},
    "two original lengths": {"rope_scaling": FULL, TOP: 16},
    "original length without scaling": {"rope_theta": 1e6, TOP: 16},
    "factor of default": {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
    "partial of one": {"rope_scaling": FULL, "partial_rotary_factor": 1.0},
    "unused attention factor": {"rope_scaling": {**FULL, "attention_factor": 2.0, "mscale": 3.0}},
    "whole factors": {"rope_scaling": {**FULL, "factor": 8, "high_freq_factor": 4}},
}  # fmt: skip
REFUSED = {
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: type 'linear'"),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn'"),
    "both, yarn": (
        {"rope_parameters": DEFAULT, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "rope_scaling: type 'yarn'"),
    "longrope": ({"rope_scaling": {"type": "longrope"}}, "type 'longrope'"),
    "proportional": ({"rope_scaling": {"type": "proportional"}}, "type 'proportional'"),
    "mrope": ({"rope_scaling": {"type": "mrope"}}, "type 'mrope'"),
    "null type": ({"rope_scaling": {"rope_type": None, "type": "llama3"}}, "type None"),
    "by layer type": (
        {"rope_parameters": {"full_attention": DEFAULT}}, "rope_parameters.full_attention"),
    "text": ({"rope_scaling": "linear"}, "rope_scaling: must be a mapping"),
    "list": ({"rope_parameters": [FULL]}, "rope_parameters: must be a mapping"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0"),
    "partial inside": (
        {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor"),
    "null theta": ({"rope_theta": None}, "rope_theta: must be a number, not null"),
    "null theta inside": ({"rope_scaling": {**FULL, "rope_theta": None}}, "rope_theta: must be a"),
    "text theta": ({"rope_theta": "1e6"}, "rope_theta: must be a number"),
    "negative theta": ({"rope_theta": -1.0}, "rope_theta: must be positive"),
    "no factor": (
        {"rope_scaling": {k: v for k, v in FULL.items() if k != "factor"}},
        "rope_scaling.factor: missing"),
    "zero factor": ({"rope_scaling": {**FULL, "factor": 0}}, "rope_scaling.factor: must be posi"),
    "null original length": ({"rope_scaling": FULL, TOP: None}, f"rope_scaling.{TOP}: must be"),
    "broken original length": (
        {"rope_scaling": FULL, TOP: 1.5}, f"rope_scaling.{TOP}: must be a whole number"),
    "equal factors": (
        {"rope_scaling": {**FULL, "high_freq_factor": 1.0}}, "high_freq_factor: must be larger"),
    "layer types": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: only"),
}  # fmt: skip


def _directory(tmp_path, keys):
    directory = write_directory(tmp_path / "model", BASE)
    contents = json.loads((directory / "config.json").read_text())
    del contents["rope_theta"], contents["rope_scaling"]
    (directory / "config.json").write_text(json.dumps({**contents, **keys}))
    return directory


@pytest.mark.parametrize("name", REFUSED)
def test_other_spellings_are_refused_in_one_line(name, tmp_path):
    keys, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        hugging_face.load_config(_directory(tmp_path, keys))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_written_and_read_again(name, tmp_path):
    config = hugging_face.load_config(_directory(tmp_path, READ[name]))
    assert LlamaConfig.from_hf(config.to_hf()) == config


def test_the_second_key_replaces_the_first_as_a_whole(tmp_path):
    config = hugging_face.load_config(_directory(tmp_path, READ["both"]))
    assert config.rope_theta == 10_000.0
    assert config.rope_scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
    )
    config = hugging_face.load_config(_directory(tmp_path, READ["two original lengths"]))
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_positions == 16


@pytest.mark.parity
@pytest.mark.parametrize("name", READ)
def test_logits_equal_those_of_transformers(name, tmp_path):
    pytest.importorskip("torch")
    from torch_cases import logits_of, read_by_transformers

    directory = _directory(tmp_path, READ[name])
    theirs = logits_of(read_by_transformers(directory), TOKENS)
    np.testing.assert_allclose(_logits(directory), theirs, atol=1e-4)


def test_the_comparison_tells_spellings_apart(tmp_path):
    names = ("theta", "old", "old, no theta", "both and theta", "two original lengths", "nothing")
    found = [_logits(_directory(tmp_path / str(i), READ[n])) for i, n in enumerate(names)]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert np.abs(a - b).max() > 0.1


def _logits(directory):
    config = hugging_face.load_config(directory)
    params = hugging_face.load_params(directory, config, jnp.float32)
    at = jnp.arange(TOKENS.shape[1])[None]
    hidden = llama.forward(params, config, jnp.asarray(TOKENS), at, jnp.ones_like(at))
    return np.asarray(llama.logits(params, config, hidden))
