"""`agentrm import`, and runs whose experts are what it wrote."""

from __future__ import annotations

import json
import pathlib

import pytest
from cli_cases import CONFIG

from agentrm_jax.cli.main import main
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.envs.experts import expert_trajectories
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> pathlib.Path:
    """Five mazes as AgentGym writes them; of the last one nothing was earned."""
    pool = EnvPool(workers=0)
    tasks = load_family("maze").tasks("train", kinds=("generated",), n=5, seed=3)
    items = []
    for number, trajectory in enumerate(expert_trajectories(pool, tasks, lambda: None)):
        turns = [("human", "Walk.", None), ("gpt", "OK", False)]
        turns.append(("human", trajectory.first_observation, None))
        for step in trajectory.steps:
            turns += [("gpt", step.reply, True), ("human", step.transition.observation, None)]
        items.append(
            {
                "item_id": f"lmrlgym_maze_{number}",
                "reward": float(number < 4),
                "conversations": [{"from": f, "value": v, "loss": l} for f, v, l in turns[:-1]],
            }
        )
    pool.close()
    path = tmp_path_factory.mktemp("import") / "maze_train.json"
    path.write_text(json.dumps(items))
    return path


def test_imported_trajectories_take_the_place_of_the_experts(conversations, tmp_path, capsys):
    folder = tmp_path / "maze"
    assert main(["import", str(conversations), "--output", str(folder)]) == 0
    assert "5 trajectories of maze, 4 of them solved" in capsys.readouterr().out
    arguments = [
        str(CONFIG), "--output", str(tmp_path / "run"), f"--experts.imported=[{folder}]",
        "--sft.fit.num_updates=2",
    ]  # fmt: skip
    assert main(["experts", *arguments]) == 0
    taken = list(open_trajectories(tmp_path / "run" / "experts" / "dataset"))
    assert taken == [t for t in open_trajectories(folder) if t.success]
    assert len(taken) == 4
    assert main(["sft", *arguments]) == 0
    assert (tmp_path / "run" / "sft" / "model").is_dir()


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (False, "not found; `agentrm import` makes it"),
        (True, "holds trajectories of babyai, on which `environments` does not train"),
    ],
)
def test_what_cannot_be_taken_is_one_error(conversations, tmp_path, capsys, write, reason):
    folder = tmp_path / "imported"
    if write:
        arguments = ["import", str(conversations), "--environment", "babyai"]
        assert main([*arguments, "--output", str(folder)]) == 0
    arguments = [str(CONFIG), "--output", str(tmp_path / "run"), f"--experts.imported=[{folder}]"]
    assert main(["experts", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(folder) in error
    assert reason in error
