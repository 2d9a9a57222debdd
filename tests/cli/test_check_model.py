"""`agentrm check-model`, on tiny models."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import jax
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
from chat_cases import write_tokenizer

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.data.tokenizer import load_tokenizer, train_tokenizer
from agentrm_jax.model import hugging_face, parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.value import init_reward
from agentrm_jax.pipeline import check_model, models
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
CONFIG = LlamaConfig(
    family="llama", vocab_size=600, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1,
    head_dim=8, d_ff=16, tie_embeddings=True,
)  # fmt: skip


def write_model(
    directory: pathlib.Path, kind: str, template: str, *, rows: int = 600, reward: bool = False
) -> pathlib.Path:
    config = dataclasses.replace(CONFIG, vocab_size=rows)
    params = parameters.init(jax.random.key(0), config, mesh=MESH)
    if reward:
        params = init_reward(params, 0.0)
        kernel = jax.random.normal(jax.random.key(1), params["value_head"]["kernel"].shape)
        params["value_head"]["kernel"] = kernel
    hugging_face.save(directory, config, params)
    (directory / "manifest.json").unlink()
    write_tokenizer(directory, kind, template)
    return directory


def outcomes(directory: pathlib.Path, **options: bool) -> dict[str, tuple[str, str]]:
    checks = check_model.check_model(directory, **options)
    return {check.name: (check.outcome, check.detail) for check in checks}


def test_a_sound_model_passes_every_check(tmp_path, capsys):
    write_model(tmp_path / "model", "legacy", "llama 2")
    assert main(["check-model", str(tmp_path / "model"), "--no-logits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{tmp_path / 'model'}: 6 ok, 0 differ, 1 skipped"
    found = outcomes(tmp_path / "model", logits=False)
    assert found["tokens"] == ("ok", "90 of 90 prefixes of 10 conversations")
    assert found["export"] == found["tokens"]
    assert found["logits"] == ("skipped", "--no-logits")
    assert "</s>" in found["replies end at"][1]


@pytest.mark.parity
@pytest.mark.parametrize("reward", [False, True])
def test_logits_and_scores_are_those_of_transformers(reward, tmp_path):
    pytest.importorskip("torch")
    found = outcomes(write_model(tmp_path, "digits", "chatml", reward=reward))
    outcome, detail = found["logits"]
    assert outcome == "ok"
    assert detail.startswith("largest difference ")
    assert ("scores" if reward else "logits") in detail


def test_a_classifier_of_others_is_read_at_the_end_of_its_template(tmp_path):
    found = outcomes(write_model(tmp_path, "digits", "chatml", reward=True), logits=False)
    assert found["value read at"][1].startswith("after an action '\\n' (the end of the template")


def test_without_torch_logits_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(check_model.importlib.util, "find_spec", lambda name: None)
    found = outcomes(write_model(tmp_path, "digits", "chatml"))
    assert found["logits"] == ("skipped", "torch is not installed")


def test_what_differs_is_named_and_the_status_is_one(tmp_path, capsys):
    write_model(tmp_path, "digits", "chatml", rows=100)
    assert main(["check-model", str(tmp_path), "--no-logits"]) == 1
    assert "1 differ" in capsys.readouterr().out.splitlines()[-1]
    largest = load_tokenizer(tmp_path).vocab_size - 1
    assert outcomes(tmp_path, logits=False)["embedding"] == (
        "differs", f"largest token id {largest}, 100 rows",
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"must be below .* embedding, 100 \(got {largest}\)"):
        models.load_policy(tmp_path, "float32", MESH)


def test_a_template_that_cannot_be_read_is_the_only_row(tmp_path, capsys):
    write_model(tmp_path, "byte-level", "blank before replies")
    [(name, (outcome, detail))] = outcomes(tmp_path).items()
    assert (name, outcome) == ("template", "differs")
    assert detail.startswith("the chat template cannot be reproduced token for token")


def test_reasoning_and_dates_are_said(tmp_path):
    write_model(tmp_path, "digits", "qwen 3")
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    assert "here replies keep it" in outcomes(tmp_path, logits=False)["template"][1]
    settings["chat_template"] = "{{ strftime_now('%Y') }}" + settings["chat_template"]
    path.write_text(json.dumps(settings))
    found = outcomes(tmp_path, logits=False)
    assert "its date is 2024-07-26 for ever" in found["template"][1]
    assert found["tokens"][0] == "skipped"
    assert found["export"][0] == "ok"


def test_a_folder_without_a_model_is_one_line(tmp_path, capsys):
    assert main(["check-model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_gguf_file_has_to_be_converted_first(tmp_path, capsys):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert main(["check-model", str(tmp_path / "x.gguf")]) == 2
    assert (
        f"convert it first: agentrm convert {tmp_path / 'x.gguf'} --to" in capsys.readouterr().err
    )


def test_the_template_of_an_export_is_compared_as_well(tmp_path):
    train_tokenizer(["look around"], 300).export(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(
            LlamaConfig(
                vocab_size=300,
                d_model=8,
                num_layers=1,
                num_heads=1,
                num_kv_heads=1,
                head_dim=8,
                d_ff=8,
            ).to_hf()
        )
    )
    assert outcomes(tmp_path, logits=False)["tokens"][0] == "ok"
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|begin|>", "<|begin|>x"))
    assert outcomes(tmp_path, logits=False)["tokens"][0] == "differs"
