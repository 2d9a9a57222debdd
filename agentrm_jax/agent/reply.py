"""The reply format of agents; see `core.reply`."""

from __future__ import annotations

from agentrm_jax.core.reply import parse_action

__all__ = ["parse_action"]
