"""Messages as turns, and the prompts of the training at the beginning of conversations."""

from __future__ import annotations

import pytest
from serve_cases import asked, games

from agentrm_jax.core.records import Prompt
from agentrm_jax.pipeline.model_folders import CONVERSATION
from agentrm_jax.serve.conversations import (
    Conversation,
    KnownPrompts,
    conversation_of_messages,
)
from agentrm_jax.serve.errors import RequestRefused
from agentrm_jax.testing import GUESS_PROMPT


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def reply(text: str, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


def test_messages_of_one_side_are_one_turn_and_tools_are_the_users():
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "door"}'}}
    found = conversation_of_messages(
        [
            {"role": "system", "content": "Be brief."},
            user("Open it."),
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "1", "content": "A door."},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "Shut."}]},
            reply("Thought: open.", tool_calls=[call]),
        ]
    )
    line = 'Action: look with Action Input: {"at": "door"}'
    assert found == Conversation(
        system="Be brief.",
        turns=(
            "Open it.",
            f"{line}\n{line}",
            "A door.\n\nShut.",
            f"Thought: open.\n{line}",
        ),
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "messages must be a list of messages (got 'hello')"),
        ([], "messages must be a list of messages (got [])"),
        (["hello"], "messages[0] must be an object with role and content"),
        ([reply("a")], "messages[0].role must be user: the first turn is the user's"),
        ([{"role": "system", "content": "a"}], "messages must hold a message of the user"),
        ([{"role": "cat", "content": "a"}], "messages[0].role must be system, user, assistant"),
        ([user("a"), {"role": "assistant"}], "messages[1].content must be a text (got None)"),
        ([user([{"type": "image_url"}])], "messages[0].content must hold text parts only"),
        ([user("a"), reply("b", tool_calls=[1])], "messages[1].tool_calls must be a list of"),
    ],
)
def test_refused_messages(messages, reason):
    with pytest.raises(RequestRefused) as caught:
        conversation_of_messages(messages)
    assert caught.value.message.startswith(reason)


@pytest.mark.parametrize("example", [(), ("Try.", "Action: go"), GUESS_PROMPT.example])
def test_a_known_prompt_is_found_and_taken_off(example):
    prompt = Prompt(instruction="Guess.", example=example)
    known = KnownPrompts({"other": Prompt(instruction="Walk."), "guess": prompt})
    for game in games(3):
        for state in (game, game.without_last_answer()):
            found = known.trajectory(conversation_of_messages(state.messages(prompt)))
            assert found.task.environment == "guess"
            assert found.messages() == state.messages()
            assert [s.action for s in found.steps] == [s.action for s in state.steps]
            assert [s.answered for s in found.steps] == [s.answered for s in state.steps]


def test_an_instruction_as_system_message_stands_for_its_prompt():
    [game] = games(1)
    messages = [{"role": "system", "content": GUESS_PROMPT.instruction}, *game.messages()]
    found = KnownPrompts({"guess": GUESS_PROMPT}).trajectory(conversation_of_messages(messages))
    assert (found.task.environment, found.messages()) == ("guess", game.messages())


def test_any_other_conversation_stays_as_it_is():
    known = KnownPrompts({"guess": GUESS_PROMPT})
    [game] = games(1)
    almost = asked(game)
    almost[0] = user(almost[0]["content"] + "!")
    found = known.trajectory(conversation_of_messages(almost))
    assert (found.task.environment, found.messages()) == (CONVERSATION, almost)
    with_system = known.trajectory(Conversation(system="Be brief.", turns=("Hello.", "Yes?")))
    assert with_system.messages()[0]["content"] == "Be brief.\n\nHello."
