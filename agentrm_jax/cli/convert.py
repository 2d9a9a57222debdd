"""`agentrm convert FILE.gguf`: a Llama's GGUF file as a Hugging Face directory."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from agentrm_jax.core.output_folders import check_output_folder


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

    from agentrm_jax.data.gguf_tokenizer import write_gguf_tokenizer
    from agentrm_jax.model import hugging_face
    from agentrm_jax.model.gguf_model import read_gguf

    config, params, metadata = read_gguf(given.file)
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    hugging_face.save(
        given.to,
        config,
        jax.tree.map(lambda x: x.astype(jax.numpy.dtype(given.dtype)), params),
        settings={k: metadata.get(f"tokenizer.ggml.{name}_token_id") for k, name in names.items()},
        beside=lambda folder: write_gguf_tokenizer(metadata, folder),
    )
    size = sum(x.size for x in jax.tree.leaves(params))
    print(f"{given.to}: {size:,} parameters in {given.dtype}, read from {given.file}")
    return 0
