"""Trajectories in Harbor's Agent Trajectory Interchange Format (ATIF), versions 1.0 to 1.8.

    {"schema_version": "ATIF-v1.4", "session_id": "...", "agent": {"name": ..., "version": ...},
     "steps": [{"step_id": 1, "source": "user", "message": "..."},
               {"step_id": 2, "source": "agent", "message": "...", "tool_calls": [...],
                "observation": {"results": [{"content": "..."}]}}, ...]}

What is read: the user's messages before the first step of the agent are the first observation; each
step of the agent is a step. Its reply is `Thought: MESSAGE` and an `Action: NAME with Action Input:
{...}` for each tool call, or without tool calls the message as it is. The results of its
observation, and what the user or the system says before the agent's next step, are the observation.
Without a message the reasoning is the thought. System prompts, images and subagents are not read.

The format has no field for the outcome. It is `reward` of the root's `extra` or of
`final_metrics.extra`, or `verifier_result.rewards.reward` of the `result.json` that Harbor writes
in the folder above.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.records import Step, Task, Trajectory, Transition, canonical_form, to_json
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import admit_text, first_line, shown
from agentrm_jax.data.json_items import read_items
from agentrm_jax.data.typed_json import from_json

PREFIX = "ATIF-v1."
VERSION = f"{PREFIX}4"
"""What is written: the oldest version with all fields that are used."""

KIND = "imported"
_OWN = "agentrm"
_ACT = "act"


def is_atif(item: Any) -> bool:
    """Returns whether a JSON value is a trajectory in this format."""
    version = item.get("schema_version") if isinstance(item, Mapping) else None
    return isinstance(version, str) and version.startswith("ATIF")


def read_atif(path: pathlib.Path, environment: str | None) -> list[Trajectory]:
    """Returns the trajectories of a file, in its order.

    Args:
      path: The file: one trajectory, a list of them, or one on each line.
      environment: What was played; None if agentrm wrote the file, which names it.

    Raises:
      UserError: The file is not in this format, or an outcome is missing; names the item and the
        field.
    """
    found, names = [], dict[str, int]()
    for number, item in enumerate(read_items(path)):
        where = f"{path}: item {number}"
        if not is_atif(item):
            raise UserError(f"{where}: `schema_version`: must begin with {PREFIX}")
        trajectory = _trajectory(where, path, number, item, environment)
        name = trajectory.task.task_id
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:  # another trajectory of the same session
            task = dataclasses.replace(trajectory.task, task_id=f"{name}#{names[name]}")
            trajectory = dataclasses.replace(trajectory, task=task)
        found.append(trajectory)
    return found


def atif_of(trajectory: Trajectory, version: str) -> dict[str, Any]:
    """Returns a trajectory as the JSON value of a file; `read_atif` reads the same one back.

    Args:
      trajectory: The trajectory.
      version: The version of this package, as that of the agent.
    """
    first = {"step_id": 1, "source": "user", "message": trajectory.first_observation}
    steps = [_written_step(i, step) for i, step in enumerate(trajectory.steps, start=2)]
    return {
        "schema_version": VERSION,
        "session_id": trajectory.task.task_id,
        "agent": {"name": _OWN, "version": version},
        "steps": [first, *steps],
        "final_metrics": {
            "total_steps": len(steps) + 1,
            "total_completion_tokens": sum(len(step.token_ids) for step in trajectory.steps),
        },
        "extra": {
            "reward": trajectory.outcome,
            "success": trajectory.success,
            _OWN: {"task": to_json(trajectory.task)},
        },
    }


def _written_step(number: int, step: Step) -> dict[str, Any]:
    answer, count = step.transition, len(step.token_ids)
    result: dict[str, Any] = {"content": answer.observation}
    written: dict[str, Any] = {"step_id": number, "source": "agent", "message": step.reply}
    if step.action:
        call = f"call_{number}"
        written["tool_calls"] = [
            {
                "tool_call_id": call,
                "function_name": _ACT,
                "arguments": {"action": step.action},
            }
        ]
        result["source_call_id"] = call
    written["observation"] = {"results": [result]}
    if step.token_ids or step.log_probs:
        metrics: dict[str, Any] = {
            "completion_tokens": count,
            "completion_token_ids": list(step.token_ids),
            "logprobs": list(step.log_probs[:count]),
        }
        if step.log_probs[count:]:  # of the token that ends the reply
            metrics["extra"] = {"end_logprobs": list(step.log_probs[count:])}
        written["metrics"] = metrics
    written["extra"] = {
        name: getattr(answer, name) for name in ("reward", "done", "success", "valid")
    }
    return written


def _trajectory(
    where: str,
    path: pathlib.Path,
    number: int,
    item: Mapping[str, Any],
    environment: str | None,
) -> Trajectory:
    steps = item.get("steps")
    if not isinstance(steps, list) or not steps:
        raise UserError(f"{where}: `steps`: must be a list of steps, not {shown(steps)}")
    for i, step in enumerate(steps):
        if not isinstance(step, dict) or step.get("source") not in ("system", "user", "agent"):
            raise UserError(f"{where}: `steps[{i}].source`: must be one of system, user, agent")
    begin = next((i for i, step in enumerate(steps) if step["source"] == "agent"), len(steps))
    messages = [
        _content(where, f"steps[{i}].message", step.get("message"))
        for i, step in enumerate(steps[:begin])
        if step["source"] == "user"
    ]
    first = "\n\n".join(filter(None, messages))
    if (own := _own_task(where, item)) is not None:
        if environment is not None and environment != own.environment:
            own = dataclasses.replace(own, environment=environment)
        turns = [_own_step(f"{where}: `steps[{i}]`", steps[i]) for i in range(begin, len(steps))]
        return Trajectory(task=own, first_observation=first, steps=tuple(turns))
    if begin == len(steps):
        raise UserError(f"{where}: `steps`: none of them is of the agent")
    if environment is None:
        raise UserError(f"{where}: says nothing of an environment; give --environment NAME")
    turns = _turns(where, steps[begin:], begin)
    outcome = _outcome(where, path, item)
    extra = item.get("extra")
    success = extra.get("success") if isinstance(extra, dict) else None
    ended = dataclasses.replace(
        turns[-1].transition,
        reward=outcome,
        done=True,
        success=success if isinstance(success, bool) else outcome == 1,
    )
    turns[-1] = dataclasses.replace(turns[-1], transition=ended)
    name = item.get("trajectory_id") or item.get("session_id") or number
    task = Task(
        environment=environment,
        task_id=admit_text(f"{environment}/{name}", 1000),
        kind=KIND,
        problem=canonical_form([environment, KIND, first]),
        max_steps=len(turns),
        spec={"file": path.name, "item": number},
    )
    return Trajectory(task=task, first_observation=first, steps=tuple(turns))


def _turns(where: str, steps: Sequence[Mapping[str, Any]], begin: int) -> list[Step]:
    """The steps of the agent; what others say after one belongs to its observation."""
    replies: list[tuple[str, str]] = []
    answers: list[list[str]] = []
    for i, step in enumerate(steps, start=begin):
        message = _content(where, f"steps[{i}].message", step.get("message"))
        if step["source"] == "agent":
            replies.append(_reply(f"{where}: `steps[{i}]", step, message))
            answers.append(_results(where, i, step))
        elif step["source"] == "user":
            answers[-1] += [message, *_results(where, i, step)]
        else:
            answers[-1] += _results(where, i, step)
    return [
        Step(
            reply=reply,
            action=action,
            transition=Transition(
                observation="\n".join(filter(None, answer)),
                reward=0.0,
                done=False,
                success=False,
                valid=action != "",
            ),
        )
        for (reply, action), answer in zip(replies, answers, strict=True)
    ]


def _reply(where: str, step: Mapping[str, Any], message: str) -> tuple[str, str]:
    """The reply of a step and its action."""
    calls = step.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UserError(f"{where}.tool_calls`: must be a list, not {shown(calls)}")
    thought = message.strip()
    if not thought and isinstance(reasoning := step.get("reasoning_content"), str):
        thought = admit_text(reasoning).strip()
    if not calls:
        return thought, parse_action(thought)
    actions = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    lines = [f"Thought: {thought}"] if thought else []
    return "\n".join([*lines, *(f"Action: {action}" for action in actions)]), "\n".join(actions)


def _call(where: str, call: Any) -> str:
    name = call.get("function_name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}.function_name`: must be a text")
    arguments = json.dumps(call.get("arguments") or {}, ensure_ascii=False)
    return admit_text(f"{name} with Action Input: {arguments}")


def _results(where: str, number: int, step: Mapping[str, Any]) -> list[str]:
    """The texts of a step's observation."""
    observation = step.get("observation")
    if observation is None:
        return []
    place = f"steps[{number}].observation.results"
    results = observation.get("results") if isinstance(observation, dict) else None
    if not isinstance(results, list):
        raise UserError(f"{where}: `{place}`: must be a list, not {shown(results)}")
    return [
        _content(
            where, f"{place}[{i}].content", each.get("content") if isinstance(each, dict) else 0
        )
        for i, each in enumerate(results)
    ]


