"""Reads a Llama from a GGUF file (needs the extra `gguf`)."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig, RopeScaling
from agentrm_jax.model.gguf_file import GgufTensor, read_gguf_file
from agentrm_jax.model.llama import stretched
from agentrm_jax.model.parameters import Params

_TENSORS = {
    ("embed",): "token_embd",
    ("layers", "attention_norm"): "attn_norm",
    ("layers", "q"): "attn_q",
    ("layers", "k"): "attn_k",
    ("layers", "v"): "attn_v",
    ("layers", "o"): "attn_output",
    ("layers", "mlp_norm"): "ffn_norm",
    ("layers", "gate"): "ffn_gate",
    ("layers", "up"): "ffn_up",
    ("layers", "down"): "ffn_down",
    ("final_norm",): "output_norm",
    ("lm_head",): "output",
}
_HEAD, _ROPE = "output.weight", "rope_freqs.weight"
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...] | None] = {
    "rope.scaling.original_context_length": None,  # of YaRN
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (1.0,),
    "tensor_data_layout": None,  # llama.cpp ignores it
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
}
"""Keys without an effect if they have one of these values; None for any value."""


def read_gguf(path: pathlib.Path) -> tuple[LlamaConfig, Params, dict[str, Any]]:
    """Returns shape, parameters (numpy, float32, quantised values expanded) and all metadata.

    Raises:
      UserError: The file is not a GGUF file of a Llama, a key or its value is not supported, or a
        tensor does not match the shape; the message names the key or tensor.
    """
    _require_gguf()
    metadata, tensors = read_gguf_file(path)
    try:
        config = _config(metadata, tensors)
        return config, _params(config, tensors), metadata
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _params(config: LlamaConfig, tensors: Mapping[str, GgufTensor]) -> Params:
    described: Any = flatten_dict(parameters.describe(config))
    names = {
        key: [f"blk.{l}.{_TENSORS[key]}.weight" for l in range(config.num_layers)]
        if key[0] == "layers"
        else [f"{_TENSORS[key]}.weight"]
        for key in described
    }
    _check_names(tensors, {name for each in names.values() for name in each})
    found = {}
    for key, spec in described.items():
        stacked = key[0] == "layers"
        shape = spec.shape[1:] if stacked else spec.shape
        for name in names[key]:
            _check_shape(tensors[name], shape, key[-1])
        values = [_values(tensors[name], shape, key[-1]) for name in names[key]]
        found[key] = np.stack(values) if stacked else values[0]
    return unflatten_dict(found)


def _check_names(tensors: Mapping[str, GgufTensor], wanted: set[str]) -> None:
    missing, left_over = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted - {_ROPE})
    if missing:
        raise UserError(f"the tensor {missing[0]} is missing")
    if left_over:
        raise UserError(f"the tensor {left_over[0]} is left over, it is not read")


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("convert: gguf is not installed: pip install 'agentrm-jax[gguf]'") from None


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> LlamaConfig:
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise UserError(f"general.architecture: llama is read, not {kind!r}")
    for key, wanted in (("general.type", "model"), ("split.count", 1)):
        if metadata.get(key, wanted) not in (wanted, 0):
            raise UserError(f"{key}: only {wanted!r} is read, not {metadata[key]!r}")
    given = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    num_heads, d_model = _whole(given, "attention.head_count"), _whole(given, "embedding_length")
    head_dim = _whole(given, "attention.key_length", d_model // num_heads)
    num_kv_heads = _whole(given, "attention.head_count_kv", num_heads)
    if num_heads % num_kv_heads:
        raise UserError(
            f"llama.attention.head_count_kv: must divide head_count, {num_heads} (got "
            f"{num_kv_heads})"
        )
    if head_dim % 2:
        raise UserError(f"llama.attention.key_length: must be even (got {head_dim})")
    vocab_size = len(_tokens(metadata))
    theta = _number(given, "rope.freq_base", 10_000.0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=_whole(given, "block_count"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        d_ff=_whole(given, "feed_forward_length"),
        rope_theta=theta,
        rope_scaling=_scaling(tensors[_ROPE], theta, head_dim) if _ROPE in tensors else None,
        norm_eps=_short(_number(given, "attention.layer_norm_rms_epsilon")),
        tie_embeddings=_HEAD not in tensors,
        max_positions=_whole(given, "context_length"),
    )
    if config.num_layers > len(tensors):
        raise UserError(
            f"llama.block_count: is {config.num_layers}, but there are only {len(tensors)} tensors"
        )
    same = {"vocab_size": vocab_size, "attention.value_length": head_dim,
            "rope.dimension_count": head_dim}  # fmt: skip
    _check_others(given, same)
    return config


_READ = frozenset((
    "attention.head_count", "embedding_length", "attention.key_length", "rope.freq_base",
    "block_count", "attention.head_count_kv", "feed_forward_length",
    "attention.layer_norm_rms_epsilon", "context_length", "rope.scaling.type",
))  # fmt: skip


def _check_others(given: Mapping[str, Any], same: Mapping[str, int]) -> None:
    """Refuses unknown keys, and values that are not supported.

    Args:
      given: The keys of the architecture, without their prefix.
      same: Keys of which only one value is supported, with this value.
    """
    kind = given.get("rope.scaling.type", "")
    if kind not in ("", "none"):
        raise UserError(f"llama.rope.scaling.type: only 'none' is read, not {kind!r}")
    factors = {"rope.scaling.factor", "rope.scale_linear"}
    for key in factors & given.keys():  # llama.cpp scales linearly if the type is missing
        if kind == "" and given[key] not in (0, 1):
            raise UserError(f"llama.{key}: linear scaling is not supported (got {given[key]!r})")
    for key in given.keys() - _READ - factors:
        allowed = (same[key],) if key in same else _WITHOUT_EFFECT.get(key, ())
        if allowed == ():
            raise UserError(f"llama.{key}: is not read; its effect is not known here")
        if allowed is not None and given[key] not in allowed:
            raise UserError(f"llama.{key}: only {allowed[0]!r} is read, not {given[key]!r}")


def _tokens(metadata: Mapping[str, Any]) -> list[Any]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError("tokenizer.ggml.tokens: must be a list of tokens")
    return tokens


def _whole(given: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = given.get(key, default)
    if value is None:
        raise UserError(f"llama.{key}: missing")
    if type(value) is not int or not 1 <= value < 2**31:
        raise UserError(f"llama.{key}: must be a whole number of at least 1 (got {value!r:.40})")
    return value


def _number(given: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = given.get(key, default)
    if value is None:
        raise UserError(f"llama.{key}: missing")
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise UserError(f"llama.{key}: must be a positive number (got {value!r:.40})")
    return float(value)


def _scaling(tensor: GgufTensor, theta: float, head_dim: int) -> RopeScaling:
    """Returns the scaling of Llama 3.1; GGUF stores only the divisor of each frequency."""
    if tensor.shape != (head_dim // 2,):
        raise UserError(f"{_ROPE} has shape {tensor.shape}, not {(head_dim // 2,)}")
    divisors = tensor.values()
    if divisors.min() < 1:
        raise UserError(f"{_ROPE}: these are not the divisors of Llama 3.1's rotary scaling")
    scaling = RopeScaling(
        factor=float(divisors.max()),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )
    frequencies = theta ** -(np.arange(len(divisors)) / len(divisors))
    wanted = np.asarray(stretched(jnp.asarray(frequencies, jnp.float32), scaling))
    if not np.allclose(frequencies / divisors, wanted, rtol=1e-4, atol=0.0):
        raise UserError(f"{_ROPE}: these are not the divisors of Llama 3.1's rotary scaling")
    return scaling


def _short(value: float) -> float:
    """Returns the shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _check_shape(tensor: GgufTensor, shape: tuple[int, ...], name: str) -> None:
    within = 2 if name == "o" else 1  # axes of ours that are its last one
    wanted = (math.prod(shape[:-within]), math.prod(shape[-within:])) if len(shape) > 1 else shape
    if tensor.shape != wanted:
        raise UserError(f"{tensor.name} has shape {tensor.shape}, not {wanted}")


def _values(tensor: GgufTensor, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Returns a tensor in our shape; in GGUF the two coordinates of a rotated pair are adjacent."""
    values = tensor.values()
    if name not in ("q", "k"):
        return values.reshape(shape)
    return values.reshape(shape[0], -1, 2, shape[2]).swapaxes(1, 2).reshape(shape)
