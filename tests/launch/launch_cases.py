"""What the tests of `agentrm launch` have in common."""

from __future__ import annotations

import pathlib
import sys

import pytest

from agentrm_jax.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny.yaml"
THIS_PROGRAM = f"{sys.executable} -m agentrm_jax.cli.main"


def rendered(capsys: pytest.CaptureFixture[str], *words: str, output: str = "/shared/run") -> str:
    """What `--dry-run` prints for a place and options."""
    kind, *options = words
    assert main(["launch", kind, str(CONFIG), "--output", output, "--dry-run", *options]) == 0
    return capsys.readouterr().out


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
