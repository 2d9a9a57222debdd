"""A toy environment and a tiny language model, for tests, examples and first steps.

The names of the model are imported when they are first used: they need JAX, the others do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agentrm_jax.testing.guess import (
    GUESS_PROMPT,
    Guess,
    guess_policy,
    guess_scorer,
    guess_tasks,
)

if TYPE_CHECKING:
    from agentrm_jax.testing.models import (
        tiny_model,
        tiny_policy,
        tiny_reward_model,
        tiny_state,
        write_tiny_policy,
        write_tiny_reward_model,
    )

__all__ = [
    "GUESS_PROMPT",
    "Guess",
    "guess_policy",
    "guess_scorer",
    "guess_tasks",
    "tiny_model",
    "tiny_policy",
    "tiny_reward_model",
    "tiny_state",
    "write_tiny_policy",
    "write_tiny_reward_model",
]


def __getattr__(name: str) -> Any:
    """Imports a name of the tiny model when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.models"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
