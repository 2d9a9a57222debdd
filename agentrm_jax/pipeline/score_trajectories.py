"""Scores of stored trajectories as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.pipeline.reward_model import open_reward_model
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.runtime.output_folders import check_output_file, new_file
from agentrm_jax.runtime.progress import progress

_OWN_KEYS = {"task_id", "score", "outcome", "start", "after_action"}
_LONGEST_LINE = 1 << 24


class ScoreSummary(NamedTuple):
    """The counts of `score_trajectories`.

    Attributes:
      trajectories: Number of trajectories.
      truncated: Number of trajectories with truncated steps.
      context: Longest context, in tokens.
    """

    trajectories: int
    truncated: int
    context: int


def score_trajectories(
    file: pathlib.Path,
    model: str | os.PathLike[str],
    output: pathlib.Path | None = None,
    *,
    environment: str | None = None,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> ScoreSummary:
    """Writes one JSON line of scores for each trajectory; returns how many there are.

    Args:
      file: A folder or file of trajectories; see `trajectory_files.read_trajectories`.
      model: See `reward_model.open_reward_model`, as `config` and `overrides`.
      output: The file to write; None for standard output.
      environment: The environment that was played in conversations that do not name it.
      config: A configuration that says how states are rendered.
      overrides: `--KEY=VALUE` of that configuration.

    Raises:
      UserError: There are no trajectories or no model, or the file cannot be written.
    """
    if output is not None:
        _check_output(output, file)
    named = [] if environment is None else [environment]  # it must only have a prompt
    trajectories = read_trajectories(file, environment, unregistered=named)
    reward_model = open_reward_model(model, config, overrides)
    truncated = 0
    with _written(output) as lines, progress("score", len(trajectories)) as bar:
        for scored in reward_model.score_steps(trajectories):
            print(json.dumps(scored.to_json(), allow_nan=False), file=lines)
            truncated += scored.truncated_steps > 0
            bar.advance()
    return ScoreSummary(len(trajectories), truncated, reward_model.context)


def _check_output(path: pathlib.Path, source: pathlib.Path) -> None:
    """Refuses to replace a file that does not hold scores."""
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
    """Opens standard output, or a file that appears only when it is complete."""
    if path is None:
        yield sys.stdout
        return
    with new_file(path) as file:
        yield file
