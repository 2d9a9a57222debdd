"""Conversations of OpenAI's chat format as alternating turns, and as trajectories."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.core.records import (
    ACKNOWLEDGEMENT,
    Prompt,
    Step,
    Task,
    Trajectory,
    Transition,
    Unanswered,
)
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import admit_text, shown
from agentrm_jax.pipeline.model_folders import CONVERSATION
from agentrm_jax.serve.errors import RequestRefused

_SYSTEM = ("system", "developer")
_USER = ("user", "tool", "function", *_SYSTEM)
_CHARACTERS_PER_TOKEN = 64
_BETWEEN = "\n\n"
"""Text between two messages that a chat format without such a sequence reads as one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns that alternate; the first and every other one are texts for the agent to answer.

    Attributes:
      turns: At least one.
      system: The text of the system messages before them; empty if there are none.
    """

    turns: tuple[str, ...]
    system: str = ""

    @property
    def characters(self) -> int:
        """The length of all texts."""
        return len(self.system) + sum(map(len, self.turns))

    def replied(self, reply: str) -> Conversation:
        """Returns the conversation with a reply of the agent.

        Args:
          reply: Its whole text.

        Raises:
          RequestRefused: The last turn is a reply already.
        """
        if len(self.turns) % 2 == 0:
            raise RequestRefused("messages must end with a message of the user or of a tool")
        return dataclasses.replace(self, turns=(*self.turns, reply))


def check_length(characters: int, context: int) -> None:
    """Refuses a conversation that is so long that rendering it would hold up all others.

    Args:
      characters: Its length.
      context: The longest conversation that the model reads, in tokens.

    Raises:
      RequestRefused: It has more than 64 characters for each token of the context.
    """
    if characters > (most := _CHARACTERS_PER_TOKEN * context):
        raise RequestRefused(
            f"a conversation must have at most {most:,} characters (got {characters:,})", 413
        )


def conversation_of_messages(messages: Any, field: str = "messages") -> Conversation:
    """Returns the conversation of a list of messages.

    System messages at the beginning are kept apart. Results of tools count as the user's text,
    calls of tools as the agent's (`message_text`). Messages of one side that follow each other are
    one turn, with an empty line between them.

    Args:
      messages: Plain JSON: `[{"role": ..., "content": ...}, ...]`.
      field: The key that holds them, for errors.

    Raises:
      RequestRefused: They have another form, or the first turn is not the user's.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestRefused(f"{field} must be a list of messages (got {shown(messages)})")
    system: list[str] = []
    turns: list[list[str]] = []
    for number, message in enumerate(messages):
        place = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise RequestRefused(f"{place} must be an object with role and content")
        role, text = message.get("role"), message_text(message, place)
        if role in _SYSTEM and not turns:
            system.append(text)
            continue
        if role not in (*_USER, "assistant"):
            expected = "system, user, assistant or tool"
            raise RequestRefused(f"{place}.role must be {expected} (got {shown(role)})")
        if (len(turns) % 2 == 1) == (role == "assistant"):
            turns.append([text])
        elif turns:
            turns[-1].append(text)
        else:
            raise RequestRefused(f"{place}.role must be user: the first turn is the user's")
    if not turns:
        raise RequestRefused(f"{field} must hold a message of the user")
    return Conversation(turns=tuple(map(_BETWEEN.join, turns)), system=_BETWEEN.join(system))


def message_text(message: Mapping[str, Any], place: str = "message") -> str:
    """Returns the text of a message with its calls of tools.

    A call is a line `Action: NAME with Action Input: {...}`, the form in which the environments
    here take calls.

    Args:
      message: Plain JSON.
      place: Its place in the request, for errors.

    Raises:
      RequestRefused: Its content is neither text nor a list of text parts.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if any(not isinstance(part, str) for part in parts):
            raise RequestRefused(f"{place}.content must hold text parts only")
        content = "".join(map(str, parts))
    calls = message.get("tool_calls") or []
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise RequestRefused(f"{place}.content must be a text (got {shown(content)})")
    lines = [*([admit_text(content)] if content else []), *_call_lines(calls, place)]
    return "\n".join(lines)


def _call_lines(calls: Any, place: str) -> Iterator[str]:
    refused = RequestRefused(f"{place}.tool_calls must be a list of calls of functions")
    if not isinstance(calls, list):
        raise refused
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refused
        given = function.get("arguments") or "{}"
        given = given if isinstance(given, str) else json.dumps(given)
        yield admit_text(f"Action: {function['name']} with Action Input: {given}")


class KnownPrompts:
    """Finds the prompts that a model was trained with at the beginning of conversations.

    A conversation that begins with one is rendered as in training: the prompt is never truncated,
    and all conversations with it share its tokens. Two forms count: the messages that
    `Trajectory.messages(prompt)` gives, and the instruction as the system message. Any other
    conversation is read as it is; a system message comes before the text of its first message.

    Args:
      prompts: By environment.
    """

    def __init__(self, prompts: Mapping[str, Prompt]) -> None:
        self._prompts = dict(prompts)

    def trajectory(self, conversation: Conversation) -> Trajectory:
        """Returns a conversation as the trajectory of a task that cannot be played.

        Args:
          conversation: The turns.

        Returns:
          A trajectory that ends with an action if the last turn is a reply.
        """
        turns, system = conversation.turns, conversation.system
        for environment, prompt in self._prompts.items():
            if system.strip() == prompt.instruction.strip():
                return _trajectory(environment, turns)
            if not system and (rest := _after_prompt(prompt, turns)):
                return _trajectory(environment, rest)
        if system:
            turns = (f"{system}{_BETWEEN}{turns[0]}", *turns[1:])
        return _trajectory(CONVERSATION, turns)


def _after_prompt(prompt: Prompt, turns: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the turns after a prompt, None if they do not begin with it."""
    before = (prompt.instruction, ACKNOWLEDGEMENT, *prompt.example)
    touching = ""
    if len(before) % 2:  # the example's last text and the first observation are one message
        *before, last = before
        touching = f"{last}{_BETWEEN}"
    count = len(before)
    if len(turns) <= count or tuple(turns[:count]) != tuple(before):
        return None
    if not turns[count].startswith(touching):
        return None
    return (turns[count].removeprefix(touching), *turns[count + 1 :])


def _trajectory(environment: str, turns: Sequence[str]) -> Trajectory:
    replies, answers = turns[1::2], turns[2::2]
    steps = []
    for number, reply in enumerate(replies):
        transition = Unanswered()
        if number < len(answers):
            transition = Transition(
                observation=answers[number], reward=0.0, done=False, success=False
            )
        steps.append(Step(reply=reply, action=parse_action(reply), transition=transition))
    task = Task(environment=environment, task_id=CONVERSATION, max_steps=max(len(steps), 1))
    return Trajectory(task=task, first_observation=turns[0], steps=tuple(steps))
