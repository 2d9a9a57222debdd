"""Tree search with a selection rule of your own: PUCT in place of UCB.

    python docs/examples/puct.py runs/quickstart babyai

Priors come from the log-probabilities that the policy stores with its replies.
"""

import sys

import jax.numpy as jnp
from jaxtyping import Array, Float

import agentrm_jax as arm


def puct(children: arm.Children) -> Float[Array, "E W"]:
    spread = jnp.sqrt(children.parent_visits) / (1 + children.visits)
    return children.value + 1.25 * children.prior * spread


path, environment = sys.argv[1:]
policy = arm.ModelPolicy.load(path)
with arm.EnvPool([environment], workers=1) as envs:
    tasks = envs.tasks(environment, 4)
    for name, selection in {"UCB": arm.UCB(exploration=0.5), "PUCT": puct}.items():
        trees = arm.explore(policy, envs, tasks, selection=selection, num_iterations=8)
        labelled = arm.label(trees)
        states = sum(tree.num_labels for tree in labelled)
        print(f"{name}: {len(trees)} trees, {states} labelled states")
