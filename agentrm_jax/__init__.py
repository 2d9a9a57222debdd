"""AgentRM in JAX: tree search and reward models that steer language-model agents at test time.

The names below are imported when they are first used, so that `import agentrm_jax` is fast and
imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrm_jax.agent.function import FunctionPolicy
    from agentrm_jax.core.errors import UserError
    from agentrm_jax.core.protocols import Environment, Policy, Proposal, Scorer
    from agentrm_jax.core.records import Prompt, Step, Task, Trajectory, Transition
    from agentrm_jax.envs.pool import EnvPool
    from agentrm_jax.reward.function import FunctionScorer
    from agentrm_jax.search.rollouts import Rollout, rollouts

_MODULES = {
    "agent.function": ("FunctionPolicy",),
    "core.errors": ("UserError",),
    "core.protocols": ("Environment", "Policy", "Proposal", "Scorer"),
    "core.records": ("Prompt", "Step", "Task", "Trajectory", "Transition"),
    "envs.pool": ("EnvPool",),
    "reward.function": ("FunctionScorer",),
    "search.rollouts": ("Rollout", "rollouts"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "EnvPool",
    "Environment",
    "FunctionPolicy",
    "FunctionScorer",
    "Policy",
    "Prompt",
    "Proposal",
    "Rollout",
    "Scorer",
    "Step",
    "Task",
    "Trajectory",
    "Transition",
    "UserError",
    "rollouts",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
