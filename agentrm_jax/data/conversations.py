"""Trajectories in the conversation format of ETO and of AgentGym's AgentTraj.

A file is a JSON list of items, or holds an item on each line:

    {"id": "...", "reward": 1.0, "conversations": [
        {"from": "human", "value": "..."}, {"from": "gpt", "value": "...", "loss": true}, ...]}

`id` may be called `item_id` (AgentGym). The turns alternate and begin with a `human` one. What is
said before the task does not become part of a trajectory, for an environment's own prompt is put
there: the instruction and the answer "OK", that is all turns up to the last `gpt` turn at the
beginning with `"loss": false` or, in items without `loss`, a first pair whose `gpt` turn names no
action.

The outcome is `reward`, also under `meta`, as ETO's agents write it; it is paid by the last step.
Where an item has none, it is an expert's trajectory and the outcome is 1, unless outcomes are
required. `success` is read in the
same places; else an outcome of 1 is a success.

An item in which no reply has an action (`core.reply.parse_action`) is refused. Single replies
without an action, such as a closing remark, are kept as steps with an empty action.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Task, Trajectory, Transition, canonical_form
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.data.json_items import read_items

KIND = "imported"
_LABEL = re.compile(r"^[ \t]*(Thought|Action):\s*(?=\S)(?!Thought:|Action:)", re.MULTILINE)

Turn = tuple[str, str, bool | None]  # from, value, loss


def read_conversations(
    path: pathlib.Path, environment: str, *, outcomes_required: bool = False
) -> list[Trajectory]:
    """The trajectories of a file, in its order.

    Their tasks cannot be played, for the file does not say what the environment needs for that:
    `spec` names only file and item. Their `problem` is that of the first observation's text, so it
    equals no `problem` of the environment's own tasks, even where the task is the same.

    Args:
      path: The file.
      environment: What was played.
      outcomes_required: Whether items without `reward` are refused.

    Raises:
      UserError: The file is not in this format: with the item and the key.
    """
    trajectories = []
    counts: dict[str, int] = {}
    names: set[str] = set()
    for number, item in enumerate(read_items(path)):
        name = given = _name(f"{path}: item {number}", item)
        while name in names:  # another trajectory of the same task
            counts[given] = counts.get(given, 1) + 1
            name = f"{given}#{counts[given]}"
        names.add(name)
        origin = {"file": path.name, "item": number}
        where, task_id = f"{path}: item {number}", f"{environment}/{name}"
        if outcomes_required:
            _require_reward(where, item)
        trajectories.append(_trajectory(where, item, task_id, origin))
    return trajectories


def item_names(path: pathlib.Path) -> Iterator[str]:
    """The ids of a file's items, whatever else is in them; nothing where it cannot be read."""
    try:
        items = read_items(path)
    except UserError:
        return
    for item in items:
        if isinstance(item, dict):
            yield admit_text(str(item.get("item_id", item.get("id", ""))))


def _name(where: str, item: Any) -> str:
    if not isinstance(item, dict):
        raise UserError(f"{where}: must be an object with `id` and `conversations`")
    key = "item_id" if "item_id" in item else "id"
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: `{key}`: must be a name or a number, not {_short(value)}")
    return admit_text(str(value), 1000)


def _trajectory(
    where: str, item: Mapping[str, Any], task_id: str, origin: Mapping[str, Any]
) -> Trajectory:
    turns = _without_instruction(_turns(where, item.get("conversations")))
    if len(turns) < 2:
        raise UserError(f"{where}: `conversations`: no `gpt` turn follows the instruction")
    reward, success = _outcome(where, item)
    first = _observation(turns[0][1])
    replies, answers = turns[1::2], turns[2::2]
    steps = []
    for number, (_, reply, _) in enumerate(replies):
        last = number == len(replies) - 1
        steps.append(
            _step(
                reply,
                _observation(answers[number][1]) if number < len(answers) else "",
                reward=reward if last else 0.0,
                done=last,
                success=last and success,
            )
        )
    if not any(step.action for step in steps):
        raise UserError(
            f"{where}: `conversations`: none of its {len(steps)} replies has an action; write "
            f"`Action: ...` on a line of its own (the first is {_short(replies[0][1])})"
        )
    environment = task_id.partition("/")[0]
    task = Task(
        environment=environment,
        task_id=task_id,
        kind=KIND,
        split="train",
        problem=canonical_form([environment, KIND, first]),
        max_steps=len(steps),
        spec=origin,
    )
    return Trajectory(task=task, first_observation=first, steps=tuple(steps))


def _step(reply: str, observation: str, *, reward: float, done: bool, success: bool) -> Step:
    # AgentGym puts thought and action on lines of their own; here they follow their labels.
    reply = _LABEL.sub(lambda found: f"{found.group(1)}: ", reply.strip())
    action = parse_action(reply)
    return Step(
        reply=reply,
        action=action,
        transition=Transition(
            observation=observation, reward=reward, done=done, success=success, valid=action != ""
        ),
    )


def _turns(where: str, value: Any) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `conversations`: must be a list of turns, not {_short(value)}")
    turns: list[Turn] = []
    for number, turn in enumerate(value):
        place = f"{where}: `conversations[{number}]"
        if not isinstance(turn, dict):
            raise UserError(f"{place}`: must be an object with `from` and `value`")
        speaker = "gpt" if number % 2 else "human"
        if turn.get("from") != speaker:
            raise UserError(f"{place}.from`: must be {speaker!r}, not {_short(turn.get('from'))}")
        if not isinstance(turn.get("value"), str):
            raise UserError(f"{place}.value`: must be a text, not {_short(turn.get('value'))}")
        loss = turn.get("loss")
        if loss is not None and not isinstance(loss, bool):
            raise UserError(f"{place}.loss`: must be true, false or null, not {_short(loss)}")
        turns.append((speaker, admit_text(turn["value"]), loss))
    return turns


def _without_instruction(turns: Sequence[Turn]) -> Sequence[Turn]:
    begin = 0
    replies = turns[1::2]
    if any(loss is not None for _, _, loss in replies):
        while begin // 2 < len(replies) and replies[begin // 2][2] is False:
            begin += 2
    elif replies and not parse_action(replies[0][1]):
        begin = 2
    return turns[begin:]


def _require_reward(where: str, item: Mapping[str, Any]) -> None:
    meta = item.get("meta")
    if item.get("reward", meta.get("reward") if isinstance(meta, dict) else None) is None:
        raise UserError(f"{where}: `reward` is missing: the outcome of the episode, from 0 to 1")


def _outcome(where: str, item: Mapping[str, Any]) -> tuple[float, bool]:
    meta = item.get("meta")
    found = {**(meta if isinstance(meta, dict) else {}), **item}
    reward = found.get("reward")
    if reward is None:
        reward = 1.0
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
        raise UserError(f"{where}: `reward`: must be a number from 0 to 1, not {_short(reward)}")
    success = found.get("success")
    if success is None:
        success = reward == 1
    if not isinstance(success, bool):
        raise UserError(f"{where}: `success`: must be true or false, not {_short(success)}")
    return float(reward), success


def _observation(value: str) -> str:
    return value.strip().removeprefix("Observation:").strip()


def _short(value: Any) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 40 else text[:37] + "..."
