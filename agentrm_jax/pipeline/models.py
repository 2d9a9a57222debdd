"""Loads and saves models with their tokenizers; makes new ones."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.tokenizer import Tokenizer, load_tokenizer
from agentrm_jax.model import hugging_face, parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import PAPER_HEAD, ValueHead, head_from_json, head_to_json
from agentrm_jax.model.hugging_face import Kind
from agentrm_jax.model.parameters import Params
from agentrm_jax.pipeline.model_config import ModelConfig
from agentrm_jax.pipeline.trained_on import read_trained_on, write_trained_on
from agentrm_jax.runtime.checkpoints import load_model, read_model_config, save_model


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Parameters, their shape, the tokenizer whose tokens they read; a reward model's head.

    `trained_on` holds the problems that a reward model was trained on, None if it is not known.
    """

    params: Params
    config: LlamaConfig
    tokenizer: Tokenizer
    head: ValueHead = PAPER_HEAD
    trained_on: frozenset[str] | None = None


def fresh_policy(
    config: ModelConfig, tokenizer: Tokenizer, context: int, dtype: str, mesh: Mesh, seed: int
) -> Model:
    """A policy that has learned nothing yet.

    Args:
      context: Longest sequence that it will read, in tokens.
    """
    shape = fresh_shape(dataclasses.replace(config, vocab_size=tokenizer.vocab_size), context)
    params = parameters.init(jax.random.key(seed), shape, jnp.dtype(dtype), mesh)
    return Model(params=params, config=shape, tokenizer=tokenizer)


def fresh_shape(config: ModelConfig, context: int) -> LlamaConfig:
    """The shape of a policy that `sft` makes, with a tokenizer that fills the vocabulary."""
    return LlamaConfig(**dataclasses.asdict(config), tie_embeddings=True, max_positions=context)


def stored_shape(directory: pathlib.Path, kind: Kind) -> LlamaConfig:
    """The shape of a model in a folder, without its parameters; `kind` is `policy` or `reward`.

    Raises:
      UserError: There is none.
    """
    if _is_exported(directory):
        return hugging_face.load_config(directory, kind)
    return _stored_config(directory, kind)


def stored_head(directory: pathlib.Path) -> ValueHead:
    """The head of a reward model in a folder; one that says nothing of it has the paper's.

    Raises:
      UserError: There is no reward model, or no head of its kind is registered.
    """
    if _is_exported(directory):
        return PAPER_HEAD
    stored = read_model_config(directory, "reward").get("value_head", {})
    try:
        return head_from_json(stored)
    except (TypeError, UserError) as error:
        raise UserError(f"{directory / 'model.json'}: value_head: {error}") from None


def load_policy(directory: pathlib.Path, dtype: str, mesh: Mesh) -> Model:
    """A policy of a run (`runs/NAME/sft/model`) or a Hugging Face directory.

    Raises:
      UserError: There is none, or it cannot be read.
    """
    return _load(directory, "policy", dtype, mesh)


def load_policy_params(
    directory: pathlib.Path, dtype: str, mesh: Mesh
) -> tuple[Params, LlamaConfig]:
    """The parameters and the shape of a policy whose tokenizer is not needed.

    Raises:
      UserError: There is none, or it cannot be read.
    """
    params, config, _ = _load_params(directory, "policy", dtype, mesh)
    return params, config


def load_reward(directory: pathlib.Path, dtype: str, mesh: Mesh) -> Model:
    """A reward model of a run (`runs/NAME/reward/explicit/model`) or a Hugging Face directory.

    Raises:
      UserError: There is none, or it cannot be read.
    """
    return _load(directory, "reward", dtype, mesh)


def _load(directory: pathlib.Path, kind: Kind, dtype: str, mesh: Mesh) -> Model:
    params, config, head = _load_params(directory, kind, dtype, mesh)
    tokenizer = _tokenizer_for(directory, config)
    return Model(
        params=params,
        config=config,
        tokenizer=tokenizer,
        head=head,
        trained_on=read_trained_on(directory),
    )


def _load_params(
    directory: pathlib.Path, kind: Kind, dtype: str, mesh: Mesh
) -> tuple[Params, LlamaConfig, ValueHead]:
    head = PAPER_HEAD
    if _is_exported(directory):
        config = hugging_face.load_config(directory, kind)
        params = hugging_face.load_params(directory, config, jnp.dtype(dtype), mesh, kind)
    elif (directory / "model.json").exists():
        config = _stored_config(directory, kind)
        description = parameters.describe(config)
        if kind == "reward":
            head = stored_head(directory)
            description = parameters.describe_reward(config, head.outputs)
        params = load_model(directory, parameters.abstract_of(description, jnp.dtype(dtype), mesh))
    else:
        raise UserError(
            f"{directory}: no model here; a {kind} is a Hugging Face directory (config.json, "
            "*.safetensors, tokenizer.json) or a model folder of a run"
        )
    return params, config, head


def is_model_directory(directory: pathlib.Path) -> bool:
    """Whether a folder holds a model, of a run or of Hugging Face."""
    return _is_exported(directory) or (directory / "model.json").exists()


def _is_exported(directory: pathlib.Path) -> bool:
    return (directory / "config.json").exists() and not (directory / "model.json").exists()


def save(directory: pathlib.Path, kind: str, model: Model) -> None:
    """Writes a model and its tokenizer to a folder; `kind` is `policy` or `reward`."""
    config = model.config.to_hf()
    if kind == "reward":
        config["value_head"] = head_to_json(model.head)

    def add_files(folder: pathlib.Path) -> None:
        model.tokenizer.save(folder)
        write_trained_on(folder, model.trained_on)

    save_model(directory, kind, config, model.params, add_files)


def _stored_config(directory: pathlib.Path, kind: str) -> LlamaConfig:
    stored: dict[str, Any] = read_model_config(directory, kind)
    try:
        return LlamaConfig.from_hf(stored)
    except UserError as error:
        raise UserError(f"{directory / 'model.json'}: {error}") from None


def _tokenizer_for(directory: pathlib.Path, config: LlamaConfig) -> Tokenizer:
    tokenizer = load_tokenizer(directory)
    largest = max(tokenizer.vocab_size - 1, *tokenizer.chat_tokens)
    if largest >= config.vocab_size:
        raise UserError(
            f"{directory}: the largest token id of the tokenizer must be below the rows of the "
            f"model's embedding, {config.vocab_size} (got {largest})"
        )
    return tokenizer
