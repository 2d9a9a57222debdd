"""`agentrm score FILE`: what a reward model thinks of trajectories, step by step."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import IO

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.pipeline.reward_model import open_reward_model
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.runtime.output_folders import check_output_file, new_file
from agentrm_jax.runtime.progress import progress

_OWN_KEYS = {"task_id", "score", "outcome", "start", "after_action"}
_LONGEST_LINE = 1 << 24
_DESCRIPTION = """\
Scores trajectories with a reward model, without an environment, and writes one JSON line for each:

  task_id            the task
  score              of the whole trajectory: the last one below that is not null
  outcome            the return that is stored with it (1 for conversations that do not say)
  start              the score before any step
  after_action       for each step, before the environment has answered
  after_observation  for each step, after the observation; null if a conversation ends with a
                     reply
  dropped_steps      how many steps did not fit into the context at the end: the oldest, which
                     were left out, and those that were shortened

FILE is a folder experts, trees, states, samples or eval of a run (of trees: each path that was
backed up), a folder that `agentrm import` wrote, a trees.jsonl or rollouts.jsonl, or a JSON list
of conversations as ETO and AgentGym write them.
"""


def main(arguments: Sequence[str]) -> int:
    """Scores the file's trajectories; returns the exit status."""
    usage = "agentrm score FILE --model RUN [--output OUT.jsonl] [--KEY=VALUE ...]"
    parser = model_parser(usage, _DESCRIPTION)
    parser.add_argument("file", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, help="file to write; default: stdout")
    parser.add_argument(
        "--environment",
        metavar="NAME",
        help="what was played in conversations; default: what ids or the file's name begin with",
    )
    given, overrides = parser.parse_known_args(arguments)
    if given.output is not None:
        _check_output(given.output, given.file)
    trajectories = read_trajectories(given.file, given.environment)
    model = open_reward_model(given.model, given.config, overrides)
    cut = 0
    with _written(given.output) as file, progress("score", len(trajectories)) as bar:
        for scored in model.score_steps(trajectories):
            print(json.dumps(scored.to_json(), allow_nan=False), file=file)
            cut += scored.dropped_steps > 0
            bar.advance()
    where = f" in {given.output}" if given.output else ""
    print(f"{len(trajectories)} trajectories scored{where}", file=sys.stderr)
    if cut:
        context = model.context
        print(
            f"{cut} of them lost steps or parts of them: they are longer than engine.context, "
            f"{context} tokens",
            file=sys.stderr,
        )
    return 0


def model_parser(usage: str, description: str) -> argparse.ArgumentParser:
    """A command's parser with `--model` and `--config`, which `scoring.open_reward_model` takes."""
    parser = argparse.ArgumentParser(
        prog=" ".join(usage.split()[:2]),
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        type=pathlib.Path,
        required=True,
        metavar="RUN",
        help="folder of a run, its reward/explicit/model, or an export",
    )
    parser.add_argument(
        "--config",
        type=pathlib.Path,
        help="how states are rendered; default: as the run did. Keys such as --engine.context=4096 "
        "can be set besides",
    )
    return parser


def _check_output(path: pathlib.Path, source: pathlib.Path) -> None:
    """Only scores of ours are replaced.

    Raises:
      UserError: Something else is there, or nothing can be written there.
    """
    check_output_file(path, [source])
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            first = file.readline(_LONGEST_LINE)
        ours = not first or parse_json(first).keys() >= _OWN_KEYS
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"{path}: was not written by `agentrm score`; choose another file to write")


@contextlib.contextmanager
def _written(path: pathlib.Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there whole or not at all."""
    if path is None:
        yield sys.stdout
        return
    with new_file(path) as file:
        yield file
