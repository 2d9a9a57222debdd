"""The interface of environment families that take options of a configuration. No JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from agentrm_jax.core.protocols import EnvironmentFamily


@runtime_checkable
class TakesOptions(Protocol):
    """An environment family that a configuration completes, such as a server's address. Optional.

    Its name may be followed by that of a form, `NAME@FORM`, so that one run can use several.
    """

    def form(self, name: str) -> EnvironmentFamily:
        """Returns the family of a form, whose name is `NAME@FORM`.

        Raises:
          UserError: There is no such form.
        """
        ...

    def configured(self, options: Mapping[str, Any]) -> EnvironmentFamily:
        """Returns the family with options; they are part of the `spec` of the tasks that it lists.

        `create` and `prompt` work without options: other processes have only the tasks.

        Args:
          options: Plain JSON values from a configuration.

        Raises:
          UserError: An option is refused; its `field` is the key.
        """
        ...
