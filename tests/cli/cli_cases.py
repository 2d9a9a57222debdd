"""The command line in a process of its own, and what two runs have in common."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "tiny.yaml"


def agentrm(*arguments: str, ends: int, script: tuple[str, ...] = ()) -> tuple[str, str]:
    """Runs `agentrm`; gives what it wrote to stdout and stderr.

    Args:
      ends: The exit status that is expected, negative for a signal.
      script: What to run in place of the program itself.
    """
    program = script or ("-m", "agentrm_jax.cli.main")
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == ends, (arguments, done.stdout, done.stderr)
    return done.stdout, done.stderr


def without_log_probs(trees):
    """The trees without their log-probabilities, and these."""
    log_probs: list[float] = []

    def bare(node):
        log_probs.extend(node.step.log_probs)
        return dataclasses.replace(node, step=dataclasses.replace(node.step, log_probs=()))

    def iteration(record):
        return dataclasses.replace(record, nodes=tuple(map(bare, record.nodes)))

    found = {
        task_id: dataclasses.replace(tree, iterations=tuple(map(iteration, tree.iterations)))
        for task_id, tree in sorted(trees.items())
    }
    return found, log_probs
