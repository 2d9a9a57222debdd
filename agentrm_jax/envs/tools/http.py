"""Web services with a record of their answers, so that tasks stay the same.

An answer lies in `tool/recorded/<service>/` of the data directory, under a name made of endpoint
and parameters. In the mode `replay` (the default) nothing else is ever asked, and a request that
was not recorded is an error; in the mode `record` the service is asked once and its answer kept.
The environment variable `AGENTRM_TOOL_HTTP` names the mode. Keys are sent in headers and never
recorded.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.records import canonical_form
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.envs.data_directory import data_directory

VARIABLE = "AGENTRM_TOOL_HTTP"
_MODES = ("replay", "record")
_SECONDS = 30
_MOST_BYTES = 50_000_000


class NotRecordedError(RuntimeError):
    """A request of which there is no recorded answer. Nothing is made up for it."""


class ServiceError(RuntimeError):
    """A service that could not be asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a service."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        return self.status == 200

    def json(self) -> Any:
        return parse_json(self.text)


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A web service.

    Attributes:
      name: Of the folder with its answers.
      headers: Sent with a request, not recorded.
    """

    name: str
    headers: tuple[tuple[str, str], ...] = ()

    def get(self, endpoint: str, parameters: Mapping[str, Any]) -> Reply:
        """The answer to a GET request; parameters that are None are left out.

        Raises:
          NotRecordedError: In the mode `replay`, where it was not recorded.
          ServiceError: In the mode `record`, where the service does not answer, or is too busy.
          UserError: The mode is unknown, or the recorded file is broken.
        """
        given = {key: str(value) for key, value in parameters.items() if value is not None}
        path = self.folder / f"{canonical_form([endpoint, given])}.json"
        if path.is_file():
            return _read(path, endpoint, given)
        if mode() == "replay":
            asked = f"{endpoint} with {json.dumps(given, sort_keys=True)}"
            raise NotRecordedError(
                f"{self.name}: {asked} was not recorded ({path}); {VARIABLE}=record asks for it"
            )
        reply = _ask(endpoint, given, dict(self.headers))
        _write(
            path,
            {
                "endpoint": endpoint,
                "parameters": given,
                **dataclasses.asdict(reply),
                "sha256": canonical_form(reply.text),
            },
        )
        return reply

    @property
    def folder(self) -> Path:
        return data_directory() / "tool" / "recorded" / self.name

    def missing(self) -> str | None:
        """Why the service can answer nothing, in one line."""
        if mode() == "record" or next(iter(self.folder.glob("*.json")), None) is not None:
            return None
        return (
            f"{self.folder}: no recorded answers; with a connection, {VARIABLE}=record asks the "
            f"service and keeps its answers there"
        )


def mode() -> str:
    """`replay` or `record`.

    Raises:
      UserError: It is something else.
    """
    named = os.environ.get(VARIABLE) or _MODES[0]
    if named not in _MODES:
        raise UserError(f"{VARIABLE}: must be {' or '.join(_MODES)}, not {named!r}")
    return named


def _read(path: Path, endpoint: str, given: Mapping[str, str]) -> Reply:
    try:
        kept = parse_json(path.read_bytes())
        same = kept["endpoint"] == endpoint and kept["parameters"] == given
        reply = Reply(status=kept["status"], text=kept["text"])
        if kept.get("sha256", canonical := canonical_form(reply.text)) != canonical:
            raise ValueError("damaged: its text is not the one that was kept")
        if not isinstance(reply.status, int) or not isinstance(reply.text, str):
            raise ValueError("status must be an integer, text a text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: not a recorded answer ({reason}); delete it") from None
    if not same:
        raise UserError(f"{path}: is the answer to another request; delete it")
    return reply


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes the file in one go: several processes may record the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False
    ) as part:
        json.dump(value, part, ensure_ascii=False, indent=1)
    Path(part.name).replace(path)


def _ask(endpoint: str, given: Mapping[str, str], headers: dict[str, str]) -> Reply:
    address = endpoint + (f"?{urllib.parse.urlencode(given)}" if given else "")
    request = urllib.request.Request(address, headers={"User-Agent": "agentrm-jax", **headers})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            reply = Reply(status=answer.status, text=_read_all(answer).decode("utf-8"))
    except urllib.error.HTTPError as error:
        with error:
            reply = Reply(status=error.code, text=_read_all(error).decode("utf-8", "replace"))
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ) as error:  # no connection, bad text
        raise ServiceError(f"{endpoint}: {first_line(error)}") from None
    if reply.status in (401, 403, 407, 429) or reply.status >= 500:
        raise ServiceError(f"{endpoint}: status {reply.status}: {printable(reply.text[:200])}")
    return reply


def _read_all(answer: Any) -> bytes:
    data = answer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ServiceError(f"an answer of more than {_MOST_BYTES:,} bytes")
    return data
