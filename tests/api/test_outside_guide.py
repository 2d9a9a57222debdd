"""The programs and configurations of docs/guides/outside.md."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from agentrm_jax.envs.outside.agentgym_servers import SERVER_KINDS
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.prompts import RunPrompts
from agentrm_jax.pipeline.tasks import Tasks

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides" / "outside.md"
FILES = dict(
    re.findall(r'```(?:python|yaml) title="([\w.]+)"\n(.*?)```', PAGE.read_text(), re.DOTALL)
)


def test_the_class_of_a_gymnasium_environment_fits_and_runs(tmp_path):
    program = FILES["lake.py"]
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    path = tmp_path / "lake.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=100, check=True
    )
    assert "You are in row 0, column 0." in done.stdout
    assert "You are in row 1, column 0." in done.stdout
    assert "You are in row 0, column 1." in done.stdout


@pytest.mark.parametrize("name", ["agentgym.yaml", "gymnasium.yaml"])
def test_configurations_list_tasks(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name])
    config = load_config(path, ["--evaluate.num_tasks=5", "--explore.num_tasks=3"])
    listed = Tasks(config)
    assert (len(listed.test), len(listed.explored)) == (5, 3)
    assert "Action:" in RunPrompts(config.environments)(listed.test[0]).instruction
    assert listed.overlap() == 0


def test_a_configuration_of_logs_needs_no_environment(tmp_path):
    path = tmp_path / "logged.yaml"
    path.write_text(FILES["logged.yaml"])
    config = load_config(path, ["--trajectories=[logs.jsonl]"])
    assert config.labels_states
    assert not config.explores


def test_the_table_of_servers_is_that_of_the_code():
    row = r"^\| (`\w+`[`\w, ]*) \| `(\w+)` \| (.*) \| ([\d, ]+) \|$"
    rows = re.findall(row, PAGE.read_text(), re.MULTILINE)
    found = {}
    for names, item, _, steps in rows:
        kinds, numbers = re.findall(r"\w+", names), steps.split(", ")
        for position, kind in enumerate(kinds):
            found[kind] = (item, int(numbers[min(position, len(numbers) - 1)]))
    assert found == {kind.name: (kind.item_key, kind.max_steps) for kind in SERVER_KINDS.values()}
