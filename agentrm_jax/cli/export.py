"""`agentrm export RUN`: a model as a Hugging Face directory, or trajectories as ATIF files."""

from __future__ import annotations

import argparse
import pathlib

from agentrm_jax.cli.parser import Parser, choice


def add_arguments(parser: Parser) -> None:
    parser.description = """\
Writes a model as a Hugging Face directory: weights, tokenizer, chat template and a manifest of
checksums; or trajectories, such as those of runs/NAME/eval/greedy, in Harbor's format (ATIF). Every
command that takes a model or trajectories reads them again."""
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="folder to read")
    parser.add_argument(
        "--what",
        **choice("policy", "reward", "trajectories"),
        required=True,
        help="a model of the run, or the trajectories in the folder",
    )
    parser.add_argument(
        "--to", metavar="DIR", type=pathlib.Path, required=True, help="folder to write"
    )
    parser.add_argument(
        "--dtype",
        **choice("float32", "bfloat16"),
        default="float32",
        help="dtype of the weights (default: float32); a reward model's head is float32",
    )


def run(given: argparse.Namespace) -> int:
    if given.what == "trajectories":
        from agentrm_jax.pipeline.export_trajectories import export_trajectories

        print(export_trajectories(given.run, given.to))
        return 0
    from agentrm_jax.pipeline.export_model import export_model, model_folder

    source = model_folder(given.run, given.what)
    size = export_model(source, given.what, given.to, given.dtype)
    print(f"{given.to}: a {given.what} of {size:,} parameters in {given.dtype}, read from {source}")
    return 0
