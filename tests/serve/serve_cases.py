"""A policy's server of the standard library, `agentrm serve` as a process, and conversations."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import agentrm_jax as arm
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.testing import GUESS_PROMPT, Guess, guess_policy, guess_tasks


def games(count: int = 6) -> list[Trajectory]:
    """Returns games of `Guess`, with one to eight guesses each."""
    with arm.EnvPool({"guess": Guess}) as envs:
        return [r.trajectory for r in arm.rollouts(guess_policy, envs, guess_tasks(count))]


def asked(trajectory: Trajectory) -> list[dict[str, str]]:
    """Returns a game as messages, the prompt of the training first."""
    return trajectory.messages(GUESS_PROMPT)


class PolicyHandler(http.server.BaseHTTPRequestHandler):
    """Answers chat completions with guesses: with all n choices, unless the server's mode differs.

    `single` ignores n, `refuses_n` answers it with 422, `tools` calls a tool, a number is an HTTP
    status, and any other text is the body.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "guesser"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.bodies.append({**body, "key": self.headers.get("Authorization")})
        time.sleep(server.delay)
        n, mode = body.get("n", 1), server.mode
        if mode.isdigit():
            self._send(int(mode), {"error": {"message": f"mode {mode}"}})
        elif mode == "refuses_n" and n > 1:
            self._send(422, {"error": {"message": "n must be 1"}})
        elif mode in ("", "single", "refuses_n", "tools"):
            count = 1 if mode == "single" else n
            texts = guess_policy(_game(body["messages"]), count, body.get("seed", 0))
            choices = [_choice(i, text, mode == "tools") for i, text in enumerate(texts)]
            usage = {"prompt_tokens": 10, "completion_tokens": 7 * count}
            self._send(200, {"choices": choices, "usage": usage})
        else:
            self._write(200, mode.encode())

    def _send(self, status: int, body: Any) -> None:
        self._write(status, json.dumps(body).encode())

    def _write(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _game(messages: list[dict[str, Any]]) -> Trajectory:
    """A game without any guess, of the range that the messages name, or of 1 to 9."""
    task = Task(environment="guess", task_id="guess", max_steps=8)
    texts = " ".join(str(message.get("content")) for message in messages)
    found = re.search(r"a number from 1 to \d+", texts)
    first = found[0] if found else "Guess a number from 1 to 9"
    return Trajectory(task=task, first_observation=f"{first}.")


def _choice(index: int, text: str, as_tool: bool) -> dict[str, Any]:
    if not as_tool:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "finish_reason": "stop"}
    function = {"name": "guess", "arguments": json.dumps({"number": text[-1]})}
    call = {"id": f"call{index}", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"index": index, "message": message, "finish_reason": "tool_calls"}


@contextlib.contextmanager
def policy_server(mode: str = "") -> Iterator[Any]:
    """Starts a policy's server; it has `url`, `bodies`, and `mode` and `delay` that may be set."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PolicyHandler)
    server.mode, server.delay, server.bodies = mode, 0.0, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Served:
    """`agentrm serve` in a process of its own.

    Attributes:
      url: Its address.
      process: The process.
    """

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        command = (sys.executable, "-m", "agentrm_jax.cli.main", "serve", "--port", "0")
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "http://" not in line:
            self.process.wait(60)
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        self.url = line.split()[-1]

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> tuple[int, str]:
        """Waits for the end; returns the exit status and what was written to stderr."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@contextlib.contextmanager
def served(*arguments: object, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """Starts `agentrm serve` on a free port; ends it if it still runs."""
    server = Served(*arguments, environment=environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


ROOT = pathlib.Path(__file__).resolve().parents[2]
