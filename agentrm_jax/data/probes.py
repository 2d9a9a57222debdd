"""Conversations with which a chat format is compared with its template, token for token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrm_jax.data.chat import (
    ChatTokenizer,
    first_observation_tokens,
    instruction_tokens,
    observation_tokens,
    reply_tokens,
)

PROBES: Mapping[str, tuple[str, ...]] = {
    "plain words": (
        "You are in a room. There is a red key.",
        "Thought: I take the key.\nAction: take red key",
        "You have the key.\nThe door is locked.",
        "Action: open door",
        "It is open",
    ),
    "leading blank": (
        " look around",
        " Thought: look.\n Action: look",
        "  You see a box.",
        " Action: open box",
        " It is empty.",
    ),
    "trailing newline": (
        "You are at home.\n",
        "Thought: go out.\nAction: go\n",
        "You are outside. \n\n",
        "Action: wait\n",
        "Time passes.\n",
    ),
    "other scripts": (
        "Du siehst 🙂 und ein Schlüsselchen: 鍵, ключ, مفتاح",
        "Thought: größer 👩‍🚀?\nAction: nimm 鍵",
        "Ça va — naïve “quotes” … ½ ﬁ",
        "Action: öffne 門",
        "✅ Ok é",
    ),
    "digits and blanks": (
        'Room 12:  3 keys,   4096.5 kg\t(50%) <b>"it\'s"</b> & more',
        "Thought: 1 + 1 = 2\n\nAction: open[12,  3]",
        '{"a": [1, 2]} <turn> [END] </no-token> #tag @x \\n $5',
        "Action: 42",
        "100 % done   ",
    ),
    "long turns": (
        "There is a door, and after it another one.\n" * 200,
        "Thought: I think about every door in turn. " * 100 + "\nAction: open",
        "A corridor of 12 doors, all of them shut. " * 200,
        "Action: open door",
        "It is open.",
    ),
    "many turns": tuple(
        f"Action: open door {i}" if i % 2 else f"Door {i} is shut." for i in range(41)
    ),
    "empty turns": ("", "", "A door.", "", " ", "", "\n", "Action: wait", ""),
    "numbers": ("12", "007", "True", "None", "3.50"),
    "rare blanks": (
        "\u00a0You see\u00a0a box.\r\n\r\n\x0b",
        "\u3000Action:\ropen\tbox\x0c",
        "\r\nIt is\u2028open.\u2003",
        "\x1cAction: wait\x85",
        "\ufeffTime\u200b passes.\u2009",
    ),
}
"""Name to turns, alternately of the user and the model."""


def messages_of(turns: Sequence[str]) -> list[dict[str, str]]:
    """Returns turns as transformers takes them."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def turn_tokens(tokenizer: ChatTokenizer, turns: Sequence[str]) -> list[int]:
    """Returns the tokens of a conversation: up to the stop token of a last reply, or up to
    where a reply to the last turn begins."""
    tokens = [
        *instruction_tokens(tokenizer, None),
        *first_observation_tokens(tokenizer, turns[0]),
    ]
    for i, turn in enumerate(turns[1:], 1):
        tokens += (reply_tokens if i % 2 else observation_tokens)(tokenizer, turn)
    return tokens
