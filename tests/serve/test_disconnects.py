"""Clients that go away: their requests to the policy end, and their place in the queue is free."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn

from agentrm_jax.pipeline.reward_model import open_conversation_model
from agentrm_jax.serve.app import Limits, Service, create_app
from agentrm_jax.serve.batching import BatchThread
from agentrm_jax.serve.policy_server import PolicyServer
from agentrm_jax.serve.scoring import ConversationScorer, ScoreRequest
from agentrm_jax.testing import write_tiny_reward_model

ASKED = {"messages": [{"role": "user", "content": "Guess a number from 1 to 9."}], "n": 3}
SECONDS = 60.0


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = write_tiny_reward_model(tmp_path_factory.mktemp("gone") / "reward")
    return ConversationScorer(*open_conversation_model(folder))


class SilentServer:
    """A policy's server that reads requests and never answers them.

    Attributes:
      asked: Requests so far.
      open: Connections that are open.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.asked = self.open = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        self.open += 1
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                self.asked += data.count(b"POST ")
        self.open -= 1

    def close(self) -> None:
        self._listening.close()


@contextlib.contextmanager
def running(service: Service, policy: PolicyServer | None = None) -> Iterator[str]:
    """Serves on a free port, in a thread; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(service, policy)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(SECONDS)


def until(happened: Callable[[], bool]) -> None:
    """Waits until something is so."""
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def leaving(url: str, path: str, body: object, happened: Callable[[], bool]) -> None:
    """Sends a request, waits for something and closes the connection without an answer."""
    request = httpx.Request("POST", url + path, json=body)
    host, port = str(request.url.host), request.url.port
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((host, port)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        until(happened)


def asked(text: str) -> ScoreRequest:
    return ScoreRequest(conversation=text)


def counted(url: str, path: str) -> bool:
    """Whether a request to a path counts as one whose client has gone."""
    line = f'agentrm_requests_total{{path="{path}",status="499"}} 1'
    return line in httpx.get(f"{url}/metrics", trust_env=False).text


@pytest.mark.parametrize("takes_n", [True, False])
def test_requests_to_the_policy_end_with_their_client(scorer, takes_n):
    policy = SilentServer()
    turns = PolicyServer(policy.url, model="silent")
    turns._takes_n = takes_n
    requests = 1 if takes_n else ASKED["n"]
    service = Service(scorer, "reward", Limits())
    with running(service, turns) as url:
        leaving(url, "/v1/chat/completions", ASKED, lambda: policy.asked == requests)
        until(lambda: policy.open == 0)
        until(lambda: counted(url, "/v1/chat/completions"))
        assert policy.asked == requests  # nothing was asked again
        assert service.open_bytes == 0
    policy.close()


def test_the_place_in_the_queue_is_free_again(scorer):
    entered, leave, read = threading.Event(), threading.Event(), []

    class Slow(ConversationScorer):
        def __call__(self, requests):
            entered.set()
            leave.wait(SECONDS)
            read.extend(request.conversation for request in requests)
            return super().__call__(requests)

    service = Service(Slow(scorer.model, {}), "reward", Limits(waiting=3))
    [first] = service.thread.submit([asked("first")])
    assert entered.wait(SECONDS)
    with running(service) as url:
        body = {"input": ["gone 1", "gone 2", "gone 3"]}
        leaving(url, "/classify", body, lambda: service.thread.waiting == 3)
        until(lambda: service.thread.waiting == 0)
        until(lambda: counted(url, "/classify"))
        others = service.thread.submit([asked(str(number)) for number in range(3)])
        leave.set()
        assert all(future.result(SECONDS) for future in (first, *others))
    assert sorted(read) == ["0", "1", "2", "first"]


def test_a_call_that_runs_already_is_finished():
    entered, leave = threading.Event(), threading.Event()

    def work(items):
        entered.set()
        leave.wait(SECONDS)
        return items

    thread: BatchThread[int, int] = BatchThread(work, name="test", most_waiting=2)
    [first] = thread.submit([0])
    assert entered.wait(SECONDS)
    gone, stays = thread.submit([1, 2])
    assert not first.cancel()
    assert gone.cancel()
    assert thread.waiting == 1
    leave.set()
    thread.close()
    assert (first.result(0), stays.result(0)) == (0, 2)
