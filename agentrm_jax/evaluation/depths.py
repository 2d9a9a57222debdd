"""Values of the states of exploration trees by depth."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.evaluation.meta_evaluation import tree_states
from agentrm_jax.evaluation.report_rows import DepthValues


def value_by_depth(trees: Iterable[TreeRecord]) -> list[DepthValues]:
    """Returns the values of all visited states, by depth.

    Args:
      trees: Exploration trees; trees without iterations count nothing.
    """
    values: dict[int, list[float]] = {}
    for tree in trees:
        states = tree_states(tree)
        for depth, value in zip(states.depths, states.values, strict=True):
            values.setdefault(int(depth), []).append(float(value))
    return [
        {
            "depth": depth,
            "states": len(own),
            "mean": float(np.mean(own)),
            "low": float(np.quantile(own, 0.25)),
            "high": float(np.quantile(own, 0.75)),
        }
        for depth, own in sorted(values.items())
    ]
