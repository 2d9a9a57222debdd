"""The value head of a reward model: one number for each hidden state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from agentrm_jax.model.parameters import Params


def readout(head: Params, hidden: jax.Array) -> jax.Array:
    """Values [...] float32 of hidden states [..., D]."""
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def init_reward(policy: Params, mean_value: float) -> Params:
    """A reward model that begins as the policy's trunk and predicts the mean value everywhere."""
    trunk = {name: value for name, value in policy.items() if name != "lm_head"}
    D = policy["final_norm"].shape[0]
    head = {
        "kernel": jnp.zeros(D, jnp.float32),
        "bias": jnp.asarray(mean_value, jnp.float32),
    }
    return {"trunk": trunk, "value_head": head}
