"""A Llama from a GGUF file (needs the extra `gguf`)."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from agentrm_jax.core.errors import UserError
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig, RopeScaling
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


def read_gguf(path: pathlib.Path) -> tuple[LlamaConfig, Params, dict[str, Any]]:
    """The shape, the parameters (numpy, float32, quantised values expanded) and all metadata.

    Raises:
      UserError: No GGUF file, not a Llama's, unknown rotary scaling, or tensors that do not fit.
    """
    reader = _open(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = _config(metadata, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    described: Any = flatten_dict(parameters.describe(config))
    found, used = {}, {_ROPE}
    for key, spec in described.items():
        layers = range(config.num_layers) if key[0] == "layers" else [None]
        shape = spec.shape[1:] if key[0] == "layers" else spec.shape
        values = []
        for l in layers:
            name = f"{_TENSORS[key]}.weight" if l is None else f"blk.{l}.{_TENSORS[key]}.weight"
            if name not in tensors:
                raise UserError(f"{path}: the tensor {name} is missing")
            used.add(name)
            values.append(_values(path, tensors[name], shape, key[-1]))
        found[key] = values[0] if key[0] != "layers" else np.stack(values)
    left_over = sorted(tensors.keys() - used)
    if left_over:
        raise UserError(f"{path}: the tensor {left_over[0]} is left over, it is not read")
    return config, unflatten_dict(found), metadata


def _open(path: pathlib.Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("convert: gguf is not installed: pip install 'agentrm-jax[gguf]'") from None
    if not path.is_file():
        raise UserError(f"{path}: not found")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # numpy's, for a file that ends early
        line = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not a GGUF file that can be read ({line})") from None


def _config(metadata: dict[str, Any], tensors: dict[str, Any]) -> LlamaConfig:
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise UserError(f"general.architecture: llama is read, not {kind!r}")
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise UserError("llama.rope.scaling.type: only Llama 3.1's scaling is read from GGUF")

    def number(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise UserError(f"llama.{key}: missing")
        return value

    num_heads, d_model = number("attention.head_count"), number("embedding_length")
    theta = float(number("rope.freq_base", 10_000.0))
    return LlamaConfig(
        vocab_size=len(metadata.get("tokenizer.ggml.tokens", ())),
        d_model=d_model,
        num_layers=number("block_count"),
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        head_dim=number("attention.key_length", d_model // num_heads),
        d_ff=number("feed_forward_length"),
        rope_theta=theta,
        rope_scaling=_scaling(tensors[_ROPE].data, theta) if _ROPE in tensors else None,
        norm_eps=_short(number("attention.layer_norm_rms_epsilon")),
        tie_embeddings=_HEAD not in tensors,
        max_positions=number("context_length"),
    )


def _scaling(divisors: np.ndarray, theta: float) -> RopeScaling:
    """Llama-3.1's scaling, of which GGUF keeps only what each frequency is divided by."""
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
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _values(path: pathlib.Path, tensor: Any, shape: Any, name: str) -> np.ndarray:
    """A tensor in our shape; GGUF has the pairs that are rotated side by side."""
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    within = 2 if name == "o" else 1  # axes of ours that are its last one
    wanted = (math.prod(shape[:-within]), math.prod(shape[-within:])) if len(shape) > 1 else shape
    if values.shape != wanted:
        raise UserError(f"{path}: {tensor.name} has shape {values.shape}, not {wanted}")
    if name not in ("q", "k"):
        return values.reshape(shape)
    return values.reshape(shape[0], -1, 2, shape[2]).swapaxes(1, 2).reshape(shape)
