"""A server that speaks the API of OpenAI and of reward servers, with faults that tests ask for.

It is a real HTTP server in a thread. Its model plays `Guess` and walks through mazes, and answers
any other question with a sentence about animals.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import random
import re
import socket
import struct
import threading
import time
from typing import Any

ANIMALS = ("heron", "otter", "lynx", "newt", "stoat", "magpie", "adder", "hare")


@dataclasses.dataclass
class Behaviour:
    """What the server does; tests change it while it runs.

    Attributes:
      fault: The fault of the next answers: `500`, `429`, `slow`, `half`, `empty object`,
        `empty reply`, `fewer`, `other model`, `wrong ids`, `reset`, `not json`, `deep`, `redirect`,
        `no key`, `refused`.
      times: How many answers have it.
      features: What works, of `chat`, `completions`, `n`, `logprobs`, `ids in`, `ids out`, `seed`,
        `stop`, `top_k`, `usage`, `continue`; `greedy` ignores the temperature.
      key: The API key that is demanded; empty: none.
      poison: A text on which the server fails each time it reads it; empty: none.
      props_status: The status of every GET but that of the models.
      tokenizer: Reads and writes token ids.
    """

    poison: str = ""
    fault: str = ""
    times: int = 0
    features: frozenset[str] = frozenset(
        {"chat", "completions", "n", "logprobs", "seed", "stop", "top_k", "usage", "continue"}
    )
    model: str = "toy"
    key: str = ""
    context: int = 4096
    props_status: int = 404
    tokenizer: Any = None
    asked: list[tuple[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.open, self.most_open = 0, 0

    def fail(self, fault: str, times: int = 1) -> None:
        """Has the next answers to POST requests fail."""
        with self.lock:
            self.fault, self.times = fault, times

    def next_fault(self) -> str:
        with self.lock:
            if self.times == 0:
                return ""
            self.times -= 1
            return self.fault


class ModelServer:
    """The server as a context manager; its port stays the same when it is started again."""

    def __init__(self, **behaviour: Any) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.port = 0
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ModelServer:
        class Handler(_Handler):
            behaviour = self.behaviour

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Connections that tests break are no news."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def posts(self, path: str) -> list[Any]:
        """The bodies of the POST requests to a path."""
        return [body for asked, body in self.behaviour.asked if asked == path]


class _Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *arguments: object) -> None:
        """Writes nothing."""

    def do_GET(self) -> None:
        if not self._has_key():
            return
        if self.path == "/v1/models":
            entry = {"id": self.behaviour.model, "max_model_len": self.behaviour.context}
            self._send(200, {"object": "list", "data": [entry]})
        else:
            self._send(self.behaviour.props_status, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        behaviour = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with behaviour.lock:
            behaviour.asked.append((self.path, body))
            behaviour.open += 1
            behaviour.most_open = max(behaviour.most_open, behaviour.open)
        try:
            if self._has_key():
                poisoned = behaviour.poison and behaviour.poison in json.dumps(body)
                self._answer(body, "500" if poisoned else behaviour.next_fault())
        finally:
            with behaviour.lock:
                behaviour.open -= 1

    def _has_key(self) -> bool:
        key = self.behaviour.key
        if not key or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._send(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
        return False

    def _answer(self, body: Any, fault: str) -> None:
        if fault == "500":
            return self._send(
                500, {"error": {"message": f"broken; {self.headers['Authorization']}"}}
            )
        if fault == "429":
            return self._send(429, {"error": "busy"}, {"Retry-After": "0.05"})
        if fault == "slow":
            time.sleep(1.0)
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            return None
        if fault == "redirect":
            return self._send(307, {}, {"Location": "http://127.0.0.2:9/v1/completions"})
        if fault == "refused":
            return self._send(400, {"error": {"message": "the prompt is too long"}})
        if fault == "not json":
            return self._raw(200, b"<html>proxy</html>")
        if fault == "deep":
            return self._raw(200, b"[" * 5000 + b"]" * 5000)
        if fault == "empty object":
            return self._send(200, {})
        status, value = Model(self.behaviour, fault).answer(self.path, body)
        if fault == "half":
            data = json.dumps(value).encode()
            return self._raw(status, data[: len(data) // 2], length=len(data))
        return self._send(status, value)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(value).encode(), headers)

    def _raw(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


class Model:
    """The model behind the server, for one request."""

    def __init__(self, behaviour: Behaviour, fault: str) -> None:
        self._behaviour, self._fault = behaviour, fault

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path in ("/classify", "/pooling", "/get_reward"):
            return 200, self._rewards(path, body)
        kind = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}.get(path)
        if kind is None or not self._has(kind):
            return 404, {"error": {"message": "no such endpoint"}}
        refused = [
            key
            for key, feature in (("n", "n"), ("logprobs", "logprobs"), ("return_token_ids", "ids"))
            if key in body and not self._has(feature) and not self._has("ids out")
        ]
        if refused and "ignores" not in self._behaviour.features:
            return 422, {"detail": [{"msg": f"unexpected field {refused[0]}"}]}
        text, prompt_tokens = self._prompt(body, kind)
        if prompt_tokens is None:
            return 400, {"error": {"message": "prompt must be text"}}
        n = body.get("n", 1) if self._has("n") else 1
        choices = [self._choice(body, text, kind, i) for i in range(n)]
        if self._fault == "fewer":
            choices = choices[:-1] or []
        model = "another" if self._fault == "other model" else self._behaviour.model
        value: dict[str, Any] = {"id": "1", "object": "x", "model": model, "choices": choices}
        if self._has("usage"):  # as llama.cpp counts: one choice only
            decoded = len(re.findall(r"\s*\S+", choices[0]["text"])) if choices else 0
            value["usage"] = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": decoded,
                "prompt_tokens_details": {"cached_tokens": prompt_tokens // 2},
            }
        if kind == "chat":
            for choice in choices:
                choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        return 200, value

    def _has(self, feature: str) -> bool:
        return feature in self._behaviour.features

    def _prompt(self, body: Any, kind: str) -> tuple[str, int | None]:
        if kind == "chat":
            messages = body["messages"]
            text = "\n".join(message["content"] for message in messages)
            count = len(text.split()) + 4 * len(messages)
            goes_on = self._has("continue") and body.get("continue_final_message")
            return text, count - 6 * bool(goes_on)
        prompt = body["prompt"]
        if isinstance(prompt, str):
            return prompt, len(prompt.split())
        if not self._has("ids in"):
            return "", None
        doubled = int("doubled" in self._behaviour.features)
        return self._behaviour.tokenizer.decode(prompt), len(prompt) + doubled

    def _choice(self, body: Any, prompt: str, kind: str, index: int) -> dict[str, Any]:
        text = self._text(body, prompt, index)
        if self._fault == "empty reply":
            text = " "
        finish = "stop"
        for stop in body.get("stop", ()) if self._has("stop") else ():
            text = text.partition(stop)[0]
        pieces = re.findall(r"\s*\S+", text)
        if len(pieces) > body.get("max_tokens", 16):
            pieces, finish = pieces[: body["max_tokens"]], "length"
            text = "".join(pieces)
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": finish}
        tokenizer = self._behaviour.tokenizer
        if self._has("ids out") and body.get("return_token_ids"):
            ids = tokenizer.encode(text, before=tokenizer.chat.stop_token)
            choice["token_ids"] = [*ids, tokenizer.chat.stop_token] if finish == "stop" else ids
            if self._fault == "wrong ids":
                choice["token_ids"] = [5, 6, 7]
            pieces = [*(tokenizer.decode([i]) for i in ids), *([""] * (finish == "stop"))]
        if self._has("logprobs") and body.get("logprobs"):
            numbers = [-0.25 - 0.01 * i for i in range(len(pieces))]
            if kind == "chat":
                entries = zip(pieces, numbers, strict=True)
                content = [{"token": t, "logprob": p, "top_logprobs": []} for t, p in entries]
                choice["logprobs"] = {"content": content}
            else:
                choice["logprobs"] = {"tokens": pieces, "token_logprobs": numbers}
        return choice

    def _text(self, body: Any, prompt: str, index: int) -> str:
        greedy = body.get("temperature", 1.0) == 0 or self._has("greedy")
        if self._has("top_k") and body.get("top_k") == 1:
            greedy = True
        seed = body.get("seed") if self._has("seed") else None
        draw = random.Random() if seed is None else random.Random(f"{seed}/{index}")
        if "animal" in prompt:
            first, second = (ANIMALS[0], ANIMALS[1]) if greedy else draw.sample(ANIMALS, 2)
            age = 3 if greedy else draw.randint(1, 99)
            return f"I like the {first} of {age} more than the {second} and say so."
        tail = "\nObservation: You win." if "chatty" in self._behaviour.features else ""
        if "Guess a number" in prompt:
            low, high = _range_left(prompt)
            number = (low + high) // 2 if greedy else draw.randint(low, high)
            return f"Thought: In range.\nAction: guess {number}{tail}"
        way = "up" if greedy else draw.choice(["up", "down", "left", "right"])
        return f"Thought: on.\nAction: move {way}{tail}"

    def _rewards(self, path: str, body: Any) -> Any:
        if path == "/get_reward":
            return {"rewards": [_value(text) for text in body["query"]]}
        if "messages" in body:
            text = "\n".join(message["content"] for message in body["messages"])
        else:
            [ids] = body["input"]
            text = self._behaviour.tokenizer.decode(ids)
        value = "much" if self._fault == "empty reply" else _value(text)
        model = "another" if self._fault == "other model" else self._behaviour.model
        usage = {"prompt_tokens": len(text.split())}
        if path == "/classify":
            entry = {"index": 0, "label": "LABEL_0", "probs": [value], "num_classes": 1}
        else:
            entry = {"index": 0, "object": "pooling", "data": [value]}
        return {"object": "list", "model": model, "data": [entry], "usage": usage}


def _range_left(prompt: str) -> tuple[int, int]:
    """The numbers that the answers of the last game in a conversation leave possible."""
    game = prompt.rpartition("Guess a number from 1 to ")[2]
    low, high = 1, int(re.match(r"\d+", game)[0])
    turns = re.findall(r"guess (\d+).*?(Too low|Too high|$)", game, re.DOTALL)
    for number, said in turns:
        if said == "Too low":
            low = max(low, int(number) + 1)
        elif said == "Too high":
            high = min(high, int(number) - 1)
    return low, max(low, high)


def _value(text: str) -> float:
    """Fewer wrong guesses are better, and a solved game is best."""
    game = text.rpartition("Guess a number")[2]
    return 2.0 * ("Right" in game) - 0.125 * len(re.findall("Too (low|high)", game))
