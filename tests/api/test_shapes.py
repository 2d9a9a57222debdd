"""The shapes in the signatures of the Python interface, checked by beartype while it runs.

In processes of their own: the check is installed before the modules are imported.
"""

import subprocess
import sys

import pytest

HEAD = """
import dataclasses
import jaxtyping
import pytest

CHECKED = ["agentrm_jax.model.heads", "agentrm_jax.model.value", "agentrm_jax.search.selection"]
with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    import agentrm_jax as arm
    from agentrm_jax.model import heads, value
    from agentrm_jax.search import selection
import jax, jax.numpy as jnp, numpy as np
"""
HEADS = """
hidden = jnp.ones((2, 3, 8))
for head in (arm.MSE(), arm.HLGauss(bins=5), arm.Quantile(bins=5)):
    params = value.init_reward({"final_norm": jnp.ones(8)}, 0.25, head)["value_head"]
    values = jax.jit(lambda p, h: value.readout(p, h, head))(params, hidden)
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values, 0.25, atol=1e-3)
    assert value.Readout(head)(params, hidden[0, 0]).shape == ()
    outputs = value.head_outputs(params, hidden)
    losses = lambda outputs: head.losses(outputs, jnp.zeros((2, 3))).sum()
    assert np.isfinite(jax.grad(losses)(outputs)).all()
    head.linear(params)
    with pytest.raises(jaxtyping.TypeCheckError):
        head.losses(outputs, jnp.zeros((4, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        head.value(outputs.astype(int))

class Flat(arm.Quantile):
    def value(self, outputs):
        return outputs  # keeps the axis of outputs

with pytest.raises(jaxtyping.TypeCheckError):
    value.readout(params, hidden, Flat(bins=5))
"""
RULES = """
def children(W=4, **changes):
    E = 3
    numbers = dict(
        value=jnp.full((E, W), 0.5), prior=jnp.full((E, W), 1 / W), visits=jnp.ones((E, W), int),
        present=jnp.ones((E, W), bool), parent_visits=jnp.full((E, 1), W),
    )
    return arm.Children(**{**numbers, **changes})

for rule in (arm.UCB(), arm.PUCT()):
    assert jax.jit(rule)(children()).shape == (3, 4)
for wrong in (
    dict(value=jnp.ones((3, 5))), dict(visits=jnp.ones((3, 4))), dict(present=jnp.ones((3, 4))),
    dict(parent_visits=jnp.ones(3, int)), dict(prior=jnp.ones(4)),
):
    with pytest.raises(jaxtyping.TypeCheckError):
        children(**wrong)
assert selection.priors(jnp.zeros((3, 4)), jnp.ones((3, 4), bool)).shape == (3, 4)
with pytest.raises(jaxtyping.TypeCheckError):
    selection.priors(jnp.zeros((3, 4)), jnp.ones((3, 5), bool))
"""
SEARCH = """
from agentrm_jax.testing import Guess, guess_policy, guess_tasks

with arm.EnvPool({"guess": Guess}) as envs:
    for rule in (arm.UCB(), arm.PUCT()):
        trees = arm.explore(
            guess_policy, envs, guess_tasks(2), selection=rule, num_iterations=3, expansion_width=2
        )
        assert len(trees) == 2

@jaxtyping.jaxtyped(typechecker=__import__("beartype").beartype)
def wrong(children: arm.Children) -> jaxtyping.Float[jaxtyping.Array, "E W"]:
    return children.value[:, 0]

with arm.EnvPool({"guess": Guess}) as envs, pytest.raises(jaxtyping.TypeCheckError):
    arm.explore(guess_policy, envs, guess_tasks(2), selection=wrong, num_iterations=3)
"""


@pytest.mark.parametrize(
    "program", [HEADS, RULES, SEARCH], ids=["value heads", "selection rules", "search"]
)
def test_shapes_are_checked(program):
    done = subprocess.run([sys.executable, "-c", HEAD + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
