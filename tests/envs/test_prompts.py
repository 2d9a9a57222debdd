"""Prompts that a user brings."""

from __future__ import annotations

import json

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.envs.prompts import read_prompt

TURNS = [
    {"role": "user", "content": "Your goal is tea.\n"},
    {"role": "assistant", "content": "Thought: I boil.\n\nAction: boil"},
    {"role": "user", "content": "Observation: Success\n"},
]


def write(folder, stem: str, instruction: str = "Make tea.\n", examples=None):
    for name in ("instructions", "icl_examples"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "instructions" / f"{stem}_inst.txt").write_text(instruction)
    examples = [TURNS, []] if examples is None else examples
    text = examples if isinstance(examples, str) else json.dumps(examples)
    (folder / "icl_examples" / f"{stem}_icl.json").write_text(text)


EXAMPLE = ("Your goal is tea.", "Thought: I boil.\n\nAction: boil", "Success")


@pytest.mark.parametrize("stem", ["scienceworld", "sciworld", "sciworld_boil"])
def test_our_name_the_authors_name_and_a_kinds_own_files(tmp_path, stem):
    write(tmp_path, stem)
    expected = Prompt(instruction="Make tea.", example=EXAMPLE)
    assert read_prompt(tmp_path, "scienceworld", "boil") == expected


def test_a_kinds_own_files_come_first(tmp_path):
    write(tmp_path, "pddl")
    write(tmp_path, "pddl_barman", "Mix drinks.")
    assert read_prompt(tmp_path, "pddl", "barman").instruction == "Mix drinks."
    assert read_prompt(tmp_path, "pddl", "gripper").instruction == "Make tea."


def test_a_missing_file_is_one_line_with_the_names(tmp_path):
    with pytest.raises(UserError, match=r"instructions: none of maze_t_inst.txt, maze_inst.txt is"):
        read_prompt(tmp_path, "maze", "t")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("[\n{", r"maze_icl.json: line 2: "),
        ({}, r"maze_icl.json: must be a list of examples"),
        ([], r"must be a list of examples"),
        ([TURNS[1:]], r"example 0, turn 0: `role` must be 'user'"),
        ([[{"role": "user"}]], r"example 0, turn 0: `content` must be a text"),
    ],
)
def test_a_bad_example_is_one_line(tmp_path, examples, message):
    write(tmp_path, "maze", examples=examples)
    with pytest.raises(UserError, match=message):
        read_prompt(tmp_path, "maze", "t")


def test_halves_of_characters_become_whole_or_are_replaced(tmp_path):
    turn = {"role": "user", "content": "\ud83d\ude00 \ud83d"}
    write(tmp_path, "maze", examples=[[turn]])  # as json.dumps escapes them
    assert read_prompt(tmp_path, "maze", "t").example == ("\U0001f600 \ufffd",)


@pytest.mark.parametrize("examples", ["[" * 5000, '[[{"role": 1e999}]]', "[" + "9" * 5000 + "]"])
def test_json_without_bounds_is_one_line(tmp_path, examples):
    write(tmp_path, "maze", examples=examples)
    with pytest.raises(UserError, match=r"maze_icl.json: ") as raised:
        read_prompt(tmp_path, "maze", "t")
    assert "\n" not in str(raised.value)
