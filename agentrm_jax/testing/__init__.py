"""A toy environment with a policy and a scorer, for tests, examples and first steps.

`testing.models` has a tiny language model as well; it imports JAX, this module does not.
"""

from agentrm_jax.testing.guess import (
    GUESS_PROMPT,
    Guess,
    guess_policy,
    guess_scorer,
    guess_tasks,
)

__all__ = ["GUESS_PROMPT", "Guess", "guess_policy", "guess_scorer", "guess_tasks"]
