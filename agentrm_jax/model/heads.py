"""Value heads: what a reward model's outputs mean, how they are trained, how they begin.

A head is a frozen dataclass whose fields are the keys below `train_rm.head` next to `kind`, the
name under which the class is registered. A new one needs one class:

    @register_head("two_hot")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TwoHot(ValueHead):
        bins: int = 51
        ...
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields
from agentrm_jax.core.registry import Registry
from agentrm_jax.model.parameters import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHead(abc.ABC):
    """A value head: K numbers for each hidden state, their value and their loss.

    The parameters of every head are a linear map of the hidden state: `kernel` [K, D] and `bias`
    [K], or [D] and [] if `outputs` is None. Two heads of the same class with equal fields share
    their compiled programs.
    """

    @property
    def outputs(self) -> int | None:
        """K, the number of outputs; None for a single number without an axis of its own."""
        return None

    @abc.abstractmethod
    def value(self, outputs: Float[Array, "*outputs"]) -> Float[Array, "*batch"]:
        """Returns the values that outputs stand for.

        Args:
          outputs: [..., K] float32, or [...] if `outputs` is None.

        Returns:
          [...] float32.
        """

    @abc.abstractmethod
    def losses(
        self, outputs: Float[Array, "*outputs"], targets: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Returns the loss of each output for its target.

        Must be finite for a target of 0, which tokens without a label have.

        Args:
          outputs: [..., K] float32, or [...] if `outputs` is None.
          targets: [...] float32.

        Returns:
          [...] float32.
        """

    @abc.abstractmethod
    def initial_bias(self, mean: float) -> np.ndarray:
        """Returns the bias with which an untrained head predicts the mean of the labels.

        Args:
          mean: Weighted mean of the labels.

        Returns:
          [K], or [] if `outputs` is None.
        """

    def linear(self, params: Params) -> tuple[Float[Array, " d_model"], Float[Array, ""]] | None:
        """Returns weight and bias of the one linear map that gives the value, if there is one.

        Only such a head can be exported, since a sequence classifier of transformers is linear.

        Args:
          params: The head's parameters, `kernel` and `bias`.

        Returns:
          A weight [D] and a bias [], or None. If None, `not_linear` says why.
        """
        del params
        return None

    @property
    def not_linear(self) -> str:
        """The reason why `linear` returns None, as the end of "the head cannot be exported: "."""
        return "its value is not a linear function of the hidden state"

    def at_quantile(self, level: float) -> ValueHead:
        """Returns a head for the same parameters whose value is a quantile of the target.

        Args:
          level: The quantile, in (0, 1): a low one is a pessimistic value.

        Raises:
          UserError: The head predicts no quantiles, as most do not.
        """
        raise UserError(
            f"must be left out, because the head {type(self).__name__} predicts no quantiles; "
            "train with train_rm.head: {kind: quantile}",
            field="quantile",
            value=level,
        )

    def check_targets(self, targets: np.ndarray) -> None:
        """Refuses labels that the head cannot represent; accepts all by default.

        Args:
          targets: Labels of any shape.

        Raises:
          UserError: A label is outside of the head's range.
        """
        del targets


HEADS: Registry[type[ValueHead]] = Registry("agentrm_jax.heads", "value head")
"""All value heads by the name that `train_rm.head.kind` selects."""

Head = TypeVar("Head", bound=type[ValueHead])


def register_head(name: str) -> Callable[[Head], Head]:
    """Returns a class decorator that adds a value head under a name.

    Args:
      name: The name in `train_rm.head.kind` and in `model.json`.

    Raises:
      UserError: An installed package provides the name, or the class is not a frozen dataclass
        derived from `ValueHead`.
    """
    add = HEADS.register(name)

    def decorate(head: Head) -> Head:
        if not issubclass(head, ValueHead) or "__dataclass_fields__" not in vars(head):
            raise UserError(
                f"value head {name!r}: {head.__name__} must be a class derived from ValueHead with "
                "the decorator @dataclasses.dataclass(frozen=True, kw_only=True)"
            )
        return add(head)

    return decorate


