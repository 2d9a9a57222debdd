"""`agentrm convert FILE.gguf`: a Llama's GGUF file as a Hugging Face directory."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.output_folders import check_output_folder


def main(arguments: Sequence[str]) -> int:
    """Writes the directory; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="agentrm convert",
        description="Writes a Llama's GGUF file as a Hugging Face directory that --policy takes: "
        "weights (quantised ones as they are computed with), tokenizer and chat template.",
    )
    parser.add_argument("file", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--to", metavar="DIR", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args(arguments)
    check_output_folder(given.to, [given.file])

    import jax

    from agentrm_jax.data.gguf_tokenizer import (
        end_token_ids,
        special_token_ids,
        write_gguf_tokenizer,
    )
    from agentrm_jax.model import hugging_face
    from agentrm_jax.model.gguf_model import read_gguf

    config, params, metadata = read_gguf(given.file)
    with _named(given.file):
        ids = special_token_ids(metadata, config.vocab_size)
        ends = end_token_ids(metadata, config.vocab_size)
    settings: dict[str, Any] = {f"{role}_token_id": ids.get(role) for role in ("bos", "pad")}
    settings["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)

    def add_files(folder: pathlib.Path) -> None:
        with _named(given.file):
            write_gguf_tokenizer(metadata, folder)

    hugging_face.save(
        given.to,
        config,
        jax.tree.map(lambda x: x.astype(jax.numpy.dtype(given.dtype)), params),
        settings=settings,
        add_files=add_files,
    )
    size = sum(x.size for x in jax.tree.leaves(params))
    print(f"{given.to}: {size:,} parameters in {given.dtype}, read from {given.file}")
    return 0


@contextlib.contextmanager
def _named(file: pathlib.Path) -> Iterator[None]:
    """Errors in the block name the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
