"""Selection rules: the score by which a search enters the children of a node.

A rule is any function of `Children`. The built-in ones are UCB (of the paper) and PUCT (AlphaZero).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.registry import Registry
from agentrm_jax.core.text import printable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Children:
    """The children of one node in each of E trees, W children at most.

    Attributes:
      value: Mean return of the child, in [0, 1]; 0 if it was never visited. In `guided_mcts` the
        mean score, -inf if the reward model did not decide.
      prior: The policy's probability of the child, renormalised over the node's children: the
        softmax of the mean log-probability of the reply's tokens. Equal for all children if no
        log-probabilities are stored. 0 if the child does not exist.
      visits: Number of returns that were backed up through the child.
      present: Whether the child exists; the score of one that does not is ignored.
      parent_visits: Number of returns that were backed up through the node itself.
    """

    value: Float[Array, "E W"]
    prior: Float[Array, "E W"]
    visits: Int[Array, "E W"]
    present: Bool[Array, "E W"]
    parent_visits: Int[Array, "E 1"]


@runtime_checkable
class SelectionRule(Protocol):
    """A function from children to their scores; the search enters the child with the largest one.

    The first child wins a tie. A rule is traced by JAX and is a static argument of the compiled
    walk: it uses `jax.numpy`, and is hashable (a function or a frozen dataclass).
    """

    def __call__(self, children: Children, /) -> Float[Array, "E W"]: ...


SELECTION_RULES: Registry[Callable[..., SelectionRule]] = Registry(
    "agentrm_jax.selection_rules", "selection rule"
)


def register_selection_rule(name: str) -> Callable[[Any], Any]:
    """Returns a class decorator that makes a selection rule available to configuration files.

    The class is a frozen keyword-only dataclass with a method `__call__(children)`; its fields are
    the keys of the section `explore.search.selection` next to `kind`.

    Args:
      name: The value of `kind`.

    Raises:
      UserError: An installed package provides a rule of this name, or the name is not made of
        letters, digits and underscores.
    """
    return SELECTION_RULES.register(name)


def check_rule(rule: Any) -> None:
    """Refuses an object that cannot be a selection rule.

    Raises:
      UserError: It is no function, a class in place of its instance, or not hashable.
    """
    if isinstance(rule, type):
        raise UserError(
            f"selection must be an instance, such as {rule.__name__}() (got the class itself)"
        )
    if not callable(rule):
        raise UserError(
            "selection must be a rule, such as UCB() or PUCT(), or a function of Children (got "
            f"{printable(repr(rule))[:60]})"
        )
    try:
        hash(rule)
    except TypeError:
        raise UserError(
            f"selection: {type(rule).__name__} must be hashable: make it a frozen dataclass"
        ) from None


def name_of_rule(rule: SelectionRule) -> str:
    """Returns a text that names a rule and its fields, the same in every process."""
    if dataclasses.is_dataclass(rule):
        return repr(rule)
    return str(getattr(rule, "__qualname__", type(rule).__qualname__))


def scores_of_children(rule: SelectionRule, children: Children) -> Float[Array, "E W"]:
    """Returns the scores of a rule.

    Raises:
      UserError: The rule returns something else than one score for each child.
    """
    try:
        scores, shape = rule(children), children.value.shape
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        error.add_note("JAX compiles a selection rule: use jax.numpy, and jnp.where instead of if")
        raise
    if getattr(scores, "shape", None) != shape:
        got = getattr(scores, "shape", type(scores).__name__)
        raise UserError(
            f"selection: {name_of_rule(rule)[:60]} must return an array [E, W] with a score for "
            f"each child, here {list(shape)} (got {list(got) if isinstance(got, tuple) else got})"
        )
    return scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class UCB:
    """The upper confidence bound V + c sqrt(ln N_parent / N) (the paper's rule, section 3.2).

    A child that was never visited has the score infinity.

    Attributes:
      exploration: c.
    """

    exploration: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, exploration="[0, inf)")

    def __call__(self, children: Children, /) -> Float[Array, "E W"]:
        log_parent = jnp.log(jnp.maximum(children.parent_visits, 1))
        spread = jnp.sqrt(log_parent / jnp.maximum(children.visits, 1))
        return jnp.where(children.visits > 0, children.value + self.exploration * spread, jnp.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PUCT:
    """AlphaZero's bound V + c P sqrt(N_parent) / (1 + N), with the policy's prior P.

    V of a child that was never visited is 0. A node that was never visited, which only the root can
    be, counts as visited once, so that its most probable child is entered first.

    Attributes:
      exploration: c.
    """

    exploration: float = 1.25

    def __post_init__(self) -> None:
        check_fields(self, exploration="[0, inf)")

    def __call__(self, children: Children, /) -> Float[Array, "E W"]:
        root = jnp.sqrt(jnp.maximum(children.parent_visits, 1).astype(jnp.float32))
        bonus = children.prior * root / (1 + children.visits)
        return children.value + self.exploration * bonus


def priors(logits: Float[Array, "E W"], present: Bool[Array, "E W"]) -> jax.Array:
    """Returns the probabilities of children from their logits.

    Args:
      logits: Mean log-probability of the tokens of each child's reply; NaN if none are stored. Such
        a child gets the mean logit of its siblings.
      present: Whether the child exists.

    Returns:
      [E, W] float32; rows with a child sum to 1.
    """
    known = present & ~jnp.isnan(logits)
    total = jnp.sum(jnp.where(known, logits, 0), axis=1, keepdims=True)
    mean = total / jnp.maximum(jnp.sum(known, axis=1, keepdims=True), 1)
    return jnp.where(present, jax.nn.softmax(jnp.where(known, logits, mean), where=present), 0)
