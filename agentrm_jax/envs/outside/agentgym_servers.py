"""The environment servers of AgentGym: what each expects, and how its answers are read.

All of them have `POST /create`, `/reset` and `/step`. They differ in the names of fields, in the
place of the first observation, and in what a reward means. The rows were read from the servers'
sources of May 2026 (https://github.com/WooooDyy/AgentGym).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from agentrm_jax.envs.outside.returns import RewardRule

_NEWEST = RewardRule(of="last")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServerKind:
    """One kind of environment server.

    Attributes:
      name: Its name after `agentgym@`.
      item_key: The field of `/reset` with the number of the item.
      id_key: The field with the number of the episode, in requests and answers.
      path: Comes before `/create`, `/reset` and `/step`, unless the server's address ends with it.
      create: The body of `/create`.
      reset: Further fields of `/reset`.
      observes: Whether the first observation comes from `GET /observation` instead of `/reset`.
      first: Fields of the answer to `/reset` that are the first observation, a line each.
      lists_actions: Whether the first observation ends with the field `available_actions`.
      closes: Whether the server has `POST /close`.
      reward_key: The field with the reward.
      reward: The rule that maps it to a return.
      refusals: Beginnings of observations that refuse an action. The servers have no field for it.
      plain_words: Whether everything but letters, digits, commas and blanks is removed from
        actions, as AgentGym's own client does.
      max_steps: Steps of an episode.
      instruction: The actions and the reply format, for an agent.
    """

    name: str
    item_key: str
    id_key: str = "id"
    path: str = ""
    create: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    observes: bool = False
    first: tuple[str, ...] = ("observation",)
    lists_actions: bool = False
    closes: bool = False
    reward_key: str = "reward"
    reward: RewardRule = _NEWEST
    refusals: tuple[str, ...] = ()
    plain_words: bool = False
    max_steps: int = 20
    instruction: str = ""


_FORMAT = "Reply with two lines:\nThought: <why>\nAction: <one action>"

_TOOL = (
    "You answer a question by calling tools. Write each call as\n"
    "Action: NAME with Action Input: {JSON}\nwith a line `Thought: <why>` before it. "
    "`check_valid_actions with Action Input: {}` lists the tools, and "
    '`finish with Action Input: {"answer": ...}` ends the task.'
)


def _tool(name: str, max_steps: int) -> ServerKind:
    return ServerKind(
        name=name,
        id_key="env_idx",
        item_key="id",
        create={"id": 0},
        observes=True,
        refusals=("Format error",),
        max_steps=max_steps,
        instruction=_TOOL,
    )


_KINDS = (
    ServerKind(
        name="textcraft",
        item_key="data_idx",
        closes=True,
        plain_words=True,
        refusals=("Could not", "Wrong item format"),
        instruction="You craft an item from a list of recipes. The actions are\n"
        "- get <number> <item>: takes items that cannot be crafted\n"
        "- craft <number> <item> using <number> <item>, <number> <item>: follows a recipe\n"
        f"- inventory: lists what you carry\n{_FORMAT}",
    ),
    ServerKind(
        name="babyai",
        item_key="data_idx",
        closes=True,
        plain_words=True,
        # The last reward is 1 - 0.9 * steps / limit; the server ends an episode above 0.5 only.
        reward=RewardRule(of="last", success=0.5),
        refusals=("The action is not recognized", "You cannot go to", "No change in state"),
        instruction="You move through rooms to reach a goal. Each observation ends with the "
        f"actions that are possible.\n{_FORMAT}",
    ),
    ServerKind(
        name="alfworld",
        item_key="game",
        reset={"world_type": "Text"},
        lists_actions=True,
        refusals=("Nothing happens",),
        max_steps=30,
        instruction="You do a household task. The first observation lists the actions that are "
        f"possible then; others have the same form.\n{_FORMAT}",
    ),
    ServerKind(
        name="sciworld",
        item_key="data_idx",
        closes=True,
        first=("task_description", "observation"),
        reward_key="score",
        # The score is -100 after a fatal mistake.
        reward=RewardRule(of="last", high=100.0, clip=True),
        refusals=("No known action matches",),
        max_steps=30,
        instruction="You do a science experiment in a simulated building. Actions are short "
        "commands: open, close, activate, deactivate, connect, use, move, pick up, pour, mix, "
        f"read, focus on, go to, look around, look at, inventory, wait.\n{_FORMAT}",
    ),
    ServerKind(
        name="webshop",
        id_key="env_idx",
        item_key="session_id",
        observes=True,
        max_steps=10,
        instruction="You buy the product that an instruction asks for. The actions are "
        f"search[words] and click[what the page shows].\n{_FORMAT}",
    ),
    ServerKind(
        name="sqlgym",
        id_key="env_idx",
        item_key="item_id",
        observes=True,
        max_steps=1,
        instruction="You answer a question with one SQLite statement, on one line.\n"
        "Reply with two lines:\nThought: <why>\nAction: <the statement>",
    ),
    ServerKind(
        name="maze",
        item_key="game",
        path="/maze",
        reward=RewardRule(of="last", low=-1.0, high=0.0),  # -1 for each step, 0 at the goal
        max_steps=15,
        instruction="You walk through a maze. Moving right adds one to y, moving down adds one "
        f"to x. The actions are move up, move down, move left, move right.\n{_FORMAT}",
    ),
    ServerKind(
        name="wordle",
        item_key="seed",
        path="/wordle",
        refusals=("invalid word",),
        max_steps=8,
        instruction="You guess a word of five letters, written with blanks: s h i r e. The answer "
        "has a letter for each: b, not in the word; y, at another place; g, right.\n" + _FORMAT,
    ),
    ServerKind(
        name="searchqa",
        id_key="env_idx",
        item_key="id",
        create={"id": 0},
        observes=True,
        closes=True,
        max_steps=10,
        instruction="You answer a question. Search with <search>words</search>, and end with "
        f"<answer>the answer</answer>.\n{_FORMAT}",
    ),
    _tool("weather", 10),
    _tool("movie", 12),
    _tool("academia", 12),
    _tool("sheet", 15),
    _tool("todo", 15),
)

SERVER_KINDS: Mapping[str, ServerKind] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""The kinds of servers by name."""
