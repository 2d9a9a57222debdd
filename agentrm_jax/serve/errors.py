"""The refusal of a request, as an HTTP status and one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class RequestRefused(Exception):
    """A request that gets no answer: its status, and one line that says what to send instead.

    Args:
      message: The line.
      status: The HTTP status; 400 is a mistake in the request.
      headers: Further headers of the answer.
    """

    def __init__(
        self, message: str, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.headers = message, status, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Returns the error as OpenAI's servers write it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request")
        return {"error": {"message": self.message, "type": kind, "code": self.status}}


class PolicyRefused(Exception):
    """An error that the policy's server answered with; it is passed on as it is.

    Args:
      status: Its HTTP status.
      content: Its body.
      headers: Its `content-type` and `retry-after`, if any.
    """

    def __init__(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"the policy's server answered {status}")
        self.status, self.content, self.headers = status, content, dict(headers)
