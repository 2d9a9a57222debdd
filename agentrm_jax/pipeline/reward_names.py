"""Names of reward models in a configuration: a kind as it is, or a name with options of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice
from agentrm_jax.core.registry import Registry

REWARD_KINDS: Registry[Any] = Registry("agentrm_jax.reward_kinds", "kind of reward model")
"""The kinds of reward models, classes of `pipeline.reward_kinds.RewardKind`."""

_TAKEN = ("oracle", "random")
"""Names of reward models in result rows that are none."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RewardTraits:
    """The facts about a reward model that other parts of a run depend on.

    Attributes:
      trained_by: The stages of the run that train it.
      compares: Whether its scores of a trajectory depend on the other trajectories of the task.
      scores_actions: Whether it can score a reply inside of the decoding step.
    """

    trained_by: frozenset[str] = frozenset()
    compares: bool = False
    scores_actions: bool = False


def reward_kind(name: str, options: Mapping[str, Any], field: str = "rewards") -> Any:
    """Returns the reward model of a name, a `RewardKind`.

    Args:
      name: A name of `options`, or a kind, which has its defaults then.
      options: The section `reward_options`.
      field: The key that holds the name, for errors.

    Raises:
      UserError: There is no such name, or its kind has keys without a default.
    """
    if name in options:
        return options[name]
    kind = REWARD_KINDS.load(name)
    missing = dataclasses.MISSING
    if needed := [
        each.name
        for each in dataclasses.fields(kind)
        if each.default is missing and each.default_factory is missing
    ]:
        keys = ", ".join(f"{key}: ..." for key in needed)
        raise UserError(
            f"must not name {name}, which has no default for {' and '.join(needed)}; name a reward "
            f"model of reward_options: {{NAME: {{kind: {name}, {keys}}}}}",
            field=field,
        )
    return kind()


def used_rewards(
    names: Sequence[str],
    options: Mapping[str, Any],
    *,
    field: str = "rewards",
    within: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns the reward models of names and all their members by name, members first.

    Args:
      names: The names.
      options: The section `reward_options`.
      field: The key that holds the names, for errors.
      within: The reward models that these are members of.

    Raises:
      UserError: A name is not known, or a reward model is a member of itself.
    """
    known = sorted({*REWARD_KINDS.names(), *options})
    found: dict[str, Any] = {}
    for name in names:
        check_choice(field, name, known)
        if name in within:
            raise UserError(f"must not name {name}, which would be its own member", field=field)
        kind = reward_kind(name, options, field)
        inner = f"reward_options.{name}.of"
        found |= used_rewards(kind.members, options, field=inner, within=(*within, name))
        found[name] = kind
    return found


def reward_traits(name: str, options: Mapping[str, Any]) -> RewardTraits:
    """Returns the traits of a reward model and of its members taken together.

    Args:
      name: Its name.
      options: The section `reward_options`.

    Raises:
      UserError: See `used_rewards`.
    """
    used = used_rewards([name], options)
    every: list[RewardTraits] = [kind.traits for kind in used.values()]
    return RewardTraits(
        trained_by=frozenset().union(*(traits.trained_by for traits in every)),
        compares=any(traits.compares for traits in every),
        scores_actions=used[name].traits.scores_actions,
    )


def check_reward_options(options: Mapping[str, Any]) -> None:
    """Refuses names of the section `reward_options` that have another meaning.

    Raises:
      UserError: Names the key.
    """
    kinds = REWARD_KINDS.names() if options else []
    for name, kind in options.items():
        own = REWARD_KINDS.name_of(type(kind))
        if not name.isidentifier() or name in _TAKEN:
            expected = f"letters, digits and _, and none of {', '.join(_TAKEN)}"
            raise UserError(f"is a name that must be {expected}", field=f"reward_options.{name}")
        if name in kinds and own != name:
            raise UserError(
                f"must have another name, because {name} is a kind of its own (got kind: {own})",
                field=f"reward_options.{name}",
            )
