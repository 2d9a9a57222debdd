"""The parameters of a model that training updates: all, or adapters and the value head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from agentrm_jax.model import lora
from agentrm_jax.model.lora import LoraConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.train.step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A model as training uses it.

    Attributes:
      params: The parameters that updates change.
      loss_fn: The loss, a function of (params, batch); of (params, batch, frozen) if there are
        frozen parameters.
      frozen: The parameters that the loss reads and no update changes; None if there are none.
      lora: The adapters; rank 0 if all parameters are updated.
    """

    params: Any
    loss_fn: LossFn
    frozen: Any = None
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def merged(self, trained: Any) -> Params:
        """Returns the whole model of trained parameters, without adapters.

        Args:
          trained: Parameters as `params`, after training.
        """
        return trained if self.frozen is None else lora.merged(trained, self.frozen, self.lora)


def make_trainable(
    model: Params, loss_fn: LossFn, config: LoraConfig, make_adapters: Callable[[], Params]
) -> Trainable:
    """Returns a model with its loss, with low-rank adapters if the configuration has a rank.

    Args:
      model: Parameters of a policy or a reward model, or a description of them
        (`model.parameters.describe`).
      loss_fn: The loss of the whole model.
      config: The adapters.
      make_adapters: Makes them, or their description; called only if the rank is not 0.
    """
    if not config.rank:
        return Trainable(params=model, loss_fn=loss_fn)
    params, frozen = lora.parts(model, make_adapters())
    return Trainable(
        params=params, loss_fn=lora.adapted(loss_fn, config), frozen=frozen, lora=config
    )
