"""Hugging Face directories, in and out."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from model_cases import (
    FAMILIES,
    TOKENS,
    assert_equal,
    config_json,
    params_of,
    tensors_of,
    write_directory,
)

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import hugging_face, llama, parameters
from agentrm_jax.model.config import LlamaConfig

CONFIG = FAMILIES["llama31"]


@pytest.fixture(params=FAMILIES)
def config(request):
    return FAMILIES[request.param]


@pytest.fixture
def model(tmp_path):
    return write_directory(tmp_path / "model", CONFIG)


def made(config, dtype=jnp.float32, seed=1):
    params = params_of(config, tensors_of(config, seed))
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def load(directory, dtype=jnp.float32):
    return hugging_face.load_params(directory, hugging_face.load_config(directory), dtype)


def changed(directory, **keys):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def refused(directory, message):
    with pytest.raises(UserError, match=message) as error:
        load(directory)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("files", [1, 4])
def test_reading(config, files, tmp_path):
    tensors = tensors_of(config)
    directory = write_directory(tmp_path / "model", config, tensors, files)
    assert hugging_face.load_config(directory) == config
    params = load(directory)
    assert jax.tree.structure(params) == jax.tree.structure(parameters.describe(config))
    assert_equal(params, params_of(config, tensors))


@pytest.mark.parametrize("most_bytes", [10**9, 30_000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_is_read_again(config, dtype, most_bytes, tmp_path):
    params = made(config, dtype)
    hugging_face.save(tmp_path / "model", config, params, most_bytes=most_bytes)
    assert hugging_face.load_config(tmp_path / "model") == config
    assert_equal(load(tmp_path / "model", dtype), params)
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    if most_bytes == 10**9:
        assert files == ["model.safetensors"]
    else:
        assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
        index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == set(files)
        sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(params)]
        assert index["metadata"]["total_size"] == sum(sizes)
    for name in files:
        with safetensors.safe_open(str(tmp_path / "model" / name), "np") as file:
            assert file.metadata() == {"format": "pt"}


def test_saved_names_and_values_are_those_of_transformers(config, tmp_path):
    tensors = tensors_of(config)
    params = jax.tree.map(jnp.asarray, params_of(config, tensors))
    hugging_face.save(tmp_path / "model", config, params)
    found = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


def test_saving_replaces_and_takes_more(tmp_path):
    """The tokenizer's files come from elsewhere, and are in the manifest with the others."""
    target = tmp_path / "model"
    hugging_face.save(
        target, CONFIG, made(CONFIG, seed=0), add_files=lambda folder: (folder / "old").touch()
    )
    hugging_face.save(
        target,
        CONFIG,
        made(CONFIG, seed=1),
        settings={"eos_token_id": 7},
        add_files=lambda folder: (folder / "tokenizer.json").write_text("{}"),
    )
    names = {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in target.iterdir()} == names | {"manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    contents = json.loads((target / "config.json").read_text())
    assert (contents["eos_token_id"], contents["torch_dtype"]) == (7, "float32")
    assert json.loads((target / "manifest.json").read_text())["sha256"].keys() == names


def test_nothing_is_replaced_when_saving_fails(tmp_path):
    params = made(CONFIG, seed=1)
    hugging_face.save(tmp_path / "model", CONFIG, params)

    def fail(folder):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        hugging_face.save(tmp_path / "model", CONFIG, made(CONFIG, seed=2),
                          add_files=fail)  # fmt: skip
    assert_equal(load(tmp_path / "model"), params)


def test_values_are_cast(tmp_path):
    tensors = tensors_of(CONFIG)
    stored = {name: value.astype(np.float16) for name, value in tensors.items()}
    directory = write_directory(tmp_path / "model", CONFIG, stored)
    assert_equal(load(directory), params_of(CONFIG, jax.tree.map(np.float32, stored)))
    low = load(directory, jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}


def test_buffers_of_old_versions_are_ignored(model):
    tensors = tensors_of(CONFIG)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    write_directory(model, CONFIG, tensors | buffer)
    assert_equal(load(model), params_of(CONFIG, tensors))


def test_tied_weights_are_read_if_only_the_head_is_stored(tmp_path):
    config = FAMILIES["gqa_tied"]
    tensors = tensors_of(config)
    stored = dict(tensors)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    for files in (1, 3):
        directory = write_directory(tmp_path / str(files), config, stored, files)
        assert_equal(load(directory), params_of(config, tensors))
    refused(
        write_directory(tmp_path / "untied", CONFIG, stored),
        r"the tensor model\.embed_tokens\.weight is missing",
    )


@pytest.mark.parity
def test_transformers_reads_tied_weights_of_which_only_the_head_is_stored(tmp_path):
    pytest.importorskip("torch")
    from torch_cases import logits_of
    from transformers import AutoModelForCausalLM

    config = FAMILIES["gqa_tied"]
    stored = tensors_of(config)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    directory = write_directory(tmp_path / "model", config, stored)
    theirs = logits_of(AutoModelForCausalLM.from_pretrained(directory, dtype="float32"))
    params, at = load(directory), jnp.arange(TOKENS.shape[1])[None].repeat(len(TOKENS), 0)
    hidden = llama.forward(params, config, jnp.asarray(TOKENS), at, jnp.ones_like(at))
    np.testing.assert_allclose(llama.logits(params, config, hidden), theirs, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["LlamaForTokenClassification", "LlamaForQuestionAnswering", "LlamaModel",
     "LlamaForRewardModeling", "LlamaForCausalLMEagle3", "LlavaForConditionalGeneration", ""],
)  # fmt: skip
def test_other_heads_are_named(name, model):
    changed(model, architectures=[name])
    message = rf"architectures: {name} is not read; a policy ends in ForCausalLM, a reward model in"
    refused(model, message)
    with pytest.raises(UserError, match=message):
        hugging_face.load_config(model, "reward")


@pytest.mark.parametrize("names", ["LlamaForCausalLM", [1], {"a": 1}, 7])
def test_architectures_that_are_no_names_are_refused(names, model):
    changed(model, architectures=names)
    refused(model, "architectures: must be a list of names")


def test_a_head_beside_tied_embeddings_must_equal_them(tmp_path):
    config = FAMILIES["gqa_tied"]
    tensors = tensors_of(config)
    embed = tensors["model.embed_tokens.weight"]
    directory = write_directory(tmp_path / "m", config, tensors | {"lm_head.weight": embed.copy()})
    assert_equal(load(directory), params_of(config, tensors))
    for other in (embed + np.eye(*embed.shape, dtype=np.float32), embed[:-1]):
        write_directory(directory, config, tensors | {"lm_head.weight": other})
        refused(directory, r"lm_head\.weight differs from model\.embed_tokens\.weight")


def test_both_spellings_of_the_rotary_settings():
    old = config_json(CONFIG)
    theta, scaling = old.pop("rope_theta"), old.pop("rope_scaling")
    new = old | {"rope_parameters": {"rope_theta": theta, **scaling}}
    older = old | {
        "rope_theta": theta,
        "rope_scaling": {"type": "llama3"} | {k: v for k, v in scaling.items() if k != "rope_type"},
    }
    assert LlamaConfig.from_hf(new) == LlamaConfig.from_hf(older) == CONFIG


def test_defaults_of_keys_that_old_files_lack():
    contents = config_json(FAMILIES["mha"])
    for key in ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling"):
        del contents[key]
    contents |= {"rope_parameters": None, "tie_word_embeddings": False}
    assert LlamaConfig.from_hf(contents) == FAMILIES["mha"]


def test_defaults_of_each_family():
    contents = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 64)
    contents |= {"num_hidden_layers": 1, "num_attention_heads": 32}
    read = {
        name: LlamaConfig.from_hf({"model_type": name, **contents, **more})
        for name, more in {
            "llama": {},
            "mistral": {},
            "qwen2": {"sliding_window": 16},  # not used
            "qwen3": {"num_key_value_heads": 8},
        }.items()
    }
    assert [c.num_kv_heads for c in read.values()] == [32, 8, 32, 8]
    assert [c.head_dim for c in read.values()] == [2, 2, 2, 128]
    assert [c.longest for c in read.values()] == [2048, 4096, 32_768, 32_768]
    whole = LlamaConfig.from_hf({"model_type": "mistral", **contents, "sliding_window": None})
    assert whole.longest == whole.max_positions == 131_072


