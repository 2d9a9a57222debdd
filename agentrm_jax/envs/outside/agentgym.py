"""Environments on AgentGym's servers: `agentgym@textcraft`, `agentgym@webshop` and so on."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agentrm_jax.core.addresses import server_address
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.protocols import Demonstration, Environment, Prompt
from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.core.text import first_line, printable, shown
from agentrm_jax.envs.outside.agentgym_episode import ServerSimulator
from agentrm_jax.envs.outside.agentgym_servers import SERVER_KINDS, ServerKind
from agentrm_jax.envs.outside.options import read_options
from agentrm_jax.envs.outside.returns import RewardRule
from agentrm_jax.envs.replay import ReplayedEpisode, Simulators
from agentrm_jax.envs.task_lists import check_kinds

NAME = "agentgym"
_LIVE = 8
"""Episodes that a process keeps open on a server; others are played again when they act."""
_MOST_ITEMS = 1_000_000
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentGymOptions:
    """The options of an AgentGym server in a configuration.

    Attributes:
      url: Its address, `http://HOST:PORT`.
      tasks: The items of each split: `{train: 0-299, test: 300-373}`, or for a split the path of a
        JSON file of AgentGym whose items have an `item_id`.
      seconds: Seconds that one answer may take, below `step_seconds` of the run.
      reward: The rule that maps rewards to a return, in place of that of the kind of server.
    """

    url: str
    tasks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 20.0
    reward: RewardRule | None = None

    def __post_init__(self) -> None:
        server_address(self.url)
        if not 0 < self.seconds <= 3600:
            raise UserError(field="seconds", value=self.seconds, expected="above 0, at most 3600")
        for split in self.tasks:
            if split not in ("train", "test", "paper"):
                raise UserError(f"has no split {shown(split)}; write train or test", field="tasks")


class AgentGym:
    """The environment servers of AgentGym. A form of it is one kind of server.

    Args:
      kind: The kind; None for the name without a form.
      options: The options of a configuration; None if none were given.
    """

    pooled = True
    metric = "reward"

    def __init__(
        self, kind: ServerKind | None = None, options: AgentGymOptions | None = None
    ) -> None:
        self.name = NAME if kind is None else f"{NAME}@{kind.name}"
        self._kind, self._options = kind, options

    def form(self, name: str) -> AgentGym:
        """Returns the environment on one kind of server.

        Args:
          name: The kind, such as `textcraft`.

        Raises:
          UserError: There is no such kind.
        """
        if self._kind is not None or name not in SERVER_KINDS:
            kinds = ", ".join(SERVER_KINDS)
            raise UserError(f"environment {self.name!r}: no server {name!r}; known: {kinds}")
        return AgentGym(SERVER_KINDS[name])

    def configured(self, options: Mapping[str, Any]) -> AgentGym:
        """Returns the environment with the options of a configuration (`AgentGymOptions`)."""
        return AgentGym(self._kind, read_options(AgentGymOptions, options))

    def missing(self) -> str | None:
        if self._kind is None:
            return f"name a kind of server: {NAME}@" + f", {NAME}@".join(SERVER_KINDS)
        if self._options is None:
            return (
                f"{self.name} needs options: {{url: http://HOST:PORT, tasks: {{train: 0-99, test: "
                "100-199}} in `environments` of a configuration"
            )
        return None

    def counts(self) -> Mapping[Split, int | None]:
        self._check()
        return {split: len(self._items[split]) for split in ("train", "test", "paper")}

    def kinds(self) -> Sequence[str]:
        return (NAME if self._kind is None else self._kind.name,)

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Returns tasks of the items of a split, in an order that the seed decides."""
        check_kinds(self.name, self.kinds(), kinds)
        kind, options = self._check()
        items = list(self._items[split]) if kinds else []
        random.Random(f"{self.name}/{split}/{seed}").shuffle(items)
        listed = agentgym_tasks(
            kind.name, options.url, items[:n], seconds=options.seconds, reward=options.reward
        )
        return [dataclasses.replace(task, split=split) for task in listed]

    def prompt(self) -> Prompt:
        text = "" if self._kind is None else self._kind.instruction
        return Prompt(instruction=text or "Act in an environment, one action in each turn.")

    def action_key(self, action: str) -> str:
        return action.strip()

    def create(self) -> Environment:
        return ReplayedEpisode(_simulators())

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """Returns None: the servers have no experts. `agentrm import` reads AgentGym's."""
        return None

    def _check(self) -> tuple[ServerKind, AgentGymOptions]:
        if reason := self.missing():
            raise UserError(reason)
        assert self._kind is not None
        assert self._options is not None
        return self._kind, self._options

    @functools.cached_property
    def _items(self) -> Mapping[str, Sequence[int]]:
        """The numbers of the items by split.

        Raises:
          UserError: One is in two splits, or a value is no list of items.
        """
        _, options = self._check()
        found: dict[str, Sequence[int]] = {"train": (), "test": (), "paper": ()}
        for split, given in options.tasks.items():
            found[split] = _item_numbers(given, f"options.tasks.{split}")
        for tested in ("test", "paper"):
            if both := set(found["train"]) & set(found[tested]):
                raise UserError(f"item {min(both)} is in train and {tested}", field="options.tasks")
        return MappingProxyType(found)


