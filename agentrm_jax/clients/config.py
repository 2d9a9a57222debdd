"""The keys of a configuration that served policies, judges and reward models share."""

from __future__ import annotations

import dataclasses

from agentrm_jax.clients.keys import check_variable
from agentrm_jax.core.addresses import server_address
from agentrm_jax.core.fields import check_fields

SPEED_KEYS = (
    "url",
    "key_env",
    "concurrency",
    "connect_seconds",
    "request_seconds",
    "attempts",
    "wait_seconds",
)
"""Keys that change the address and the speed of requests, and no results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Name, key, concurrency and time-outs of a served model.

    Attributes:
      model: Name of the model at the server; without one the server must list exactly one model.
      key_env: Name of the environment variable that holds the API key. The key itself is sent to
        the server and written nowhere. Without a name no key is sent.
      concurrency: Requests that are open at the same time.
      connect_seconds: How long a connection may take.
      request_seconds: How long one answer may take, from the request to its last byte.
      attempts: How often a request is sent that the server fails to answer while it answers others.
      wait_seconds: How long the run waits for a server that answers nothing. Then it stops;
        everything so far is kept, and the same command resumes the run.
    """

    model: str = ""
    key_env: str = ""
    concurrency: int = 16
    connect_seconds: float = 10.0
    request_seconds: float = 300.0
    attempts: int = 5
    wait_seconds: float = 900.0

    def __post_init__(self) -> None:
        check_variable(self.key_env, "key_env")
        check_fields(
            self,
            concurrency="[1, 10000]",
            connect_seconds="(0, 3600]",
            request_seconds="(0, 86400]",
            attempts="[1, 1000]",
            wait_seconds="[0, 1e7]",
        )


def server_url(url: str, field: str = "url") -> str:
    """Returns the address of a server of OpenAI's API, without `/v1` and slashes at its end.

    Args:
      url: `http://HOST:PORT` or `https://HOST/PATH`, with `/v1` or without.
      field: The key that holds it, for errors.

    Raises:
      UserError: See `server_address`.
    """
    return server_address(url, field, without="/v1")
