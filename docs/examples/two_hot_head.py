"""A value head of your own: trained, saved and loaded; the export refuses it with its reason.

python docs/examples/two_hot_head.py OUTPUT
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp

import agentrm_jax as arm
from agentrm_jax.testing import Guess, guess_policy, guess_tasks


@arm.register_head("two_hot")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoHot(arm.ValueHead):
    outputs: int = 11  # K logits, of values from 0 to 1; two neighbours share a label
    not_linear = "its value is the mean of a softmax"

    def value(self, outputs):
        return jax.nn.softmax(outputs) @ jnp.linspace(0, 1, self.outputs)

    def losses(self, outputs, targets):
        distance = jnp.abs(targets[..., None] * (self.outputs - 1) - jnp.arange(self.outputs))
        return -jnp.sum(jnp.maximum(0, 1 - distance) * jax.nn.log_softmax(outputs), axis=-1)

    def initial_bias(self, mean):
        return jnp.zeros(self.outputs)


with arm.EnvPool({"guess": Guess}) as envs:
    logged = [r.trajectory for r in arm.rollouts(guess_policy, envs, guess_tasks(20))]
model = arm.train_reward_model(logged, sys.argv[1], head=TwoHot(outputs=21))
print([round(score, 3) for score in model.score([logged[:3]])[0]])
try:
    arm.export_model(sys.argv[1], "reward", f"{sys.argv[1]}_exported")
except arm.UserError as error:
    print(error)