def agentgym_tasks(
    kind: str,
    url: str,
    items: Sequence[int],
    *,
    seconds: float = 20.0,
    reward: RewardRule | None = None,
) -> list[Task]:
    """Returns tasks that are played on an environment server of AgentGym.

    `EnvPool()` plays them; their environment is `agentgym@KIND`.

    Args:
      kind: The kind of server: `textcraft`, `babyai`, `alfworld`, `sciworld`, `webshop`, `sqlgym`,
        `maze`, `wordle`, `searchqa`, `weather`, `movie`, `academia`, `sheet` or `todo`.
      url: Its address, `http://HOST:PORT`.
      items: Numbers of its items, as in AgentGym's `item_id`.
      seconds: Seconds that one answer may take.
      reward: The rule that maps rewards to a return; None takes that of the kind.

    Returns:
      A task for each item.

    Raises:
      UserError: There is no such kind, or the address is none.
    """
    if kind not in SERVER_KINDS:
        raise UserError(field="kind", value=kind, expected=f"one of {', '.join(SERVER_KINDS)}")
    server, name = SERVER_KINDS[kind], f"{NAME}@{kind}"
    common = {
        "kind": kind,
        "url": server_address(url),
        "seconds": seconds,
        "reward": dataclasses.asdict(reward or server.reward),
    }
    return [
        Task(
            environment=name,
            task_id=f"{name}/{item}",
            kind=kind,
            problem=canonical_form([name, item]),
            max_steps=server.max_steps,
            spec={**common, "item": item},
        )
        for item in items
    ]


@functools.cache
def _simulators() -> Simulators:
    """The open episodes of this process, on all servers."""
    return Simulators(ServerSimulator, most=_LIVE)


def _item_numbers(given: Any, key: str) -> list[int]:
    """Returns the items of a split: of `7`, `0-99`, a list of these, or a file of AgentGym."""
    found: dict[int, None] = {}
    for part in given if isinstance(given, list | tuple) else [given]:
        text = part.strip() if isinstance(part, str) else part
        if isinstance(text, str) and text.endswith(".json"):
            found |= dict.fromkeys(_items_of_file(pathlib.Path(text), key))
            continue
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        match = _RANGE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise UserError(
                field=key, value=given, expected="numbers such as 0-99, or a .json file"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < _MOST_ITEMS:
            raise UserError(field=key, value=given, expected="a range from a smaller number up")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def _items_of_file(path: pathlib.Path, key: str) -> list[int]:
    try:
        items = parse_json(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        name = printable(str(path))
        raise UserError(
            f"names {name}, which cannot be read: {first_line(error)}", field=key
        ) from None
    numbers = []
    for position, item in enumerate(items if isinstance(items, list) else [None]):
        name = item.get("item_id", "") if isinstance(item, dict) else ""
        match = re.search(r"(\d{1,9})$", str(name))
        if match is None:
            raise UserError(
                f"names {printable(str(path))}, whose item {position} has no `item_id` that ends "
                "with a number",
                field=key,
            )
        numbers.append(int(match[1]))
    return numbers
