"""Workers that send garbage, flood their pipes, hang, exit and eat memory: a task fails at most."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import socket
import sys
import time

import pytest
from hostile_cases import MANY, damaged, random_value

from agentrm_jax.core.json_values import json_text
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.core.text import printable
from agentrm_jax.envs import worker_process
from agentrm_jax.envs.episodes import Fault, answer_from_json, answer_to_json
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.testing import GUESS_PROMPT


def the_socket() -> int:
    """The descriptor of the worker's connection."""
    return int(sys.argv[1])


def flood(descriptor: int, seconds: float = 2.0) -> None:
    deadline, block = time.monotonic() + seconds, b"x" * (1 << 20)
    while time.monotonic() < deadline:
        os.write(descriptor, block)


MISDEEDS = {
    "exit": lambda: os._exit(3),
    "raise exit": lambda: sys.exit("gone \x1b[31m"),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(1000),
    "memory": lambda: bytearray(1 << 40),
    "recursion": lambda: eval("[" * 50 + "]" * 50) and MISDEEDS["recursion"](),
    "close": lambda: os.closerange(3, 1000),
    "garbage": lambda: os.write(the_socket(), b"\xff\x00garbage\n"),
    "half an answer": lambda: os.write(the_socket(), b'["half'),
    "deep": lambda: os.write(the_socket(), b"[" * 50_000 + b"\n"),
    "an answer before the answer": lambda: os.write(the_socket(), b'"forged"\n"forged"\n'),
    "other": lambda: os.write(the_socket(), b'{"reason": 1, "mendable": []}\n'),
    "stdout": lambda: flood(1),
    "stderr": lambda: flood(2),
    "socket": lambda: flood(the_socket(), 60.0),
}


class Misbehaving:
    """Adds numbers; any other action is one of `MISDEEDS`."""

    total = 0

    def reset(self, task):
        return "start"

    def step(self, action):
        if not action.isdigit():
            MISDEEDS[action]()
        self.total += int(action) if action.isdigit() else 0
        return Transition(observation=f"sum {self.total}", reward=0.0, done=False, success=False)

    def prompt(self):
        return GUESS_PROMPT


def task(number: int) -> Task:
    return Task(environment="sums", task_id=f"sums/{number}", max_steps=50)


@pytest.fixture(scope="module")
def pool():
    with EnvPool({"sums": Misbehaving}, workers=1, step_seconds=4.0, memory_gib=1.0) as opened:
        yield opened


SURVIVED = ("stdout", "stderr")
"""Misdeeds after which the environment answers."""


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_worker_that_misbehaves_costs_its_own_episode_only(pool, misdeed, tmp_path):
    [(good, _), (bad, _)] = pool.reset([task(0), task(1)])
    [before] = pool.step([(good, "2")])
    assert before.observation == "sum 2"
    began = time.monotonic()
    after, failed = pool.step([(good, "3"), (bad, misdeed)])
    assert time.monotonic() - began < 60
    if misdeed in SURVIVED:
        assert failed.observation == "sum 0"
    else:
        assert isinstance(failed, EnvironmentFailure), failed
        assert printable(failed.reason) == failed.reason
        assert len(failed.reason) < 1500
    assert after.observation == "sum 5"
    [last] = pool.step([(good, "4")])
    assert last.observation == "sum 9"
    pool.release([good, bad])


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one():
    with EnvPool({"sums": Misbehaving}, workers=1) as pool:
        [(handle, _)] = pool.reset([task(0)])
        [worker] = pool._workers
        ours, theirs = socket.socketpair()
        real = worker.process._connection
        theirs.sendall(b'[1, ["forged", 1.0, true, true, true]]\n')
        worker.process._connection = ours
        [answer] = pool.step([(handle, "2")])
        assert answer.observation == "sum 2"
        for each in (real, theirs):
            each.close()


def test_what_a_worker_writes_to_stderr_does_not_fill_the_disk(monkeypatch):
    monkeypatch.setattr(worker_process, "_MOST_ERRORS", 1 << 20)
    monkeypatch.setattr(worker_process, "_LOOK_SECONDS", 0.01)
    sizes: list[tuple[int, int]] = []  # before and after a look
    trim = worker_process.WorkerProcess.trim_errors

    def looked(self):
        running = self._process is not None
        before = os.fstat(self._errors.fileno()).st_size if running else 0
        trim(self)
        if running:
            sizes.append((before, os.fstat(self._errors.fileno()).st_size))

    monkeypatch.setattr(worker_process.WorkerProcess, "trim_errors", looked)
    with EnvPool({"sums": Misbehaving}, workers=1) as pool:
        [(handle, _)] = pool.reset([task(0)])
        [answer] = pool.step([(handle, "stderr")])
    assert answer.observation == "sum 0"
    assert any(before > (1 << 20) > after for before, after in sizes)


@MANY
def test_answers_of_any_content_are_read_or_refused(cases):
    rng, read = random.Random(1), 0
    sound = Transition(observation="a", reward=0.5, done=True, success=False)
    for number in range(cases):
        value = answer_to_json(sound) if number % 2 else random_value(rng)
        if number % 2 and rng.random() < 0.5:
            value[rng.randrange(5)] = random_value(rng)
        try:
            found = answer_from_json(value)
        except ValueError:
            continue
        read += 1
        assert isinstance(found, str | Fault | Transition)
        if isinstance(found, Transition):
            assert isinstance(found.observation, str)
            assert isinstance(found.done, bool)
    assert read > cases / 5
    assert answer_from_json(answer_to_json(sound)) == sound


def test_damaged_messages_of_a_worker_lose_it(tmp_path):
    rng = random.Random(2)
    content = json_text([0, ["sum 2", 0.0, False, False, True]]).encode() + b"\n"
    for _ in range(200):
        worker = worker_process.WorkerProcess(1.0, 1 << 30)
        worker._connection, theirs = socket.socketpair()
        worker._buffer, worker._expected, worker._number = b"", 1, 0
        worker._deadline = time.monotonic() + 1.0
        theirs.sendall(damaged(rng, content) or b"\n")
        theirs.close()
        worker._death = lambda: "it ended"  # pyright: ignore[reportAttributeAccessIssue]
        while worker.waiting:
            worker.read()
        assert worker.lost is not None or len(worker.answers) >= 1
        worker._connection.close()
    assert list(pathlib.Path(tmp_path).iterdir()) == []
