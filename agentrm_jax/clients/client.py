"""The one HTTP client for served models.

It repeats a request after a broken connection, a time-out, HTTP 408, 425, 429 and 5xx except 501,
and after nothing else. If the server answers nothing at all, every request waits until it is back.
No redirect is followed.
"""

from __future__ import annotations

import email.utils
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentrm_jax.clients.config import ServerConfig, server_url
from agentrm_jax.clients.keys import masked, read_key
from agentrm_jax.core.addresses import is_loopback
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.core.text import admit_text, first_line, printable

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 64 << 20
"""Longest answer that is read."""

_FIRST_DELAY, _LONGEST_DELAY = 0.25, 30.0
_TELLING_ATTEMPT = 3
"""The attempt of a request at which a line for the user says that it waits."""

_NO_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""Mistakes in the address or the certificate, for which waiting does not help."""

_MOST_REFUSED = 16
"""Requests that a server may refuse before it has answered any."""


class RequestFailed(Exception):
    """One request has no usable answer: it was refused, or its answer is malformed.

    Args:
      reason: One line.
      status: The HTTP status, 0 if that is not the reason.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(printable(reason))
        self.status = status


class Cancelled(Exception):
    """The request was cancelled."""


class _NoAnswer(Exception):
    """The server did not answer, or is too busy: the request is repeated.

    Args:
      reason: One line.
      delay: Seconds that the server asks to wait.
      is_busy: Whether the server answered that it is too busy, which says nothing of the request.
    """

    def __init__(self, reason: str, delay: float = 0.0, *, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.delay, self.is_busy = delay, is_busy


class Client:
    """Sends requests to one server, from several threads at the same time.

    Args:
      url: Address of the server.
      config: Key, concurrency and time-outs.
      say: Prints one line for the user: the server is away, or back.

    Raises:
      UserError: httpx is not installed, `url` is no address, or the variable of the key is not set.
    """

    def __init__(
        self, url: str, config: ServerConfig, say: Callable[[str], None] | None = None
    ) -> None:
        self.url, self.config = server_url(url), config
        self._say = say or _print
        self._key = read_key(config.key_env, "key_env")
        self._httpx = _httpx()
        self._http = self._opened()
        self._lock = threading.Lock()
        self._last_answer = float("-inf")  # when a POST was answered last
        self._away_since: float | None = None  # of an outage that was printed
        self._refused = 0
        self._has_noted = False
        self._noted: set[str] = set()

    def note_failure(self, what: str, reason: object) -> None:
        """Tells the user of the first request without a usable answer; the others are counted.

        Args:
          what: What has failed, such as "a turn".
          reason: Why.
        """
        with self._lock:
            first, self._has_noted = not self._has_noted, True
        if first:
            self._say(f"{self.url}: {what} failed ({reason}); further ones are only counted")

    def note_once(self, line: str) -> None:
        """Tells the user of a property of the server, once.

        Args:
          line: What it does.
        """
        with self._lock:
            first = line not in self._noted
            self._noted.add(line)
        if first:
            self._say(f"{self.url}: {line}")

    def get(self, path: str) -> Any:
        """Returns the JSON value of a GET request; see `post`."""
        return self._answer("GET", path, None, threading.Event())

    def optional(self, path: str) -> Any:
        """Returns the JSON value of a GET request that is sent once; None if it is not answered.

        Args:
          path: A path that most servers do not have, and may answer with anything.
        """
        try:
            return self._parsed(self._sent("GET", path, None))
        except (_NoAnswer, RequestFailed, UserError):
            return None

    def post(self, path: str, body: Any, cancelled: threading.Event | None = None) -> Any:
        """Returns the JSON value that answers a request; waits while the server is away.

        Args:
          path: Path below the server's address, such as `/v1/completions`.
          body: A JSON value.
          cancelled: Ends waiting when it is set.

        Raises:
          RequestFailed: The server refused this request, answered something that is not JSON, or
            fails on it while it answers others.
          UserError: The server refuses the key, redirects, was away for too long, or refuses
            everything.
          Cancelled: `cancelled` is set.
        """
        return self._answer("POST", path, body, cancelled or threading.Event())

    def _answer(self, method: str, path: str, body: Any, cancelled: threading.Event) -> Any:
        first_failure, delay = None, _FIRST_DELAY
        for attempt in range(1, sys.maxsize):
            if cancelled.is_set():
                raise Cancelled
            try:
                data = self._sent(method, path, body)
            except _NoAnswer as error:
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                left = self._check_patience(error, attempt, first_failure, now)
                wait = max(error.delay, delay * random.uniform(0.5, 1.0))
                cancelled.wait(min(wait, left + 0.01))
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                self._note_answer(is_post=method == "POST")
                return self._parsed(data)
        raise AssertionError("unreachable")

    def _sent(self, method: str, path: str, body: Any) -> bytes:
        """Sends a request once; returns the bytes of a good answer."""
        httpx, began = self._httpx, time.monotonic()
        content = None if body is None else json_text(body).encode()
        data = bytearray()
        try:
            with self._http.stream(method, self.url + path, content=content) as response:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > MOST_BYTES:
                        raise RequestFailed(f"the answer is larger than {MOST_BYTES:,} bytes")
                    if time.monotonic() - began > self.config.request_seconds:
                        raise _NoAnswer(f"no answer within {self.config.request_seconds:g} s")
        except httpx.TimeoutException as error:
            is_connect = isinstance(error, httpx.ConnectTimeout)
            seconds = self.config.connect_seconds if is_connect else self.config.request_seconds
            what = "connection" if is_connect else "answer"
            raise _NoAnswer(f"no {what} within {seconds:g} s") from None
        except httpx.DecodingError as error:
            raise RequestFailed(f"the answer cannot be decoded ({first_line(error)})") from None
        except httpx.TransportError as error:
            if any(reason in str(error) for reason in _NO_TLS):
                raise UserError(f"{self.url}: {first_line(error)}") from None
            what = "no connection" if isinstance(error, httpx.ConnectError) else "it broke off"
            raise _NoAnswer(f"{what} ({first_line(error)})") from None
        answer = masked(bytes(data), self._key)
        self._check_status(response, answer)
        return answer

    def _check_status(self, response: httpx.Response, data: bytes) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        message = _message(data)
        reason = f"HTTP {status}" + (f": {message}" if message else "")
        if status in (408, 425, 429) or (status >= 500 and status != 501):
            delay = _retry_after(response.headers.get("retry-after", ""))
            raise _NoAnswer(reason, delay, is_busy=status in (429, 503))
        if 300 <= status < 400:
            raise UserError(
                f"{self.url}: answers with a redirect ({reason}); write its own address"
            )
        if status in (401, 403):
            named = self.config.key_env or "no variable is named"
            raise UserError(
                f"{self.url}: refuses the key ({reason}); key_env names the environment variable "
                f"that holds it ({named})"
            )
        with self._lock:
            self._refused += self._last_answer == float("-inf")
            if self._refused > _MOST_REFUSED:
                raise UserError(f"{self.url}: refuses every request; the last: {reason}")
        raise RequestFailed(reason, status)

    def _check_patience(
        self, error: _NoAnswer, attempt: int, first_failure: float, now: float
    ) -> float:
        """Prints that a request waits; gives up the request, or the server.

        Returns:
          The seconds for which the server is waited for still.
        """
        config = self.config
        with self._lock:
            answers_others = self._last_answer > first_failure
            if answers_others and attempt >= config.attempts and not error.is_busy:
                raise RequestFailed(f"failed {attempt} times: {error}")
            since = max(first_failure, self._last_answer)
            if now - since >= config.wait_seconds:
                raise UserError(
                    f"{self.url}: no answer for {now - since:.0f} s ({error}); everything so far "
                    "is kept: when the server runs, give the same command again to resume"
                )
            left = config.wait_seconds - (now - since)
            if attempt >= _TELLING_ATTEMPT and self._away_since is None and not answers_others:
                self._away_since = since
                self._say(f"{self.url}: {error}; waiting for the server, {left:.0f} s at most")
            return left

    def _note_answer(self, *, is_post: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if self._away_since is not None:
                self._say(f"{self.url}: answers again after {now - self._away_since:.0f} s")
                self._away_since = None
            if is_post:
                self._last_answer = now

    def _parsed(self, data: bytes) -> Any:
        try:
            return parse_json(data, max_bytes=MOST_BYTES)
        except ValueError as error:
            raise RequestFailed(f"the answer is not JSON ({first_line(error)})") from None

    def _opened(self) -> httpx.Client:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        config, httpx = self.config, self._httpx
        return httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(
                config.request_seconds, connect=config.connect_seconds, pool=None
            ),
            limits=httpx.Limits(max_connections=config.concurrency),
            follow_redirects=False,
            trust_env=not is_loopback(self.url),
        )


def _print(line: str) -> None:
    print(f"agentrm: {printable(line)}", file=sys.stderr, flush=True)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise UserError("served models need httpx; pip install 'agentrm-jax[servers]'") from None
    return httpx


def _message(data: bytes) -> str:
    """The message in the body of an error; empty if there is none."""
    text = admit_text(data[:10_000].decode("utf-8", "replace"))
    try:
        value = parse_json(data[:10_000])
    except ValueError:
        value = text
    for _ in range(4):
        if not isinstance(value, dict):
            break
        value = next((value[k] for k in ("error", "message", "detail") if k in value), text)
    return printable(" ".join(str(value).split()))[:200]


def _retry_after(text: str) -> float:
    """The seconds of a `Retry-After`, at most a minute."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), 60.0) if seconds == seconds else 0.0
