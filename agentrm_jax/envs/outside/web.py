"""JSON over HTTP to an environment server: bounded in size and time, without redirects."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.parse
from typing import Any

from agentrm_jax.core.json_values import json_text, parse_json
from agentrm_jax.core.text import admit_text, first_line, printable

MOST_BYTES = 8_000_000
"""Longest answer that is read: more than any observation that a context can hold."""


class AnswerError(RuntimeError):
    """A server did not answer a request, or not properly; the message is one line."""


def ask(method: str, url: str, body: Any = None, *, seconds: float) -> Any:
    """Returns the JSON value that answers a request. The request is sent once.

    Args:
      method: `GET` or `POST`.
      url: The address, path and query included.
      body: A JSON value, sent with `POST`.
      seconds: Seconds after which an answer that is not complete is given up.

    Raises:
      AnswerError: No answer in time, a broken connection, a status other than 200, an answer that
        is cut off, too large or not JSON.
    """
    parts = urllib.parse.urlsplit(url)
    where = f"{method} {printable(url)}"
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    content = None if body is None else json_text(body).encode()
    deadline = time.monotonic() + seconds
    connection = _connection(parts, seconds)
    try:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        connection.request(method, target, body=content, headers=headers)
        response = connection.getresponse()
        data = _read(response, deadline, seconds, where)
    except TimeoutError:
        raise AnswerError(f"{where}: no answer within {seconds:g} s") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AnswerError(f"{where}: the connection failed ({first_line(error)})") from None
    finally:
        connection.close()
    if response.status != 200:
        said = admit_text(data[:2000].decode("utf-8", "replace"))
        raise AnswerError(f"{where}: status {response.status}: {printable(said[:200])}")
    try:
        return parse_json(data)
    except ValueError as error:
        raise AnswerError(f"{where}: the answer is not JSON ({first_line(error)})") from None


def _connection(parts: urllib.parse.SplitResult, seconds: float) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, port, timeout=seconds)


def _read(response: http.client.HTTPResponse, deadline: float, seconds: float, where: str) -> bytes:
    """Returns the body; each part of it may come late, the whole of it may not."""
    announced, data = response.length, bytearray()
    while part := response.read1(65536):
        data += part
        if len(data) > MOST_BYTES:
            raise AnswerError(f"{where}: the answer is larger than {MOST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{seconds:g} s")
    if announced is not None and len(data) < announced:
        raise AnswerError(f"{where}: the answer ends after {len(data)} of {announced} bytes")
    return bytes(data)
