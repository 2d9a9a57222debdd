"""An environment whose workers misbehave, and a policy's server with faults, both on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pathlib
import random
import signal
import sys
import time
from typing import Any, ClassVar

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.testing.guess import Guess

FAULT, FOLDER, EVERY = "AGENTRM_FAULT", "AGENTRM_FAULT_FOLDER", "AGENTRM_FAULT_EVERY"


def _flood(descriptor: int) -> None:
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        os.write(descriptor, b"x" * (1 << 20))


def _raise() -> None:
    raise RuntimeError("the environment is broken")


FAULTS = {
    "raises": _raise,
    "hangs": lambda: time.sleep(1000),
    "exits": lambda: os._exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "eats memory": lambda: bytearray(1 << 40),
    "prints garbage": lambda: os.write(int(sys.argv[1]), b"\xff\x00 garbage\n"),
    "floods its pipe": lambda: (_flood(1), _flood(2)),
}


class Faulty(Guess):
    """`Guess` in which some actions are answered with a fault.

    A fault is put at every k-th action by a hash of the game. With a folder each happens once: a
    file remembers it. Without one it happens each time.
    """

    _history: str = ""

    def reset(self, task: Task) -> str:
        self._history = task.task_id
        return super().reset(task)

    def step(self, action: str) -> Transition:
        self._history = hashlib.sha256(f"{self._history} {action}".encode()).hexdigest()
        every, folder = int(os.environ.get(EVERY, "0")), os.environ.get(FOLDER, "")
        if every and int(self._history[:8], 16) % every == 0:
            mark = pathlib.Path(folder) / self._history
            if not folder or not mark.exists():
                if folder:
                    mark.touch()
                FAULTS[os.environ[FAULT]]()
        return super().step(action)


class PolicyHandler(http.server.BaseHTTPRequestHandler):
    """Plays mazes through OpenAI's API; every third answer has the fault of the server.

    What is said depends on the conversation, the seed and the number of the choice alone.
    """

    protocol_version = "HTTP/1.1"
    fault: ClassVar[str] = ""
    asked: ClassVar[int] = 0
    counted: ClassVar[pathlib.Path | None] = None

    def log_message(self, *arguments: object) -> None:
        """Writes nothing."""

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self._send(200 if known else 404, {"data": [{"id": "walker", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        kind.asked += 1
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": {"message": "no such endpoint"}})
        time.sleep(0.01)
        if self.fault and kind.asked > 30 and kind.asked % 3 == 0:
            if self.counted is not None:
                with self.counted.open("ab") as file:
                    file.write(b"x")
            if self.fault == "500":
                return self._send(500, {"error": {"message": "broken"}})
            if self.fault == "nonsense":
                return self._send(200, random.Random(kind.asked).choice((["x"], {"choices": 5}, 7)))
            time.sleep(0.3)
        return self._send(200, _completion(body))

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    asked = json.dumps(body["messages"])
    choices = []
    for number in range(body.get("n", 1)):
        names = (asked, body.get("seed"), number)
        draw = random.Random(repr(names if body.get("temperature", 1.0) else asked))
        way = draw.choice(("up", "down", "left", "right"))
        text = f"Thought: on, {draw.randrange(10**6)}.\nAction: move {way}"
        message = {"role": "assistant", "content": text}
        choices.append({"index": number, "message": message, "finish_reason": "stop"})
    words = len(asked.split())
    usage = {"prompt_tokens": words, "completion_tokens": 5 * len(choices)}
    return {"model": "walker", "choices": choices, "usage": usage}


def serve_policy(port: int, fault: str, counted: pathlib.Path) -> int:
    """Serves until it is killed; a file gets a byte for each answer with the fault."""
    handler = type("Handler", (PolicyHandler,), {"fault": fault, "counted": counted})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.serve_forever()
    return 0
