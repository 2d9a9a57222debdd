"""A Llama's GGUF file as a Hugging Face directory."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.gguf_tokenizer import (
    end_token_ids,
    special_token_ids,
    write_gguf_tokenizer,
)
from agentrm_jax.model import hugging_face
from agentrm_jax.model.gguf_model import read_gguf
from agentrm_jax.runtime.output_folders import check_output_folder


def convert_gguf(file: pathlib.Path, to: pathlib.Path, dtype: str) -> int:
    """Writes weights, tokenizer and chat template of a GGUF file; returns the parameter count.

    Args:
      file: The GGUF file. Quantised weights are written as the values that they stand for.
      to: The folder to write.
      dtype: Of the weights, `float32` or `bfloat16`.

    Raises:
      UserError: The file is not a Llama in GGUF format, or the folder cannot be written.
    """
    check_output_folder(to, [file])
    config, params, metadata = read_gguf(file)
    with _named(file):
        ids = special_token_ids(metadata, config.vocab_size)
        ends = end_token_ids(metadata, config.vocab_size)
    settings: dict[str, Any] = {f"{role}_token_id": ids.get(role) for role in ("bos", "pad")}
    settings["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)

    def add_files(folder: pathlib.Path) -> None:
        with _named(file):
            write_gguf_tokenizer(metadata, folder)

    cast = jax.tree.map(lambda x: x.astype(jax.numpy.dtype(dtype)), params)
    hugging_face.save(to, config, cast, settings=settings, add_files=add_files)
    return sum(x.size for x in jax.tree.leaves(params))


@contextlib.contextmanager
def _named(file: pathlib.Path) -> Iterator[None]:
    """Adds the file to errors of the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
