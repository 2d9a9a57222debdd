"""The section `leases` of a configuration."""

from __future__ import annotations

import dataclasses

from agentrm_jax.core.fields import check_fields
from agentrm_jax.runtime.buckets import check_bucket_url


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeasesConfig:
    """Leases, by which any number of processes work on one run. They decide who works on what.

    Attributes:
      enabled: Whether other processes may join this run, die and come back. Give the same command
        on each host, with the same --output on a disk that all see, or with `store`.
      expire_seconds: Seconds of silence after which a process counts as dead, and others take its
        tasks.
      repeat: Whether a process that finds nothing free also runs the oldest tasks of others, after
        `expire_seconds` of waiting; the first result counts. Servers that are paid by the token
        cost more then.
      store: The URL of a folder in a bucket, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX, one for each
        run. It holds leases, finished tasks and finished stages, so that hosts need no disk in
        common: each has an --output of its own. None keeps all of it in --output.
    """

    enabled: bool = False
    expire_seconds: float = 60.0
    repeat: bool = True
    store: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, expire_seconds="[0.5, 1e6]")
        if self.store is not None:
            check_bucket_url(self.store)
