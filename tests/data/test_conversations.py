"""Trajectories in the conversation format: what is read, and how mistakes are named."""

import json
import pathlib

import pytest

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.data.conversations import read_conversations
from agentrm_jax.data.trajectories import open_trajectories


def turns(*values, losses=None):
    found = []
    for number, value in enumerate(values):
        turn = {"from": "gpt" if number % 2 else "human", "value": value}
        if losses is not None:
            turn["loss"] = losses[number // 2] if number % 2 else None
        found.append(turn)
    return found


PLAYED = (
    "Goal: leave. You are in a cell.",
    "Thought: The door is there.\nAction: open door",
    "Observation: The door is open.",
    "Thought: Out.\nAction: go out",
)
ETO = {"id": "maze_3", "conversations": turns("Instruction", "OK", *PLAYED)}
AGENTGYM = {
    "item_id": "maze_7",
    "conversations": turns(
        "Instruction",
        "Ok.",
        "You are in a cell.",
        "Thought:\nThe door\nis there.\n\nAction:\nopen door",
        losses=[False, True],
    ),
}


def written(tmp_path, items) -> pathlib.Path:
    path = tmp_path / "maze_sft.json"
    path.write_text(items if isinstance(items, str) else json.dumps(items))
    return path


def read(tmp_path, *items):
    return read_conversations(written(tmp_path, list(items)), "maze")


def test_eto_items_become_expert_trajectories(tmp_path):
    (found,) = read(tmp_path, ETO)
    assert found.task.task_id == "maze/maze_3"
    assert found.task.spec == {"file": "maze_sft.json", "item": 0}
    assert found.first_observation == PLAYED[0]
    assert [step.action for step in found.steps] == ["open door", "go out"]
    assert [step.reply for step in found.steps] == [PLAYED[1], PLAYED[3]]
    assert [step.transition.observation for step in found.steps] == ["The door is open.", ""]
    assert [step.transition.reward for step in found.steps] == [0.0, 1.0]
    assert (found.outcome, found.success, found.done) == (1.0, True, True)
    assert not found.steps[0].transition.done


def test_agentgym_items_have_their_own_names_and_lines(tmp_path):
    (found,) = read(tmp_path, AGENTGYM)
    assert found.task.task_id == "maze/maze_7"
    assert found.first_observation == "You are in a cell."
    (step,) = found.steps
    assert step.action == "open door"
    assert step.reply == "Thought: The door\nis there.\n\nAction: open door"


def test_an_empty_thought_does_not_swallow_the_action(tmp_path):
    (found,) = read(tmp_path, {"id": 1, "conversations": turns("Cell", "Thought:\nAction:\n\ngo")})
    assert found.steps[0].action == "go"
    assert found.steps[0].reply == "Thought:\nAction: go"


def test_a_last_observation_is_kept(tmp_path):
    item = {"id": 1, "conversations": turns("Instruction", "OK", *PLAYED, "You are free.")}
    (found,) = read(tmp_path, item)
    assert found.steps[-1].transition.observation == "You are free."


def test_without_an_instruction_the_first_turn_is_the_task(tmp_path):
    (found,) = read(tmp_path, {"id": 1, "conversations": turns(*PLAYED)})
    assert found.first_observation == PLAYED[0]
    assert len(found.steps) == 2


def test_turns_that_are_not_taught_are_left_out_at_the_beginning_only(tmp_path):
    item = {
        "id": 1,
        "conversations": turns("I", "OK", "Example", "Thought: x\nAction: y", *PLAYED,
                               losses=[False, False, True, False]),
    }  # fmt: skip
    (found,) = read(tmp_path, item)
    assert found.first_observation == PLAYED[0]
    assert len(found.steps) == 2


@pytest.mark.parametrize(
    ("more", "outcome", "success"),
    [
        ({"reward": 0.5}, 0.5, False),
        ({"reward": 1}, 1.0, True),
        ({"meta": {"reward": 0.25, "success": False}}, 0.25, False),
        ({"meta": {"reward": None}}, 1.0, True),
        ({"reward": 0.75, "success": True}, 0.75, True),
    ],
)
def test_rewards_that_are_given_are_taken(tmp_path, more, outcome, success):
    (found,) = read(tmp_path, {**ETO, **more})
    assert (found.outcome, found.success) == (outcome, success)


def test_a_reply_without_an_action_is_an_invalid_step(tmp_path):
    item = {"id": 1, "conversations": turns("I", "OK", "Cell", "Let me think.", "?", PLAYED[3])}
    (found,) = read(tmp_path, item)
    assert [step.transition.valid for step in found.steps] == [False, True]
    assert found.steps[0].action == ""


@pytest.mark.parametrize(
    "reply",
    [
        "Thought: I go. Action: move left",
        "**Thought:** I go.\n**Action:** move left",
        "THOUGHT: I go.\nACTION: move left",
        "Thought:\nI go.\n\nAction:\nmove left",
    ],
)
def test_the_label_of_an_action_is_read_in_every_spelling(tmp_path, reply):
    (found,) = read(tmp_path, {"id": 1, "conversations": turns("I", "OK", "Cell", reply)})
    assert [step.action for step in found.steps] == ["move left"]
    assert found.steps[0].transition.valid


def test_an_item_without_any_action_is_refused(tmp_path):
    item = {"id": 1, "conversations": turns("I", "OK", "Cell", "Let me think.", "?", "Solved!")}
    with pytest.raises(UserError, match=r"item 1: .* none of its 2 replies has an action"):
        read(tmp_path, ETO, item)


def test_half_a_character_in_an_imported_text_is_replaced(tmp_path):
    item = json.dumps(
        [{"id": 1, "conversations": turns("Cell \ud83d", "Action: say \ude00\ud83d")}]
    )
    (found,) = read_conversations(written(tmp_path, item), "maze")
    assert found.first_observation == "Cell \ufffd"
    assert found.steps[0].action == "say \ufffd\ufffd"


@pytest.mark.parametrize("text", ["[" * 100_000, "[1e400]", "[" + "7" * 5000 + "]", "[NaN]"])
def test_json_beyond_bounds_is_one_line(tmp_path, text):
    with pytest.raises(UserError, match=r"maze_sft\.json: (line 1: )?not JSON: .*") as caught:
        read_conversations(written(tmp_path, text), "maze")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_several_trajectories_of_a_task_are_told_apart(tmp_path):
    found = read(tmp_path, ETO, AGENTGYM, ETO)
    assert [t.task.task_id for t in found] == ["maze/maze_3", "maze/maze_7", "maze/maze_3#2"]
    assert found[0].task.problem == found[2].task.problem != found[1].task.problem


def test_no_two_trajectories_have_one_name(tmp_path):
    items = [{**ETO, "id": name} for name in ("a", "a#2", "a", "a")]
    found = read(tmp_path, *items)
    assert [t.task.task_id for t in found] == ["maze/a", "maze/a#2", "maze/a#3", "maze/a#4"]


def changed(key, value, turn=None):
    item = json.loads(json.dumps(ETO))
    (item if turn is None else item["conversations"][turn])[key] = value
    return item


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ("[{]", r"maze_sft\.json: line 1: not JSON"),
        (3, r"maze_sft\.json: must be a list"),
        ([], r"maze_sft\.json: holds no item"),
        ([ETO, 3], r"maze_sft\.json: item 1: must be an object"),
        ([ETO, changed("id", None)], r"item 1: `id`: must be a name or a number, not null"),
        ([{**ETO, "item_id": []}], r"item 0: `item_id`: must be a name"),
        ([changed("conversations", None)], r"item 0: `conversations`: must be a list"),
        ([changed("conversations", turns("I", "OK"))], r"item 0: `conversations`: no `gpt` turn"),
        ([changed("from", "user", turn=2)], r"item 0: `conversations\[2\]\.from`: must be 'human'"),
        ([changed("value", 5, turn=3)], r"item 0: `conversations\[3\]\.value`: must be a text"),
        ([changed("loss", "no", turn=3)], r"item 0: `conversations\[3\]\.loss`: must be true"),
        ([changed("reward", 10)], r"item 0: `reward`: must be a number from 0 to 1, not 10"),
        ([changed("success", "yes")], r"item 0: `success`: must be true or false"),
    ],
)
def test_mistakes_are_named_by_file_item_and_key(tmp_path, items, error):
    with pytest.raises(UserError, match=error):
        read_conversations(written(tmp_path, items), "maze")


