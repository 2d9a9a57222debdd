"""Parts that all lists of tasks share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task


def check_kinds(environment: str, known: Sequence[str], kinds: Sequence[str]) -> None:
    """Raises a `UserError` that names the first unknown kind."""
    for kind in kinds:
        if kind not in known:
            raise UserError(f"{environment} has no kind {kind!r}: choose from {', '.join(known)}")


def in_turn(streams: Sequence[Iterable[Task]]) -> Iterator[Task]:
    """One task of each stream, then the next of each, until all streams end."""
    rounds = itertools.zip_longest(*streams)
    return (task for tasks in rounds for task in tasks if task is not None)
