"""`agentrm export`, on models as a run leaves them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_cases import CONFIG, agentrm

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import HEADS, HLGauss, Quantile, ValueHead, register_head
from agentrm_jax.model.value import init_reward, readout
from agentrm_jax.pipeline import models
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

PROBLEMS = ("0123456789abcdef", "fedcba9876543210")
MESH = make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    config = LlamaConfig(
        family="qwen2", vocab_size=300, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8, d_ff=16, tie_embeddings=True,
    )  # fmt: skip
    tokenizer = train_tokenizer(["go to red key 1"], 300)
    params = parameters.init(jax.random.key(0), config, mesh=MESH)
    policy = models.Model(params=params, config=config, tokenizer=tokenizer)
    models.save(folder / "sft" / "model", "policy", policy)
    head = {"kernel": jnp.arange(16, dtype=jnp.float32), "bias": jnp.float32(0.25)}
    reward = {**init_reward(params, 0.0), "value_head": head}
    stored = dataclasses.replace(policy, params=reward, trained_on=frozenset(PROBLEMS))
    models.save(folder / "reward" / "explicit" / "model", "reward", stored)
    return folder


def fails(capsys, *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    written = capsys.readouterr().err
    assert written.startswith("agentrm: error: ")
    assert written.count("\n") == 1
    return written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["policy", "reward"])
def test_what_is_exported_is_read_again(what, dtype, run, tmp_path, capsys):
    source = run / {"policy": "sft/model", "reward": "reward/explicit/model"}[what]
    out = tmp_path / "out"
    assert main(["export", str(run), "--what", what, "--to", str(out), "--dtype", dtype]) == 0
    assert str(source) in capsys.readouterr().out
    load = {"policy": models.load_policy, "reward": models.load_reward}[what]
    found, wanted = (load(folder, dtype, MESH) for folder in (out, source))
    assert jax.tree.structure(found.params) == jax.tree.structure(wanted.params)
    for x, y in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert found.config == wanted.config == models.stored_shape(out, what)
    assert found.tokenizer.fingerprint() == wanted.tokenizer.fingerprint()
    contents = json.loads((out / "config.json").read_text())
    assert contents["pad_token_id"] == wanted.tokenizer.pad_id
    assert contents["eos_token_id"] == wanted.tokenizer.chat.stop_token
    listed = json.loads((out / "manifest.json").read_text())["sha256"]
    assert {"README.md", "tokenizer.json", "tokenizer_config.json"} < listed.keys()
    assert (
        found.trained_on == wanted.trained_on == (frozenset(PROBLEMS) if what == "reward" else None)
    )
    assert ("trained_on.json" in listed) == (what == "reward")
    readme = (out / "README.md").read_text()
    assert ("agentrm_value_bias" in readme) == (what == "reward")


def test_an_export_is_exported_again_in_its_place(run, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    for source, to in ((run, out), (run, out), (out, again)):
        assert main(["export", str(source), "--what", "reward", "--to", str(to)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_without_a_bias_the_score_is_the_classifiers(finished, tmp_path):
    run = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    for folder in ("reward", "eval"):
        shutil.rmtree(run / folder)
    agentrm("train-rm", str(CONFIG), "--output", str(run), "--train_rm.head_bias=false", ends=0)
    trained = models.load_reward(run / "reward" / "explicit" / "model", "float32", MESH)
    head = trained.params["value_head"]
    assert float(head["bias"]) == 0.0
    assert np.abs(head["kernel"]).max() > 0.0
    out = tmp_path / "out"
    assert main(["export", str(run), "--what", "reward", "--to", str(out)]) == 0
    assert "agentrm_value_bias" not in (out / "config.json").read_text()
    assert "agentrm_value_bias" not in (out / "README.md").read_text()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargestOf(ValueHead):
    """A head that the package does not have: the largest of some numbers."""

    numbers: int
    not_linear = "its value is the largest of its outputs"

    @property
    def outputs(self):
        return self.numbers

    def value(self, outputs):
        return outputs.max(axis=-1)

    def losses(self, outputs, targets):
        return (self.value(outputs) - targets) ** 2

    def initial_bias(self, mean):
        return np.full(self.numbers, mean)


def test_a_head_from_outside_is_stored_and_refused_with_its_reason(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(HEADS, "_registered", {})
    model = models.load_reward(run / "reward" / "explicit" / "model", "float32", MESH)
    head = LargestOf(numbers=3)
    params = init_reward(model.params["trunk"], 0.25, head)
    changed = dataclasses.replace(model, params=params, head=head)
    with pytest.raises(UserError, match="LargestOf has no name"):
        models.save(tmp_path / "in", "reward", changed)
    register_head("largest_of")(LargestOf)
    models.save(tmp_path / "in", "reward", changed)
    found = models.load_reward(tmp_path / "in", "float32", MESH)
    assert found.head == head
    assert float(readout(found.params["value_head"], jnp.ones(16), found.head)) == 0.25
    export = (tmp_path / "in", "--what", "reward", "--to", tmp_path / "out")
    message = fails(capsys, *export)
    assert "largest_of cannot be exported: its value is the largest of its outputs" in message
    monkeypatch.setattr(HEADS, "_registered", {})
    message = fails(capsys, *export)
    assert "model.json: value_head: value head 'largest_of' is not registered" in message


@pytest.mark.parametrize("head", [Quantile(bins=4), HLGauss(bins=4)], ids=repr)
def test_heads_of_other_kinds(head, run, tmp_path, capsys):
    """The mean of quantiles is one linear map; that of a softmax is none."""
    source = run / "reward" / "explicit" / "model"
    model = models.load_reward(source, "float32", MESH)
    kernel, bias = jax.random.normal(jax.random.key(1), (2, 4, 16))
    value_head = {"kernel": kernel, "bias": bias[:, 0]}
    params = {**model.params, "value_head": value_head}
    models.save(tmp_path / "in", "reward", dataclasses.replace(model, params=params, head=head))
    if isinstance(head, HLGauss):
        message = fails(capsys, tmp_path / "in", "--what", "reward", "--to", tmp_path / "out")
        assert (
            "the value head hl_gauss cannot be exported: its value is the mean of a softmax"
            in message
        )
        return
    arguments = ["export", str(tmp_path / "in"), "--what", "reward", "--to", str(tmp_path / "out")]
    assert main(arguments) == 0
    found = models.load_reward(tmp_path / "out", "float32", MESH)
    hidden = jax.random.normal(jax.random.key(2), (5, 16))
    values = readout(found.params["value_head"], hidden, found.head)
    np.testing.assert_allclose(values, readout(value_head, hidden, head), rtol=1e-5, atol=1e-6)
    assert models.stored_head(tmp_path / "out") == found.head


def test_mistakes(run, tmp_path, capsys):
    out = tmp_path / "out"
    nowhere = fails(capsys, tmp_path, "--what", "policy", "--to", out)
    assert f"{tmp_path}: no model here; a policy is" in nowhere
    other = fails(capsys, run / "sft" / "model", "--what", "reward", "--to", out)
    assert "holds a policy model, a reward model is wanted" in other
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    full = fails(capsys, run, "--what", "policy", "--to", tmp_path / "mine")
    assert f"{tmp_path / 'mine'}: holds files that agentrm did not write" in full
    inside = fails(capsys, run, "--what", "policy", "--to", run / "sft")
    assert f"{run / 'sft'}: holds {run / 'sft' / 'model'}, which is read" in inside
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_corrupt_export_is_one_error(name, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--what", "reward", "--to", str(out)]) == 0
    contents = bytearray((out / name).read_bytes())
    contents[-9] ^= 1
    (out / name).write_bytes(contents)
    message = fails(capsys, out, "--what", "reward", "--to", tmp_path / "again")
    assert str(out / name) in message


@pytest.mark.parametrize("name", ["notes.txt", "README.md"])
def test_files_added_to_an_export_or_changed_in_it_stay(name, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--what", "reward", "--to", str(out)]) == 0
    (out / name).write_text("mine")
    message = fails(capsys, run, "--what", "reward", "--to", out)
    assert f"did not write, or that changed since ({name})" in message
    assert (out / name).read_text() == "mine"


@pytest.mark.parametrize("what", ["policy", "reward"])
def test_damaged_weights_of_a_run_are_not_exported(what, run, tmp_path, capsys):
    source = run / {"policy": "sft/model", "reward": "reward/explicit/model"}[what]
    damaged = shutil.copytree(source, tmp_path / "damaged")
    path = max(damaged.rglob("d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    message = fails(capsys, damaged, "--what", what, "--to", tmp_path / "out")
    assert f"{path}: its checksum differs from manifest.json" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_exported(value, run, tmp_path, capsys):
    model = models.load_policy(run / "sft" / "model", "float32", MESH)
    params = {**model.params, "final_norm": model.params["final_norm"].at[3].set(value)}
    models.save(tmp_path / "in", "policy", dataclasses.replace(model, params=params))
    message = fails(capsys, tmp_path / "in", "--what", "policy", "--to", tmp_path / "out")
    assert "parameter final_norm holds values that are not finite" in message
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_vocabulary(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--what", "policy", "--to", str(out)]) == 0
    words = ["".join(chr(97 + i * j % 26) for j in range(9)) for i in range(99)]
    train_tokenizer(words, 400).save(out)
    (out / "manifest.json").unlink()
    message = fails(capsys, out, "--what", "policy", "--to", tmp_path / "again")
    assert f"{out}: the largest token id of the tokenizer must be below" in message
    assert "the model's embedding, 300 (got 399)" in message
