"""Renders chat templates in a process of its own, with limits of time and memory.

A template is a program that somebody else wrote: nested loops or doubled texts would otherwise hold
up or fill the process that loads a model. Here it runs in the environment in which transformers
runs it, on a fixed day and without random numbers, so that its text never changes.

Run as a program, this module reads a request (JSON) from its input and writes the answer; it
imports nothing but jinja2.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 10
MEMORY = 1 << 30
DAY = "2024-07-26"
"""The day on which every template is rendered."""

_MOST_CHARACTERS = 1_000_000
_TOO_LARGE = f"takes more memory than {MEMORY >> 20} MiB"

Chat = Sequence[Mapping[str, str]]


class TemplateError(Exception):
    """A template that cannot be rendered within the limits; the message is one line."""


def render_template(
    template: str,
    variables: Mapping[str, Any],
    chats: Sequence[tuple[Chat, bool]],
    seconds: int = SECONDS,
) -> tuple[list[str | TemplateError], bool]:
    """Renders chats with a template.

    Args:
      variables: Further names that the template may use, such as `bos_token`.
      chats: Turns, and whether the beginning of a reply follows them.
      seconds: How long a processor may work on all of them.

    Returns:
      The text of each chat, or the error that the template raised; and whether it asked for the
      date.

    Raises:
      TemplateError: It is not a template, or needs more time or memory than it may.
    """
    request = {
        "template": template,
        "variables": dict(variables),
        "chats": list(chats),
        "seconds": seconds,
    }
    too_long = f"ran longer than {seconds} s"
    paths = [path for path in sys.path if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TZ": "UTC"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(pathlib.Path(__file__).resolve())],
            input=json.dumps(request).encode(), capture_output=True, env=environment,
            timeout=30 + 3 * seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TemplateError(too_long) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise TemplateError(too_long if _out_of_time(done) else _TOO_LARGE) from None
    if "error" in answer:
        raise TemplateError(answer["error"])
    texts = [t["text"] if "text" in t else TemplateError(t["error"]) for t in answer["texts"]]
    return texts, answer["asked_for_date"]


def _out_of_time(done: subprocess.CompletedProcess[bytes]) -> bool:
    import signal

    return done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def _main() -> None:
    """The program: one request, one answer."""
    request = json.loads(sys.stdin.buffer.read())
    _set_limits(request["seconds"])
    try:
        answer = _answer(request)
    except MemoryError:
        answer = {"error": _TOO_LARGE}
    except RecursionError:
        answer = {"error": "is nested too deep"}
    except Exception as error:  # jinja2 raises many kinds
        answer = {"error": f"cannot be read ({_line(error)})"}
    sys.stdout.write(json.dumps(answer))


def _set_limits(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system: the deadline of the parent remains
        return
    for kind, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # a stricter limit holds already, or the system has none
            continue


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    asked: list[str] = []
    template = _environment(asked).from_string(request["template"])
    texts: list[dict[str, str]] = []
    for messages, ask in request["chats"]:
        try:
            text = template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=ask,
                **request["variables"],
            )  # fmt: skip
        except (MemoryError, RecursionError):
            raise
        except Exception as error:  # a template may raise anything
            texts.append({"error": _line(error)})
            continue
        if len(text) > _MOST_CHARACTERS:
            return {"error": f"gives more than {_MOST_CHARACTERS:,} characters for a short chat"}
        if re.search(r" at 0x[0-9a-f]+>", text):
            return {"error": "writes the address of an object, which differs from run to run"}
        texts.append({"text": text.encode(errors="replace").decode()})
    return {"texts": texts, "asked_for_date": bool(asked)}


def _environment(asked: list[str]) -> Any:
    """The environment that transformers gives a chat template; `asked` notes uses of the date."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    def fails(message: str) -> Any:
        raise jinja2.TemplateError(message)

    def day(format: str) -> str:
        asked.append(format)
        return datetime.datetime.fromisoformat(DAY).strftime(format)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
            sort_keys=sort_keys,
        )  # fmt: skip

    def random(*_: Any, **__: Any) -> Any:
        return fails("it uses random numbers")

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks replies and writes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_whole")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _whole(self, caller: Any) -> str:
            return caller()

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters.update(tojson=to_json, random=random)
    environment.globals.update(raise_exception=fails, strftime_now=day, lipsum=random)
    return environment


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    text = lines[0] if lines and lines[0].strip() else type(error).__name__
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:200]


if __name__ == "__main__":
    _main()