def head_to_json(head: ValueHead) -> dict[str, Any]:
    """Returns the name and the fields of a head, as `model.json` holds them.

    Raises:
      UserError: The head's class is not registered.
    """
    name = HEADS.name_of(type(head))
    if name is None:
        kind = type(head).__name__
        raise UserError(
            f"the value head {kind} has no name, so a model with it could not be loaded; add "
            f'@register_head("NAME") to the class {kind}'
        )
    return {"kind": name, **dataclasses.asdict(head)}


def head_from_json(stored: Mapping[str, Any]) -> ValueHead:
    """Returns the head that `head_to_json` wrote.

    Keys that the class does not have are ignored: earlier versions stored those of all heads.

    Args:
      stored: `kind` and the fields; absent keys have their defaults.

    Raises:
      UserError: No head of this name is registered, or a value is refused.
    """
    if not isinstance(stored, Mapping):
        raise UserError(f"must be a mapping with the key kind (got {stored!r})")
    if stored and "kind" not in stored:
        raise UserError(f"must have the key kind (got only {', '.join(map(str, stored))})")
    name = stored.get("kind", "mse")
    if not isinstance(name, str):
        raise UserError(f"kind must be the name of a value head (got {name!r})")
    if name not in HEADS.names():
        raise UserError(
            f"value head {name!r} is not registered; import the module that registers it, or list "
            f"it under plugins (known: {', '.join(HEADS.names())})"
        )
    kind = HEADS.load(name)
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in stored.items()
        if key in fields
    }
    return kind(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MSE(ValueHead):
    """One number, trained with the squared error (the paper's head)."""

    def value(self, outputs: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return outputs

    def losses(
        self, outputs: Float[Array, "*batch"], targets: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        return jnp.square(outputs - targets)

    def initial_bias(self, mean: float) -> np.ndarray:
        return np.full((), mean)

    def linear(self, params: Params) -> tuple[Float[Array, " d_model"], Float[Array, ""]]:
        return params["kernel"], params["bias"]


PAPER_HEAD = MSE()
"""The head of the AgentRM paper, which is the default everywhere."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HLGauss(ValueHead):
    """A distribution over bins, trained with cross-entropy (Farebrother et al. 2024).

    "Stop Regressing", section 3: the target is smoothed by a normal distribution, and the value is
    the mean of the predicted distribution.

    Attributes:
      bins: K, the number of bins.
      low: Lower edge of the first bin. The default is below 0, the smallest value: the mean of a
        distribution that is cut off at an edge would be pulled inwards.
      high: Upper edge of the last bin.
      sigma: Standard deviation of the smoothing, in bins.
    """

    bins: int = 51
    low: float = -0.1
    high: float = 1.1
    sigma: float = 0.75

    def __post_init__(self) -> None:
        check_fields(self, bins="[2, 65536]", sigma="(0, inf)")
        if self.low >= self.high:
            raise UserError(field="low", value=self.low, expected=f"below high, {self.high}")

    @property
    def outputs(self) -> int:
        return self.bins

    @property
    def not_linear(self) -> str:
        return "its value is the mean of a softmax, which is not linear"

    def value(self, outputs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
        centres = jnp.asarray(self._centres(), jnp.float32)
        return jnp.sum(jax.nn.softmax(outputs) * centres, axis=-1)

    def losses(
        self, outputs: Float[Array, "*batch K"], targets: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        return -jnp.sum(self.histogram(targets) * jax.nn.log_softmax(outputs), axis=-1)

    def histogram(self, targets: Float[Array, "*batch"]) -> Float[Array, "*batch K"]:
        """Returns targets as distributions over the bins: normal ones, cut off at the outer edges.

        A target outside of the bins counts as at the nearest edge.

        Args:
          targets: [...] float32.
        """
        edges = np.linspace(self.low, self.high, self.bins + 1, dtype=np.float32)
        spread = self.sigma * (self.high - self.low) / self.bins
        centre = jnp.clip(targets, self.low, self.high)[..., None]
        below = jax.scipy.special.ndtr((edges - centre) / spread)
        return jnp.diff(below) / (below[..., -1:] - below[..., :1])

    def initial_bias(self, mean: float) -> np.ndarray:
        """Returns logits [K] whose distribution has the mean: of all these, the flattest ones.

        They are a linear function of the bin's number; its slope is found by bisection.

        Args:
          mean: Weighted mean of the labels.
        """
        centres = self._centres()
        bins = np.arange(self.bins) - (self.bins - 1) / 2
        least, most = -50.0, 50.0  # logits per bin: all mass in the first bin, all in the last
        for _ in range(60):
            slope = (least + most) / 2
            weights = np.exp(slope * bins - np.max(slope * bins))
            if weights @ centres < mean * weights.sum():
                least = slope
            else:
                most = slope
        return (least + most) / 2 * bins

    def check_targets(self, targets: np.ndarray) -> None:
        least, most = float(targets.min()), float(targets.max())
        if not (self.low <= least and most <= self.high):
            raise UserError(
                f"and high must be around all labels, which lie in [{least:.3g}, {most:.3g}] (got "
                f"[{self.low}, {self.high}])",
                field="low",
            )

    def _centres(self) -> np.ndarray:
        edges = np.linspace(self.low, self.high, self.bins + 1)
        return (edges[:-1] + edges[1:]) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantile(ValueHead):
    """Quantiles of the target, trained with the Huber pinball loss (Dabney et al. 2018, QR-DQN).

    The value is their mean.

    Attributes:
      bins: K, the number of quantiles.
      huber: Largest error, in units of the value, at which the pinball loss is quadratic.
    """

    bins: int = 51
    huber: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, bins="[2, 65536]", huber="(0, inf)")

    @property
    def outputs(self) -> int:
        return self.bins

    def value(self, outputs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
        return jnp.mean(outputs, axis=-1)

    def losses(
        self, outputs: Float[Array, "*batch K"], targets: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        levels = (jnp.arange(self.bins) + 0.5) / self.bins
        error = targets[..., None] - outputs
        size = jnp.abs(error)
        huber = jnp.where(
            size < self.huber, 0.5 * jnp.square(error) / self.huber, size - 0.5 * self.huber
        )
        return jnp.mean(jnp.where(error < 0, 1 - levels, levels) * huber, axis=-1)

    def initial_bias(self, mean: float) -> np.ndarray:
        return np.full(self.bins, mean)

    def linear(self, params: Params) -> tuple[Float[Array, " d_model"], Float[Array, ""]] | None:
        return params["kernel"].mean(axis=0), params["bias"].mean()

    def at_quantile(self, level: float) -> ValueHead:
        """Returns a head whose value is one quantile, between two outputs a linear interpolation.

        Args:
          level: The quantile, in (0, 1). Those outside of the outputs' own levels, which are
            (k + 1/2) / K, count as the nearest one.
        """
        return _OneQuantile(bins=self.bins, huber=self.huber, level=level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OneQuantile(Quantile):
    """A quantile head that is read at one quantile instead of the mean."""

    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            expected = "above 0 and below 1"
            raise UserError(field="quantile", value=self.level, expected=expected)

    def value(self, outputs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
        place = min(max(self.level * self.bins - 0.5, 0.0), self.bins - 1.0)
        below = min(int(place), self.bins - 2)
        ordered = jnp.sort(outputs, axis=-1)  # nothing in the loss keeps quantiles from crossing
        low, high = ordered[..., below], ordered[..., below + 1]
        return low + (place - below) * (high - low)

    def linear(self, params: Params) -> None:
        del params

    @property
    def not_linear(self) -> str:
        return "it is read at a quantile, and quantiles may cross"
