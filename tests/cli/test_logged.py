"""A reward model of logged trajectories alone: `label --from FILE`, `train-rm`, `score`."""

from __future__ import annotations

import json
import pathlib

import pytest

from agentrm_jax.cli.main import main
from agentrm_jax.data.states import open_labels
from agentrm_jax.testing.models import write_tiny_policy

CONFIG = """\
policy: {policy}
train_policy: false
environments:
- name: support
  instruction: [Help the customer., "Reply with Action: TEXT."]
engine: {{context: 256, decode_rows: 8, extend_rows: 4, extend_tokens: 16, cache_tokens: 4096}}
label: {{weighting: faithful, min_visits: 1}}
train_rm:
  fit: {{num_updates: 3, batch_size: 2, length: 256}}
"""


def item(number: int, outcome: float, *replies: str) -> dict:
    turns = [("human", "My parcel is late.")]
    for reply in replies:
        turns += [("gpt", f"Action: {reply}"), ("human", f"You said {reply}.")]
    return {
        "id": number,
        "reward": outcome,
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
    }


LOGS = [
    item(0, 1.0, "ask for the number", "send another"),
    item(1, 0.0, "ask for the number", "shrug"),
    item(2, 0.5, "send another"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("logged")
    write_tiny_policy(folder / "policy")
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(policy=folder / "policy" / "model"))
    return path


def lines(folder: pathlib.Path, items: list[dict], name: str = "logs.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(each) + "\n" for each in items))
    return str(path)


def test_a_reward_model_is_trained_without_an_environment(config, tmp_path, capsys):
    logs, run = lines(tmp_path, LOGS), tmp_path / "run"
    arguments = [str(config), "--output", str(run)]
    assert main(["label", *arguments, "--from", logs]) == 0
    [tree] = open_labels(run / "states" / "dataset")
    assert tree.first_observation == "My parcel is late."
    assert tree.task.environment == "support"
    values = {step.action: value for step, value in zip(tree.steps, tree.values[1:], strict=True)}
    assert tree.values[0] == 0.5
    assert values["ask for the number"] == 0.5
    assert {tree.values[tree.parents.index(1)], tree.values[2], tree.values[3]} >= {1.0, 0.0}
    assert tree.weights == (1.0,) * 5
    assert main(["train-rm", *arguments, "--from", logs]) == 0
    assert (run / "reward" / "explicit" / "model").is_dir()
    assert not (run / "trees").exists()
    capsys.readouterr()
    arguments = ["score", logs, "--model", str(run), "--environment", "support"]
    assert main(arguments) == 0
    scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [score["outcome"] for score in scores] == [1.0, 0.0, 0.5]
    assert main(["train-rm", str(config), "--output", str(run)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was made with trajectories = " in error


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([LOGS[0], {**LOGS[1], "reward": None}], "logs.jsonl: item 1: `reward` is missing"),
        ([LOGS[0], {**LOGS[0], "id": 9}], "trajectories holds 2 trajectories that all have the"),
        ([], "logs.jsonl: is empty"),
    ],
)
def test_logs_that_teach_nothing_are_one_error(config, tmp_path, capsys, items, reason):
    run = str(tmp_path / "run")
    arguments = ["label", str(config), "--output", run, "--from", lines(tmp_path, items)]
    assert main(arguments) == 2
    assert reason in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_is_a_run_and_no_file_of_logs(config, tmp_path, capsys):
    arguments = ["label", str(config), "--output", str(tmp_path / "run"), "--from", str(tmp_path)]
    assert main(arguments) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_a_job_of_harbor_is_labelled(config, tmp_path):
    for number, reward in enumerate((1.0, 0.0, 0.0)):
        trial = tmp_path / "job" / f"trial_{number}"
        (trial / "agent").mkdir(parents=True)
        steps = [
            {"step_id": 1, "source": "user", "message": "My parcel is late."},
            {
                "step_id": 2,
                "source": "agent",
                "message": "",
                "tool_calls": [
                    {"tool_call_id": "a", "function_name": "look", "arguments": {"n": number // 2}}
                ],
                "observation": {"results": [{"source_call_id": "a", "content": "Nothing."}]},
            },
        ]
        log = {"schema_version": "ATIF-v1.7", "agent": {"name": "a", "version": "1"}}
        (trial / "agent" / "trajectory.json").write_text(json.dumps({**log, "steps": steps}))
        result = {"verifier_result": {"rewards": {"reward": reward}}}
        (trial / "result.json").write_text(json.dumps(result))
    run = tmp_path / "run"
    arguments = ["label", str(config), "--output", str(run)]
    assert main([*arguments, f"--trajectories=[{tmp_path / 'job'}]"]) == 0
    [tree] = open_labels(run / "states" / "dataset")
    assert [step.action for step in tree.steps] == [
        f'look with Action Input: {{"n": {number}}}' for number in (0, 1)
    ]
    assert tree.values == (pytest.approx(1 / 3), 0.5, 0.0)


def test_trajectories_of_another_environment_are_refused(config, tmp_path, capsys):
    experts, run = tmp_path / "experts", tmp_path / "run"
    assert main(["demonstrate", "maze", "--n", "2", "--output", str(experts)]) == 0
    arguments = ["label", str(config), "--output", str(run), f"--trajectories=[{experts}]"]
    assert main(arguments) == 2
    assert "holds trajectories of maze, which `environments` does not" in capsys.readouterr().err
