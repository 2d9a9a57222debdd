"""Trajectories in Harbor's format: what is read from others, and round trips of our own."""

from __future__ import annotations

import copy
import json

import pytest
from conversation_cases import trajectories
from hypothesis import given, settings

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text
from agentrm_jax.data.atif import atif_of, read_atif
from agentrm_jax.data.trajectories import open_trajectories
from agentrm_jax.pipeline.trajectory_files import read_trajectories

# A run of a terminal agent, with the fields that Harbor's agents fill.
LOG = {
    "schema_version": "ATIF-v1.6",
    "session_id": "run-3",
    "agent": {"name": "terminal", "version": "2.1", "model_name": "some/model", "extra": {}},
    "notes": "a run of the nightly job",
    "steps": [
        {"step_id": 1, "source": "system", "message": "You have a shell."},
        {
            "step_id": 2,
            "timestamp": "2026-02-01T08:00:00Z",
            "source": "user",
            "message": [
                {"type": "text", "text": "How many lines has notes.txt?"},
                {"type": "image", "source": {"media_type": "image/png", "path": "a.png"}},
            ],
        },
        {
            "step_id": 3,
            "source": "agent",
            "message": "I look at both files.",
            "reasoning_content": "There are two of them.",
            "tool_calls": [
                {"tool_call_id": "a", "function_name": "shell", "arguments": {"command": "ls"}},
                {
                    "tool_call_id": "b",
                    "function_name": "shell",
                    "arguments": {"command": "wc -l notes.txt", "timeout": 3},
                },
            ],
            "observation": {
                "results": [
                    {"source_call_id": "a", "content": "notes.txt\nother.txt"},
                    {"source_call_id": "b", "content": "17 notes.txt"},
                ]
            },
            "metrics": {"prompt_tokens": 90, "completion_tokens": 40, "cost_usd": 0.001},
        },
        {"step_id": 4, "source": "user", "message": "And in words?"},
        {
            "step_id": 5,
            "source": "agent",
            "message": "",
            "reasoning_content": "Seventeen.",
            "tool_calls": [{"tool_call_id": "c", "function_name": "finish", "arguments": {}}],
        },
    ],
    "final_metrics": {"total_prompt_tokens": 200, "total_steps": 5},
    "extra": {"reward": 0.5},
}


def changed(path, value):
    log = copy.deepcopy(LOG)
    *way, last = path
    inner = log
    for key in way:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return log


def written(tmp_path, value):
    path = tmp_path / "log.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_log_of_another_agent_becomes_a_trajectory(tmp_path):
    [found] = read_atif(written(tmp_path, LOG), "shell")
    assert found.task.task_id == "shell/run-3"
    assert found.first_observation == "How many lines has notes.txt?"
    first, last = found.steps
    assert first.reply == (
        "Thought: I look at both files.\n"
        'Action: shell with Action Input: {"command": "ls"}\n'
        'Action: shell with Action Input: {"command": "wc -l notes.txt", "timeout": 3}'
    )
    assert first.action.splitlines()[0] == 'shell with Action Input: {"command": "ls"}'
    assert first.transition.observation == "notes.txt\nother.txt\n17 notes.txt\nAnd in words?"
    assert not first.transition.done
    assert last.reply == "Thought: Seventeen.\nAction: finish with Action Input: {}"
    assert (last.transition.observation, last.transition.done) == ("", True)
    assert (found.outcome, found.success) == (0.5, False)


@pytest.mark.parametrize("version", ["1.0", "1.4", "1.7", "1.8"])
@pytest.mark.parametrize("form", ["object", "list", "lines"])
def test_files_hold_one_or_several(tmp_path, version, form):
    log = changed(["schema_version"], f"ATIF-v{version}")
    other = {**log, "session_id": "run-4"}
    logs = [log, other, log]
    text = {
        "object": json.dumps(log, indent=2),
        "list": json.dumps(logs),
        "lines": "\n".join(map(json.dumps, logs)) + "\n\n",
    }[form]
    names = [t.task.task_id for t in read_atif(written(tmp_path, text), "shell")]
    several = ["shell/run-3", "shell/run-4", "shell/run-3#2"]
    assert names == (["shell/run-3"] if form == "object" else several)


def test_a_session_is_optional_since_1_7(tmp_path):
    log = changed(["session_id"], None)
    assert read_atif(written(tmp_path, log), "shell")[0].task.task_id == "shell/0"
    log["trajectory_id"] = "t-1"
    assert read_atif(written(tmp_path, log), "shell")[0].task.task_id == "shell/t-1"


def test_replies_without_calls_are_read_as_ours(tmp_path):
    log = changed(["steps", 2, "tool_calls"], None)
    log["steps"][2]["message"] = "Thought: I look.\nAction: ls"
    first, _ = read_atif(written(tmp_path, log), "shell")[0].steps
    assert (first.reply, first.action) == ("Thought: I look.\nAction: ls", "ls")


