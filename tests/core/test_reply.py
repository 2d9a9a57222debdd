"""The action of a reply, in every spelling that models and imported files use."""

from __future__ import annotations

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.reply import parse_action
from agentrm_jax.envs.registry import environment_names, load_family

CALL = 'get_x with Action Input: {"a": 1}'


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("Thought: the key.\nAction: take key", "take key"),
        ("Action: take key", "take key"),
        ("  Action:take key  ", "take key"),
        ("Action: look\nat the door", "look"),  # an action is one line
        ("Action: look\nAction: go", "look"),  # and the first one
        ("Thought: \u00e9\ufffd\nAction: see \u00e9", "see \u00e9"),
        ("Action: search[a `b` c]", "search[a `b` c]"),
        # on the next line
        ("Thought:\nI go.\n\nAction:\nmove left", "move left"),
        ("Action:\r\nmove left\r\n", "move left"),
        ("Action:\n\n\n move left\nObservation: x", "move left"),
        ("Action:\nThought: x\nAction: move left", "move left"),
        ("Action:\nAction:\n\nmove left", "move left"),
        # the label in other spellings
        ("**Thought:** I go.\n**Action:** move left", "move left"),
        ("**Action**: move left", "move left"),
        ("**Action: move left**", "move left"),
        ("__Action:__ move left", "move left"),
        ("Action: **move left**", "move left"),
        ("THOUGHT: I go.\nACTION: move left", "move left"),
        ("action: move left", "move left"),
        ("Action : move left", "move left"),
        ("Action\uff1amove left", "move left"),
        ("### Action\nmove left", "move left"),
        ("### Action: move left", "move left"),
        ("## **Action**\n\nmove left", "move left"),
        ("**Action**\nmove left", "move left"),
        ("- Action: move left", "move left"),
        ("* **Action**: move left", "move left"),
        ("2. Action: move left", "move left"),
        ("> Action: move left", "move left"),
        ("Action 1: move left", "move left"),
        ("\ufeffAction: move left", "move left"),
        # code marks
        ("Action: `move left`", "move left"),
        ("Action:\n```\nmove left\n```", "move left"),
        ("Action: ```\nmove left\n```", "move left"),
        ("```\nAction: move left\n```", "move left"),
        ("<think>\nAction: no\n</think>\n<action>move left</action>", "move left"),
        ("I could say\nAction: no\n</think>\nAction: move left", "move left"),
        # on the line of the thought
        ("Thought: I go. Action: move left", "move left"),
        ("Thought: I go Action: move left", "move left"),
        ("Thought: I go.Action: move left", "move left"),
        ("Thought: a\u2028Action: move left", "move left"),
        ("Thought: a\rAction: move left\rObservation: x", "move left"),
        ("Thought: the toy 'Action: Man'. Action: search[toy]", "search[toy]"),
        ("Thought: I go. **Action:** move left", "move left"),
        ("Thought: I fill the Action: field. Action: move left", "move left"),
        ("Thought: I go. Action: move left Observation: ok Thought: w. Action: up", "move left"),
        # tool calls
        (f"Action: {CALL}", CALL),
        ('Action: get_x\nAction Input: {"a": 1}', CALL),
        ('Action: get_x\nAction Input:\n{"a": 1}', CALL),
        ('Action: get_x with Action Input:\n{"a": 1}', CALL),
        ('Action:\nget_x\nAction Input:\n```json\n{"a":\n 1}\n```', CALL),
        ("Action: get_x\nAction Input: {'a': 1}", "get_x with Action Input: {'a': 1}"),
        (f"Thought: a. Action: {CALL}", CALL),
        ('Action: get_x with Action Input: {\n  "a": 1\n}', 'get_x with Action Input: { "a": 1 }'),
        ('Action: `get_x`\nAction Input: `{"a": 1}`', CALL),
        ('Action: get_x, Action Input: {"a": 1}', CALL),
        ('ACTION: get_x\nACTION INPUT: {"a": 1}', CALL),
        ('Action: get_x with Action Input: {"a": 1} more', CALL + " more"),
        ('Action:\n{"name": "x",\n "arguments": {}}', '{"name": "x", "arguments": {}}'),
        # none
        ("Thought: the Action: of the other\nAction: go", "go"),
        ("Thought: my Action: go", ""),
        ("Thought: the next\nAction\nis left", ""),
        ("Action:", ""),
        ("Action:\n\nObservation: you see nothing", ""),
        ("Action: **", ""),
        ("Action Input: {}", ""),
        ("Reaction: go", ""),
        ("OK. I'll follow your instructions and try my best to solve the task.", ""),
        ("take key", ""),
        ("", ""),
    ],
)
def test_parse_action(reply, action):
    assert parse_action(reply) == action


@pytest.mark.parametrize(
    "part",
    ["Action:\n", "x Action:", "Action:\n```", "<action>", "</think>", "- ", "*", " ", "\n",
     "Action: x with Action Input: {[", "Action Input:\n", "a "],
)  # fmt: skip
def test_long_replies_take_linear_time(part):
    """A pattern that looks back again and again would take hours for a million characters."""
    reply = part * (500_000 // len(part))
    assert len(parse_action(reply)) <= len(reply)


@pytest.mark.parametrize("name", environment_names())
def test_experts_and_prompts_are_read_as_they_are_meant(name):
    family = load_family(name)
    for text in family.prompt().example[1::2]:
        action = parse_action(text)
        assert action
        assert text.endswith(action)
    if reason := family.missing():
        pytest.skip(reason)
    try:
        tasks = family.tasks("train", kinds=family.kinds()[:2], n=2)
        played = [turn for task in tasks for turn in family.demonstrate(task) or ()]
    except UserError as error:  # a file of the data directory is missing
        pytest.skip(str(error))
    if not played:
        pytest.skip("its expert fails these tasks")
    assert [parse_action(turn.reply) for turn in played] == [turn.action for turn in played]