def test_the_command_writes_a_store_that_training_reads(tmp_path, capsys):
    path = written(tmp_path, [ETO, AGENTGYM])
    assert main(["import", str(path), "--output", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert "2 trajectories of maze, 2 of them solved, 1.5 steps each" in said
    assert "0 replies without an action" in said
    stored = list(open_trajectories(tmp_path / "store"))
    assert sorted(t.task.task_id for t in stored) == ["maze/maze_3", "maze/maze_7"]
    by_id = {t.task.task_id: t for t in stored}
    assert all(by_id[t.task.task_id] == t for t in read_conversations(path, "maze"))


def command_error(capsys, *arguments):
    assert main(["import", *map(str, arguments)]) == 2
    written = capsys.readouterr().err
    assert written.startswith("agentrm: error: ")
    assert written.count("\n") == 1
    return written


def test_the_command_asks_for_an_environment_that_nothing_names(tmp_path, capsys):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{**ETO, "id": "5"}]))
    out = tmp_path / "out"
    assert "--environment NAME" in command_error(capsys, path, "--output", out)
    assert "did you mean maze" in command_error(
        capsys, path, "--environment", "maz", "--output", out
    )
    assert main(["import", str(path), "--environment", "maze", "--output", str(out)]) == 0


def test_their_names_of_environments_are_known(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{**ETO, "id": "lmrlgym_maze_4"}]))
    assert main(["import", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "of maze," in capsys.readouterr().out


def test_the_command_names_a_missing_file_and_writes_nothing(tmp_path, capsys):
    missing = tmp_path / "nothing.json"
    assert "not found" in command_error(capsys, missing, "--output", tmp_path / "out")
    assert "item 0" in command_error(
        capsys, written(tmp_path, [changed("reward", -1)]), "--output", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