def test_written_config_is_read_again(config):
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model_type": "gpt2"},
            r"config\.json: model_type: must be one of llama, .*, qwen3 \(got 'gpt2'\)",
        ),
        ({"model_type": ["llama"]}, r"config\.json: model_type: must be .* \(got \['llama'\]\)"),
        ({"model_type": None}, r"config\.json: model_type: must be .* \(got None\)"),
        (
            {"model_type": "mistral", "sliding_window": 0},
            r"config\.json: sliding_window: must be at",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True},
            r"json: use_sliding_window: only False",
        ),
        ({"hidden_act": "gelu"}, r"config\.json: hidden_act: only 'silu'"),
        ({"attention_bias": True}, r"config\.json: attention_bias: only False"),
        ({"mlp_bias": True}, r"config\.json: mlp_bias: only False"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"config\.json: rope_scaling: type 'yarn'"),
        ({"rope_scaling": "twice"}, r"config\.json: rope_scaling: must be a mapping"),
        ({"rope_scaling": {"rope_type": "llama3"}}, r"config\.json: rope_scaling\.factor: missing"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: must be true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: must be true or false"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: must not be negative"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: at most 10000 are read"),
        *(
            ({key: size}, rf"config\.json: {key}: must be ")
            for key in (
                "hidden_size",
                "head_dim",
                "vocab_size",
                "num_key_value_heads",
                "intermediate_size",
                "num_hidden_layers",
                "max_position_embeddings",
            )
            for size in (0, -1, 1e308, 10**400)
        ),
        ({"rms_norm_eps": 10**400}, r"config\.json: rms_norm_eps: must be a number, not 1000"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads: must divide num_attention_heads, 4"),
        ({"layer_types": [["full_attention"]]}, r"config\.json: layer_types: only full_attention"),
        ({"head_dim": 3}, r"config\.json: head_dim: must be even \(got 3\)"),
        ({"hidden_size": None}, r"config\.json: hidden_size: missing"),
        ({"hidden_size": "32"}, r"config\.json: hidden_size: must be a number, not '32'"),
        ({"hidden_size": 32.5}, r"config\.json: hidden_size: must be a whole number"),
        ({"rms_norm_eps": True}, r"config\.json: rms_norm_eps: must be a number"),
        ({"num_attention_heads": 0}, r"config\.json: num_attention_heads: must be at least 1"),
        ({"quantization_config": {"bits": 4}}, r"config\.json: quantization_config"),
    ],
)
def test_a_config_that_cannot_be_run_names_the_key(model, keys, message):
    changed(model, **keys)
    refused(model, message)


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers"])
def test_a_config_without_a_key_names_it(model, key):
    contents = json.loads((model / "config.json").read_text())
    del contents[key]
    (model / "config.json").write_text(json.dumps(contents))
    refused(model, rf"config\.json: {key}: missing")


