"""The tiny models in transformers; needs torch."""

from __future__ import annotations

import pathlib
import tempfile
from unittest import mock

import numpy as np
import torch
from model_cases import TOKENS, write_directory
from transformers import AutoModelForCausalLM, PreTrainedModel

from agentrm_jax.model.config import LlamaConfig


def read_by_transformers(directory: pathlib.Path) -> PreTrainedModel:
    model, found = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits_of(model: PreTrainedModel, tokens: np.ndarray = TOKENS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def parts_of(config: LlamaConfig) -> dict[str, np.ndarray]:
    """What each part of the model makes of `TOKENS`, by name; float32.

    Products, norms and softmax are float64: in float32 their last bits differ from one processor to
    the next. Norms and softmax convert to `torch.float32` by name, so this name means float64 while
    the model runs.
    """
    found: dict[str, np.ndarray] = {}

    def keep(name):
        def hook(module, given, out):
            out = out[0] if isinstance(out, tuple) else out
            found[name] = out.detach().float().numpy()

        return hook

    with tempfile.TemporaryDirectory() as folder:
        model = read_by_transformers(write_directory(pathlib.Path(folder) / "model", config))
    model.double()
    first = model.model.layers[0]
    model.model.embed_tokens.register_forward_hook(keep("embed"))
    first.input_layernorm.register_forward_hook(keep("norm"))
    first.self_attn.register_forward_hook(keep("attention"))
    first.mlp.register_forward_hook(keep("mlp"))
    for l, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"block_{l}"))
    model.model.norm.register_forward_hook(keep("final_norm"))
    with mock.patch.object(torch, "float32", torch.float64):
        found["logits"] = logits_of(model).astype(np.float32)
    half = config.head_dim // 2
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(512)[None, ::7])
    found["cos"], found["sin"] = (x[0, :, :half].float().numpy() for x in (cos, sin))
    return found
