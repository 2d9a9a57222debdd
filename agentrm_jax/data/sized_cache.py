"""A cache of values that are made from texts: bounded in size, not only in number."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class SizedCache(Generic[V]):
    """Keeps the values of a function that were used last; may be called from several threads.

    A text from outside may have a million characters, so that a number of entries bounds no memory.
    A process that renders new texts for hours fills the cache to its bound.

    Args:
      make: The function. Its arguments can be hashed.
      most: The largest sum of the lengths of all texts and tuples that are kept as arguments; an
        entry counts 64 more.
    """

    def __init__(self, make: Callable[..., V], most: int = 1 << 22) -> None:
        self._make, self._most, self._size = make, most, 0
        self._values: collections.OrderedDict[tuple[Hashable, ...], V] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *key: Hashable) -> V:
        """Returns the value of the function for these arguments."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = self._make(*key)
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._size += _size(key)
            while self._size > self._most:
                self._size -= _size(self._values.popitem(last=False)[0])
        return value

    def clear(self) -> None:
        """Forgets all values."""
        with self._lock:
            self._values.clear()
            self._size = 0

    def __len__(self) -> int:
        return len(self._values)


def _size(key: tuple[Any, ...]) -> int:
    return 64 + sum(len(part) for part in key if isinstance(part, str | tuple))
