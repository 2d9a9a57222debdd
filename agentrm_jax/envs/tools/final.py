"""The tools that all of AgentBoard's query environments have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrm_jax.envs.tools.calls import Call, Tool, ToolError
from agentrm_jax.envs.tools.episode import Result


def final(call: Call, tools: Sequence[Tool]) -> Result:
    """`finish` and `check_valid_actions`.

    Raises:
      ToolError: It is another tool.
    """
    if call.name == "finish":
        return finished(call.arguments["answer"])
    if call.name == "check_valid_actions":
        return Result(f"You can use following valid actions: {[tool.name for tool in tools]}")
    raise ToolError(f"ERROR | Invalid action: {call.name}.")


def finished(answer: Any) -> Result:
    """The final answer; a list is sorted, as labels are."""
    answer = sorted(answer) if isinstance(answer, list) else answer
    return Result(answer, reached=answer)