@pytest.mark.parametrize("text", ["", "{", "[]", b"\xff\xfe"])
def test_a_garbled_config_names_the_file(model, text):
    (model / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(model, r"config\.json: (cannot be read|not a JSON object)")


def test_a_missing_config_names_the_file(model):
    (model / "config.json").unlink()
    refused(model, r"config\.json: not found")
    with pytest.raises(UserError, match="not found"):
        hugging_face.load_config(model / "nowhere")


def test_other_formats_are_refused(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(model, r"neither model\.safetensors nor model\.safetensors\.index\.json")


def test_a_damaged_file_is_named(model):
    whole = (model / "model.safetensors").read_bytes()
    for damaged in (b"", b"nonsense" * 9, whole[: len(whole) // 2], whole + b"0"):
        (model / "model.safetensors").write_bytes(damaged)
        refused(model, r"model\.safetensors: not a safetensors file that can be read")


@pytest.mark.parametrize("files", [1, 3])
def test_tensors_that_do_not_fit_are_named(tmp_path, files):
    name = "model.layers.1.self_attn.k_proj.weight"
    whole = tensors_of(CONFIG)
    cases = {
        rf"the tensor {name} is missing": {k: v for k, v in whole.items() if k != name},
        r"safetensors: model\.layers\.2\.more is left over": whole
        | {"model.layers.2.more": np.ones(3, np.float32)},
        rf"safetensors: {name} has shape \(32, 31\), config\.json requires \(32, 32\)": whole
        | {name: np.ones((32, 31), np.float32)},
        rf"safetensors: {name} has shape \(32,\)": whole | {name: np.ones(32, np.float32)},
        rf"safetensors: {name} is stored as I8": whole | {name: np.ones((32, 32), np.int8)},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        refused(write_directory(tmp_path / str(number), CONFIG, tensors, files), message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.norm.weight", np.nan),
        ("model.layers.1.mlp.up_proj.weight", -np.inf),
        ("lm_head.weight", 1e300),  # finite as it is stored, not as it is computed with
    ],
)
def test_values_that_are_not_finite_are_named(name, value, tmp_path):
    tensors = {key: values.astype(np.float64) for key, values in tensors_of(CONFIG).items()}
    tensors[name].flat[-1] = value
    refused(write_directory(tmp_path / "model", CONFIG, tensors), f"safetensors: {name} holds val")


def test_a_config_of_another_size_names_both_shapes(model):
    changed(model, vocab_size=97)
    refused(model, r"embed_tokens\.weight has shape \(96, 32\), config\.json requires \(97, 32")
    changed(model, vocab_size=96, num_hidden_layers=1)
    refused(model, r"model\.layers\.1\.\S+ is left over")
    changed(model, num_hidden_layers=3)
    refused(model, r"model\.layers\.2\.\S+ is missing")


def test_a_wrong_index_is_named(tmp_path):
    model = write_directory(tmp_path / "model", CONFIG, files=3)
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    listed = index["weight_map"]
    norm, first = "model.norm.weight", listed["model.embed_tokens.weight"]
    assert listed[norm] != first
    for weight_map, message in (
        (None, "index.json: weight_map: missing"),
        ({}, "index.json: weight_map: missing"),
        *(
            (listed | {norm: name}, f"weight_map: {norm} is in .*, which is not the name of a")
            for name in (
                "../x.safetensors",
                "/x.safetensors",
                7,
                "",
                "..",
                "config.json",
                "a\nb.safetensors",
                "\ud800.safetensors",
                "x" * 300 + ".safetensors",
            )
        ),
        (listed | {norm: "lost.safetensors"}, "names the file lost.safetensors, which is not"),
        (listed | {norm: first}, f"{norm} is not in the file {first}"),
        (listed | {"model.extra": first}, f"model.extra is not in the file {first}"),
    ):
        path.write_text(json.dumps(index | {"weight_map": weight_map}))
        refused(model, message)
    path.write_text("{")
    refused(model, "index.json: cannot be read")


def test_a_changed_file_is_found_by_the_manifest(tmp_path):
    """Flipped bytes in a weight are a valid file of other weights."""
    saved = tmp_path / "saved"
    hugging_face.save(saved, CONFIG, made(CONFIG, seed=0))
    for name in ("model.safetensors", "config.json"):
        model = shutil.copytree(saved, tmp_path / name)
        contents = bytearray((model / name).read_bytes())
        contents[-3] ^= 0x10
        (model / name).write_bytes(contents)
        refused(model, f"{name}: (its checksum differs from manifest.json|cannot be read)")
    (model / "config.json").write_bytes((saved / "config.json").read_bytes() + b"\n")
    refused(model, r"config\.json: its checksum differs")
    (model / "manifest.json").unlink()
    load(model)
    (saved / "model.safetensors").unlink()
    refused(saved, r"model\.safetensors: missing, manifest\.json lists it")
    (saved / "manifest.json").write_text('{"name": "an app", "icons": []}')
    refused(saved, r"manifest\.json: not a list of checksums by agentrm; if another program wrote")


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    hugging_face.save(tmp_path / "model", CONFIG, made(CONFIG, seed=0))
    (tmp_path / "model" / "training_args.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"did not write.*\(training_args\.bin\)"):
        hugging_face.save(tmp_path / "model", CONFIG, made(CONFIG, seed=1))
    assert (tmp_path / "model" / "training_args.bin").read_bytes() == b"mine"
    assert_equal(load(tmp_path / "model"), made(CONFIG, seed=0))


@pytest.mark.parity
@pytest.mark.parametrize("files", [1, 4])
def test_transformers_reads_what_we_save(config, files, tmp_path):
    pytest.importorskip("torch")
    from torch_cases import logits_of, read_by_transformers

    tensors = tensors_of(config)
    params = jax.tree.map(jnp.asarray, params_of(config, tensors))
    hugging_face.save(
        tmp_path / "model", config, params, most_bytes=10**9 if files == 1 else 30_000
    )
    assert (files == 1) == (tmp_path / "model" / "model.safetensors").exists()
    theirs = read_by_transformers(tmp_path / "model")
    original = read_by_transformers(write_directory(tmp_path / "original", config, tensors))
    for name, value in original.state_dict().items():
        assert (theirs.state_dict()[name] == value).all(), name
    np.testing.assert_array_equal(logits_of(theirs), logits_of(original))
    assert theirs.config.eos_token_id is None


@pytest.mark.parity
@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_we_read_what_transformers_saves(config, size, tmp_path):
    pytest.importorskip("torch")
    from torch_cases import logits_of, read_by_transformers

    theirs = read_by_transformers(write_directory(tmp_path / "original", config))
    theirs.save_pretrained(tmp_path / "model", max_shard_size=size)
    assert (size == "5GB") == (tmp_path / "model" / "model.safetensors").exists()
    read = hugging_face.load_config(tmp_path / "model")
    assert dataclasses.replace(read, max_positions=config.max_positions) == config
    params = load(tmp_path / "model")
    assert_equal(params, params_of(config, tensors_of(config)))
    positions = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden = llama.forward(params, read, TOKENS, jnp.asarray(positions), jnp.ones(TOKENS.shape))
    ours = llama.logits(params, read, hidden)
    np.testing.assert_allclose(ours, logits_of(theirs), atol=1e-4, rtol=0)
