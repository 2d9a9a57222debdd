"""The value of a hidden state: a reward model's head applied to it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from agentrm_jax.model.heads import PAPER_HEAD, ValueHead
from agentrm_jax.model.parameters import Params


@dataclasses.dataclass(frozen=True, slots=True)
class Readout:
    """A value head as a function for an engine; equal heads share their compiled programs."""

    head: ValueHead

    def __call__(
        self, params: Params, hidden: Float[Array, "*batch d_model"]
    ) -> Float[Array, "*batch"]:
        return readout(params, hidden, self.head)


def readout(
    params: Params,
    hidden: Float[Array, "*batch d_model"],
    head: ValueHead = PAPER_HEAD,
) -> Float[Array, "*batch"]:
    """Returns the values of hidden states.

    Args:
      params: The head's parameters, `kernel` and `bias`.
      hidden: [..., D], of any float dtype.
      head: The head that the parameters belong to.

    Returns:
      [...] float32.
    """
    return head.value(head_outputs(params, hidden))


def head_outputs(
    params: Params, hidden: Float[Array, "*batch d_model"]
) -> Float[Array, "*outputs"]:
    """Returns the outputs of a head for hidden states [..., D].

    Returns:
      [..., K] float32, or [...] for a head without an axis of outputs.
    """
    # Without the precision accelerators would round both sides to 8 or 11 bits.
    wide = hidden.astype(jnp.float32)
    return jnp.matmul(wide, params["kernel"].T, precision="highest") + params["bias"]


def init_reward(
    policy: Params,
    mean_value: float,
    head: ValueHead = PAPER_HEAD,
) -> Params:
    """Returns a reward model that has a policy's trunk and predicts the mean value everywhere.

    Args:
      policy: Parameters of the policy; the trunk is shared with it, not copied.
      mean_value: The value that the head predicts before it is trained.
      head: The value head.

    Returns:
      `trunk`, and `value_head` with `kernel` [K, D] or [D] and `bias` [K] or [] in float32.
    """
    trunk = {name: value for name, value in policy.items() if name != "lm_head"}
    bias = jnp.asarray(head.initial_bias(mean_value), jnp.float32)
    D = policy["final_norm"].shape[0]
    return {
        "trunk": trunk,
        "value_head": {"kernel": jnp.zeros((*bias.shape, D), jnp.float32), "bias": bias},
    }
