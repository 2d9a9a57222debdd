"""`agentrm convert FILE.gguf`: a Llama's GGUF file as a Hugging Face directory."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser, choice


def add_arguments(parser: Parser) -> None:
    parser.description = """\
Writes the GGUF file of a Llama as a Hugging Face directory that --policy accepts: weights
(quantised weights as the values that they stand for), tokenizer and chat template."""
    parser.add_argument("file", metavar="FILE", type=pathlib.Path, help="a GGUF file")
    parser.add_argument(
        "--to", metavar="DIR", type=pathlib.Path, required=True, help="folder to write"
    )
    parser.add_argument(
        "--dtype",
        **choice("float32", "bfloat16"),
        default="float32",
        help="dtype of the weights (default: %(default)s)",
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.convert_gguf import convert_gguf

    size = convert_gguf(given.file, given.to, given.dtype)
    print(f"{given.to}: {size:,} parameters in {given.dtype}, read from {given.file}")
    return 0
