"""A ranking loss between siblings, next to the regression of values.

Search compares the children of one node and nothing else. Most of the regression's error is between
tasks and depths; this loss counts the order of siblings alone.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.data.packing import PackedRows
from agentrm_jax.train.step import Sums

Ends = Literal["both", "action", "observation"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The ranking loss between siblings: -log sigmoid((better - worse) / temperature).

    A pair is two labelled children of one node with different labels, of which both values are read
    at the same end of their steps. Its weight is the product of the weights of both labels; those
    grow with the visits if `label.weighting` is `visits`.

    Attributes:
      weight: Factor of the sum over pairs next to the sum over states; 0: no ranking loss. Both
        sums are divided by the weight of the states.
      temperature: The difference of values at which a pair counts as ordered: far above it, the
        loss is flat.
      ends: The ends of steps at which siblings are compared: after the `action`, after the
        `observation`, or `both`.
    """

    weight: float = 0.0
    temperature: float = 0.1
    ends: Ends = "both"

    def __post_init__(self) -> None:
        check_fields(self, weight="[0, 1e6]", temperature="(0, 1e6]")
        check_choice("ends", self.ends, ("both", "action", "observation"))


NO_RANKING = RankingConfig()


def ranking_sums(
    config: RankingConfig,
    values: Float[Array, "batch labels"],
    targets: Float[Array, "batch labels"],
    weights: Float[Array, "batch labels"],
    siblings: Int[Array, "batch labels"],
) -> Sums:
    """Returns the sums over the pairs of siblings that share a row.

    Args:
      config: The ranking loss.
      values: [R, L] predicted values of labelled tokens.
      targets: [R, L] their labels.
      weights: [R, L] weights of the labels.
      siblings: [R, L] int32, equal for siblings at the same end (`data.packing.PackedRows`).

    Returns:
      `pair_weight`, the sum of the weights of the pairs; `ranking`, the weighted sum of their
      losses; `ordered`, the weight of the pairs whose better state has the larger value, equal
      values counting half.
    """
    compared = siblings * _is_compared(siblings, config.ends)
    same = (compared[:, :, None] == compared[:, None, :]) & (compared[:, :, None] > 0)
    is_pair = same & (targets[:, :, None] > targets[:, None, :])
    pair_weights = jnp.where(is_pair, weights[:, :, None] * weights[:, None, :], 0.0)
    difference = values[:, :, None] - values[:, None, :]
    losses = jax.nn.softplus(-difference / config.temperature)
    ordered = (jnp.sign(difference) + 1) / 2
    return {
        "pair_weight": jnp.sum(pair_weights),
        "ranking": jnp.sum(pair_weights * losses),
        "ordered": jnp.sum(pair_weights * ordered),
    }


def _is_compared(siblings: jax.Array | np.ndarray, ends: Ends) -> jax.Array | np.ndarray:
    """Returns whether a label is at one of the ends; odd numbers are after the action."""
    return (siblings > 0) if ends == "both" else (siblings % 2 == (ends == "action"))


def count_pairs(config: RankingConfig, rows: PackedRows) -> tuple[int, int]:
    """Returns how many pairs of siblings are in one row, and how many packing has separated.

    Args:
      config: The ranking loss; `ends` is read.
      rows: Packed rows with `siblings`.
    """
    assert rows.siblings is not None
    labelled = (rows.weights > 0) & (rows.siblings > 0) & _is_compared(rows.siblings, config.ends)
    row_indices, _ = np.nonzero(labelled)
    families = rows.siblings[labelled].astype(np.int64)
    together = _unequal_pairs(families * len(rows) + row_indices, rows.targets[labelled])
    return together, _unequal_pairs(families, rows.targets[labelled]) - together


def _unequal_pairs(groups: np.ndarray, targets: np.ndarray) -> int:
    """Returns the number of pairs within groups that have different targets."""
    both = np.stack([groups.astype(np.float64), targets.astype(np.float64)])
    _, sizes = np.unique(groups, return_counts=True)
    _, equal = np.unique(both, axis=1, return_counts=True)
    return int(np.sum(sizes * (sizes - 1) // 2) - np.sum(equal * (equal - 1) // 2))