def test_harbor_keeps_the_outcome_next_to_the_trajectory(tmp_path):
    for trial, reward in (("a__1", 1.0), ("b__1", 0)):
        folder = tmp_path / "job" / trial
        (folder / "agent").mkdir(parents=True)
        log = changed(["extra"], None)
        (folder / "agent" / "trajectory.json").write_text(json.dumps({**log, "session_id": trial}))
        result = {"trial_name": trial, "verifier_result": {"rewards": {"reward": reward}}}
        (folder / "result.json").write_text(json.dumps(result))
    (tmp_path / "job" / "result.json").write_text(json.dumps({"n_total_trials": 2}))
    found = read_trajectories(tmp_path / "job", "shell", unregistered=["shell"])
    assert {t.task.task_id: (t.outcome, t.success) for t in found} == {
        "shell/a__1": (1.0, True),
        "shell/b__1": (0.0, False),
    }


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (changed(["extra"], None), r"item 0: no outcome: write `reward`"),
        (changed(["extra", "reward"], 3), r"`extra\.reward`: the reward must be .* not 3"),
        (changed(["extra", "reward"], True), r"the reward must be a number"),
        (changed(["schema_version"], "ATIF"), None),
        (changed(["schema_version"], 1), r"item 0: `schema_version`: must begin with ATIF"),
        (changed(["steps"], {}), r"item 0: `steps`: must be a list"),
        (changed(["steps"], LOG["steps"][:2]), r"item 0: `steps`: none of them is of the agent"),
        (changed(["steps", 1, "source"], "tool"), r"`steps\[1\]\.source`: must be one of"),
        (changed(["steps", 2, "message"], 3), r"`steps\[2\]\.message`: must be a text or a list"),
        (changed(["steps", 2, "tool_calls"], "ls"), r"`steps\[2\]\.tool_calls`: must be a list"),
        (changed(["steps", 2, "tool_calls", 1, "function_name"], None),
         r"`steps\[2\]\.tool_calls\[1\]\.function_name`: must be a text"),
        (changed(["steps", 2, "observation"], []), r"`steps\[2\]\.observation\.results`: must be"),
        (changed(["steps", 2, "observation", "results", 0], 3), r"results\[0\]\.content`: must be"),
        (changed(["extra"], {"agentrm": {"task": {}}}), r"item 0: `extra\.agentrm\.task`: "),
        ('{"schema_version": "ATIF-v1.4"}\n{"schema_version": ', r"line 2: not JSON"),
        ([LOG, 3], r"item 1: `schema_version`"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_file_item_and_field(tmp_path, log, error):
    path = written(tmp_path, log)
    if error is None:
        assert read_atif(path, "shell")
        return
    with pytest.raises(UserError, match=error) as caught:
        read_atif(path, "shell")
    assert str(caught.value).startswith(str(path))


def test_an_environment_must_be_named(tmp_path):
    with pytest.raises(UserError, match="says nothing of an environment; give --environment"):
        read_atif(written(tmp_path, LOG), None)


@settings(deadline=None)  # the first call imports
@given(trajectory=trajectories())
def test_our_own_come_back_as_they_were(tmp_path_factory, trajectory):
    path = tmp_path_factory.getbasetemp() / "own.json"
    value = atif_of(trajectory, "0.1.0")
    path.write_text(json_text(value))
    assert read_atif(path, None) == [trajectory]
    assert [step["step_id"] for step in value["steps"]] == list(range(1, len(value["steps"]) + 1))
    for step in value["steps"]:
        calls = {call["tool_call_id"] for call in step.get("tool_calls", [])}
        results = step.get("observation", {"results": []})["results"]
        assert {r["source_call_id"] for r in results if "source_call_id" in r} <= calls


def test_our_own_that_was_changed_is_refused(tmp_path):
    folder, experts = tmp_path / "atif", tmp_path / "experts"
    assert main(["demonstrate", "maze", "--n", "2", "--output", str(experts)]) == 0
    assert main(["export", str(experts), "--what", "trajectories", "--to", str(folder)]) == 0
    path = folder / "000001.json"
    value = json.loads(path.read_text())
    del value["steps"][1]["extra"]["reward"]
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"`steps\[1\]`: not as agentrm wrote it"):
        read_atif(path, None)


def test_the_commands_write_and_read_them(tmp_path, capsys):
    folder, experts, back = tmp_path / "atif", tmp_path / "experts", tmp_path / "back"
    assert main(["demonstrate", "maze", "--n", "3", "--output", str(experts)]) == 0
    assert main(["export", str(experts), "--what", "trajectories", "--to", str(folder)]) == 0
    assert "3 trajectories in ATIF" in capsys.readouterr().out
    assert main(["import", str(folder / "000002.json"), "--output", str(back)]) == 0
    assert "1 trajectories of maze, 1 of them solved" in capsys.readouterr().out
    assert list(open_trajectories(back)) == [list(open_trajectories(experts))[1]]
    log = written(tmp_path, LOG)
    assert main(["import", str(log), "--output", str(tmp_path / "x")]) == 2
    assert "give --environment NAME" in capsys.readouterr().err
    assert (
        main(["import", str(log), "--environment", "shell", "--output", str(tmp_path / "x")]) == 2
    )
    assert "'shell': not registered" in capsys.readouterr().err
    arguments = ["import", str(log), "--environment", "pddl", "--output", str(tmp_path / "x")]
    assert main(arguments) == 0
    assert "1 trajectories of pddl, 0 of them solved" in capsys.readouterr().out
