"""Tiny models as transformers would save them, written down without our own table of names."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from agentrm_jax.model.config import LlamaConfig, RopeScaling
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

_SIZES = {"vocab_size": 96, "d_model": 32, "num_layers": 2, "d_ff": 48, "norm_eps": 1e-5}
FAMILIES = {
    "mha": LlamaConfig(num_heads=4, num_kv_heads=4, head_dim=8, rope_theta=10_000.0, **_SIZES),
    "gqa_tied": LlamaConfig(
        num_heads=8, num_kv_heads=2, head_dim=4, rope_theta=100_000.0, tie_embeddings=True, **_SIZES
    ),
    "wide_heads": LlamaConfig(
        num_heads=4, num_kv_heads=1, head_dim=16, **(_SIZES | {"norm_eps": 1e-3})
    ),
    "llama31": LlamaConfig(
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rope_scaling=RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
        ),
        **_SIZES,
    ),
    "mistral": LlamaConfig(
        family="mistral", num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=10_000.0,
        sliding_window=200, **_SIZES,
    ),
    "qwen2": LlamaConfig(
        family="qwen2", num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1_000_000.0,
        tie_embeddings=True, **(_SIZES | {"norm_eps": 1e-6}),
    ),
    "qwen3": LlamaConfig(
        family="qwen3", num_heads=4, num_kv_heads=2, head_dim=16, rope_theta=1_000_000.0,
        **(_SIZES | {"norm_eps": 1e-6}),
    ),
}  # fmt: skip
OF_EACH_KIND = ("llama31", "mistral", "qwen2", "qwen3")
GOLDENS = pathlib.Path(__file__).parent / "goldens"
TOKENS = np.random.RandomState(7).randint(0, 96, (2, 24)).astype(np.int32)


def tensors_of(config: LlamaConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names, large enough that every part has a say.

    The numbers come from numpy's frozen generator, so that goldens need not store them.
    """
    D, F, V = config.d_model, config.d_ff, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    more: dict[str, tuple[int, ...]] = {}
    if config.family == "qwen2":
        more = {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", kv), ("v", kv))}
    if config.family == "qwen3":
        more = {f"self_attn.{x}_norm.weight": (config.head_dim,) for x in "qk"}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for l in range(config.num_layers):
        shapes |= {
            f"model.layers.{l}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (q, D),
                "self_attn.k_proj": (kv, D),
                "self_attn.v_proj": (kv, D),
                "self_attn.o_proj": (D, q),
                "mlp.gate_proj": (F, D),
                "mlp.up_proj": (F, D),
                "mlp.down_proj": (D, F),
                "input_layernorm": (D,),
                "post_attention_layernorm": (D,),
            }.items()
        }
        shapes |= {f"model.layers.{l}.{name}": shape for name, shape in more.items()}
    shapes["model.norm.weight"] = (D,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (V, D)
    rng = np.random.RandomState(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape)
        return (1 + 0.2 * values if len(shape) == 1 else 1.5 * values / np.sqrt(shape[-1])).astype(
            np.float32
        )

    return {name: draw(shape) for name, shape in shapes.items()}


def config_json(config: LlamaConfig) -> dict:
    """As transformers before version 5 wrote it."""
    scaling = config.rope_scaling
    more = {
        "mistral": {"sliding_window": config.sliding_window},
        "qwen2": _UNUSED,
        "qwen3": _UNUSED,
    }
    return {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        **more.get(config.family, {}),
    }


_UNUSED = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}


def write_directory(
    directory: pathlib.Path,
    config: LlamaConfig,
    tensors: dict[str, np.ndarray] | None = None,
    files: int = 1,
) -> pathlib.Path:
    """A Hugging Face directory without any of our own code."""
    tensors = tensors_of(config) if tensors is None else tensors
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_json(config)))
    if files == 1:
        safetensors.numpy.save_file(tensors, directory / "model.safetensors")
        return directory
    listed = {}
    for i in range(files):
        name = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = dict(list(tensors.items())[i::files])
        safetensors.numpy.save_file(part, directory / name)
        listed |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": listed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def params_of(config: LlamaConfig, tensors: dict[str, np.ndarray]) -> dict:
    """Our parameters, written out by hand as an oracle for the loader."""
    D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim

    def stack(name, change, kind="weight"):
        each = [tensors[f"model.layers.{l}.{name}.{kind}"] for l in range(config.num_layers)]
        return np.stack([change(w) for w in each])

    params = {
        "embed": tensors["model.embed_tokens.weight"],
        "layers": {
            "attention_norm": stack("input_layernorm", lambda w: w),
            "q": stack("self_attn.q_proj", lambda w: w.reshape(N, H, D)),
            "k": stack("self_attn.k_proj", lambda w: w.reshape(K, H, D)),
            "v": stack("self_attn.v_proj", lambda w: w.reshape(K, H, D)),
            "o": stack("self_attn.o_proj", lambda w: w.reshape(D, N, H)),
            "mlp_norm": stack("post_attention_layernorm", lambda w: w),
            "gate": stack("mlp.gate_proj", lambda w: w),
            "up": stack("mlp.up_proj", lambda w: w),
            "down": stack("mlp.down_proj", lambda w: w),
        },
        "final_norm": tensors["model.norm.weight"],
    }
    if config.family == "qwen2":
        params["layers"] |= {
            "q_bias": stack("self_attn.q_proj", lambda w: w.reshape(N, H), "bias"),
            "k_bias": stack("self_attn.k_proj", lambda w: w.reshape(K, H), "bias"),
            "v_bias": stack("self_attn.v_proj", lambda w: w.reshape(K, H), "bias"),
        }
    if config.family == "qwen3":
        params["layers"] |= {
            f"{x}_norm": stack(f"self_attn.{x}_norm", lambda w: w) for x in ("q", "k")
        }
    if not config.tie_embeddings:
        params["lm_head"] = tensors["lm_head.weight"]
    return params


def mesh_of(data=1, fsdp=1, tensor=1):
    if len(jax.devices()) < data * fsdp * tensor:
        pytest.skip(f"needs {data * fsdp * tensor} simulated devices")
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def assert_equal(a, b) -> None:
    """The same trees, to the bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
