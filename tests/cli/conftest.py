"""One finished run of the smallest configuration, for all tests of the command line."""

from __future__ import annotations

import pathlib

import pytest
from cli_cases import CONFIG, agentrm


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Its folder. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    agentrm("run", str(CONFIG), "--output", str(folder), ends=0)
    return folder
