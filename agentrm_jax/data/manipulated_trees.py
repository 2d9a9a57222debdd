"""Manipulated paths of search trees, as states of value 0 (`train_rm.manipulated`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.manipulations import manipulated
from agentrm_jax.data.states import ROOT_PARENT, LabelledTree

_TAUGHT = ("invalid_actions", "other_observations", "shuffled_steps")


def manipulated_trees(
    trees: Sequence[LabelledTree], fraction: float, seed: int
) -> list[LabelledTree]:
    """Returns manipulated forms of some paths; the last state of each has value 0 and weight 1.

    The form is drawn for each path: actions that no environment understands, the answers of another
    task, or the steps in another order; see `data.manipulations`. The last answer stays: whether
    a success is forged cannot be seen where the end says nothing.

    Args:
      trees: Labelled trees.
      fraction: Probability that a path from a root to its last label, of two steps at least, is
        taken.
      seed: Seed of the choice.
    """
    rng = np.random.default_rng(seed)
    paths = []
    for tree in trees:
        for branch in tree.branches():
            nodes = branch.to_last_label().nodes
            if len(nodes) > 2 and rng.random() < fraction:
                paths.append(tree.state(nodes[-1]))
    forms: dict[int, list[Trajectory]] = defaultdict(list)
    pairs = manipulated(paths, seed)
    for kind in _TAUGHT:
        for path, changed in pairs[kind]:
            forms[id(path)].append(changed)
    return [_chain(forms[id(path)][int(rng.integers(len(forms[id(path)])))]) for path in paths]


def _chain(path: Trajectory) -> LabelledTree:
    """A path as a tree without branches whose last state alone has a label."""
    length = len(path.steps)
    return LabelledTree(
        task=path.task,
        first_observation=path.first_observation,
        parents=(ROOT_PARENT, *range(length)),
        steps=path.steps,
        values=(0.0,) * (length + 1),
        visit_counts=(1,) * (length + 1),
        weights=(*(0.0,) * length, 1.0),
    )
