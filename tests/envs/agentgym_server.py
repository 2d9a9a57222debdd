"""A small server that answers as AgentGym's environment servers do, also with faults.

The game: a number grows by `add 1` or `add 2` until it is the target of the item, item % 5 + 3.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SLOW_SECONDS = 1.5


class Game:
    """One episode."""

    def __init__(self, item: int) -> None:
        self.target, self.number, self.done = item % 5 + 3, 0, False

    def step(self, action: str) -> tuple[str, float]:
        if action not in ("add 1", "add 2"):
            return f"Could not execute {action}", 0.0
        self.number += int(action[-1])
        self.done = self.number >= self.target
        return self.text, float(self.number == self.target)

    @property
    def text(self) -> str:
        return f"The number is {self.number}, the target is {self.target}."


class FakeAgentGym(ThreadingHTTPServer):
    """The server.

    Attributes:
      style: `id`: objects, as textcraft answers; `env_idx`: as webshop does; `score`: as sciworld.
      fault: What is wrong, empty for nothing.
      faulty_from: The fault is in all steps from this one on, counted over all episodes.
      faulty_steps: How many steps have the fault.
    """

    daemon_threads = True

    def __init__(self, style: str = "id") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.style, self.fault, self.faulty_from, self.faulty_steps = style, "", 0, 10**9
        self.games: dict[int, Game] = {}
        self.steps, self.closed, self.created = 0, [], 0
        self.requests: list[tuple[str, object]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: dict) -> object:
        key = "env_idx" if self.style == "env_idx" else "id"
        if path == "/create":
            number = self.created
            self.created += 1
            return number if key == "env_idx" else {"id": number}
        number = body[key]
        if path == "/close":
            self.closed.append(number)
            return True
        if path == "/reset":
            item = body["session_id" if key == "env_idx" else "data_idx"]
            self.games[number] = Game(item)
            if key == "env_idx":
                return ["not what is read", None]
            first = {"id": number, "observation": self.games[number].text, "done": False}
            if self.style == "score":
                first |= {"task_description": "Reach the target.", "reward": 0, "score": 0}
            return first
        game = self.games[number]
        if path == "/observation":
            return game.text
        text, reward = game.step(body["action"])
        if self.fault == "drift" and self.steps > self.faulty_from:
            text += f" This was request {self.steps}."
        if key == "env_idx":
            return {"state": text, "reward": reward, "done": game.done, "info": None}
        answer = {"observation": text, "reward": reward, "done": game.done}
        if self.style == "score":
            lost = game.done and not reward
            answer["score"] = -100 if lost else 100 * min(1, game.number / game.target)
        return answer


class _Handler(BaseHTTPRequestHandler):
    server: FakeAgentGym

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        given = {key: int(values[0]) for key, values in parse_qs(parts.query).items()}
        with self.server.lock:
            value = self.server.answer(parts.path, given)
        self._send(value)

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            fault = ""
            if self.path == "/step":
                server.steps += 1
                at = server.steps - server.faulty_from
                fault = server.fault if 0 < at <= server.faulty_steps else ""
            server.requests.append((self.path, body))
            value = server.answer(self.path, body)
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        self._send(value, fault)

    def _send(self, value: object, fault: str = "") -> None:
        data, status = json.dumps(_spoiled(value, fault)).encode(), 200
        if fault == "not_json":
            data = b"<html>"
        if fault == "huge":
            data = b'"' + b"x" * 9_000_000 + b'"'
        if fault == "500":
            data, status = b"Internal Server Error", 500
        if fault == "redirect":
            data, status = b"", 307
        with contextlib.suppress(OSError):
            self.send_response(status)
            if fault == "redirect":
                self.send_header("Location", "http://127.0.0.1:1/step")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault == "half" else data)


def _spoiled(value: object, fault: str) -> object:
    match fault:
        case "error":
            return {"error": "The task with environment 0 has finished."}
        case "other_id":
            return {**value, "id": 77}  # type: ignore[dict-item]
        case "no_reward":
            return {"observation": "text", "done": False}
        case "no_text":
            return {"observation": 3, "reward": 0, "done": False}
        case "no_done":
            return {"observation": "text", "reward": 0}
        case "large_reward":
            return {"observation": "text", "reward": 3, "done": True}
        case "list":
            return []
    return value


@contextlib.contextmanager
def running(style: str = "id") -> Iterator[FakeAgentGym]:
    """A server in a thread."""
    server = FakeAgentGym(style)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