def _content(where: str, key: str, value: Any) -> str:
    """The text of a message; of several parts, those that are text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return admit_text(value)
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        texts = [part.get("text") for part in value if part.get("type") == "text"]
        if all(isinstance(text, str) for text in texts):
            return admit_text("\n".join(texts))
    raise UserError(f"{where}: `{key}`: must be a text or a list of parts, not {shown(value)}")


def _own_task(where: str, item: Mapping[str, Any]) -> Task | None:
    """The task of a trajectory that `atif_of` wrote, None of another one."""
    extra = item.get("extra")
    own = extra.get(_OWN) if isinstance(extra, dict) else None
    if own is None:
        return None
    try:
        return from_json(Task, own.get("task") if isinstance(own, dict) else None)
    except ValueError as error:
        raise UserError(f"{where}: `extra.{_OWN}.task`: {first_line(error)}") from None


def _own_step(where: str, step: Mapping[str, Any]) -> Step:
    """A step that `_written_step` wrote."""
    try:
        calls = step.get("tool_calls") or []
        extra, metrics = step["extra"], step.get("metrics", {})
        [result] = step["observation"]["results"]
        end = metrics.get("extra", {}).get("end_logprobs", [])
        return from_json(
            Step,
            {
                "reply": step["message"],
                "action": calls[0]["arguments"]["action"] if calls else "",
                "transition": {"observation": result["content"], **extra},
                "token_ids": metrics.get("completion_token_ids", []),
                "log_probs": [*metrics.get("logprobs", []), *end],
            },
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: not as agentrm wrote it ({first_line(error)})") from None


def _outcome(where: str, path: pathlib.Path, item: Mapping[str, Any]) -> float:
    metrics = item.get("final_metrics")
    extras = [item.get("extra"), metrics.get("extra") if isinstance(metrics, dict) else None]
    given = [extra["reward"] for extra in extras if isinstance(extra, dict) and "reward" in extra]
    reward, named = (given[0], "extra.reward") if given else (_verified(path), "result.json")
    if reward is None:
        raise UserError(
            f"{where}: no outcome: write `reward`, from 0 to 1, into its `extra`, or keep Harbor's "
            "result.json in the folder above"
        )
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
        raise UserError(
            f"{where}: `{named}`: the reward must be a number from 0 to 1, not {shown(reward)}"
        )
    return float(reward)


def _verified(path: pathlib.Path) -> Any:
    """The reward in `result.json` of a trial of Harbor: TRIAL/agent/trajectory.json."""
    file = path.resolve().parent.parent / "result.json"
    try:
        value = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return None
    for key in ("verifier_result", "rewards", "reward"):
        value = value.get(key) if isinstance(value, dict) else None
    return value
