"""Counters of a server in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Values = Mapping[str, tuple[str, str, Callable[[], float]]]
"""By name: `counter` or `gauge`, what it counts, and a function that reads it."""


class Metrics:
    """Counts requests and their seconds, and shows further values.

    Args:
      values: Values that are read when they are shown.
    """

    def __init__(self, values: Values) -> None:
        self._values = dict(values)
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, float] = {}
        self._buckets: dict[str, list[int]] = {}

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Counts one request.

        Args:
          path: The path of its endpoint.
          status: The HTTP status of its answer.
          seconds: Seconds from its head to the end of its answer.
        """
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] = self._seconds.get(path, 0.0) + seconds
            buckets = self._buckets.setdefault(path, [0] * (len(_BUCKETS) + 1))
            fitting = (i for i, bound in enumerate(_BUCKETS) if seconds <= bound)
            buckets[next(fitting, len(_BUCKETS))] += 1

    def text(self) -> str:
        """Returns all values as `agentrm_NAME{labels} value` lines with their types."""
        with self._lock:
            return "\n".join([*self._request_lines(), *self._value_lines()]) + "\n"

    def _request_lines(self) -> Iterator[str]:
        yield "# HELP agentrm_requests_total Requests by endpoint and HTTP status."
        yield "# TYPE agentrm_requests_total counter"
        for (path, status), count in sorted(self._requests.items()):
            yield f'agentrm_requests_total{{path="{path}",status="{status}"}} {count}'
        name = "agentrm_request_seconds"
        yield f"# HELP {name} Seconds of requests by endpoint."
        yield f"# TYPE {name} histogram"
        for path, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), buckets, strict=True):
                total += count
                yield f'{name}_bucket{{path="{path}",le="{bound}"}} {total}'
            yield f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}'
            yield f'{name}_count{{path="{path}"}} {total}'

    def _value_lines(self) -> Iterator[str]:
        for name, (kind, text, read) in self._values.items():
            yield f"# HELP agentrm_{name} {text}"
            yield f"# TYPE agentrm_{name} {kind}"
            yield f"agentrm_{name} {read()!r}"  # all digits: rates are differences
