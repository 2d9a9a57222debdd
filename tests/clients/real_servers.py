"""Servers of others as processes, and the runs that tests do with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.data.trees import TreeRecord, TreeStore
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.policy_kinds import POLICIES
from agentrm_jax.pipeline.reward_model import RewardModel
from agentrm_jax.pipeline.server_kinds import ServerAgent
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.search.best_of_n import BestOfN, best_of_n
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.testing import write_tiny_reward_model

RUN = """
environments: [{name: babyai, kinds: [GoToRedBallGrey], max_steps: 2}]
seed: 1
rewards: [explicit]
agent: {wait_seconds: 900, request_seconds: 900}
explore:
  num_tasks: 8
  sampling: {max_tokens: 24}
  search: {num_iterations: 2, expansion_width: 3, concurrency: 8}
"""
"""Eight trees of BabyAI."""


class RealServer:
    """A server's process; it is started again at the same port.

    Args:
      command: Its command line, without the port.
      log: A file for what it prints.
    """

    def __init__(self, command: Sequence[str], log: IO[bytes]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [*command, "--port", str(self.port)]
        self._log = log
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=self._log, env=environment
        )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[RealServer]:
    """Runs a server; prints the end of its log."""
    with tempfile.TemporaryFile() as log:
        server = RealServer(command, log)
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            log.seek(0)
            print(log.read()[-2000:].decode("utf-8", "replace"))


def explored(
    server: RealServer, folder: pathlib.Path, *arguments: str, kill_after: int = 0
) -> list[TreeRecord]:
    """Explores eight trees in `folder / "run"` with the policy of a server.

    Args:
      server: The server.
      folder: An empty folder.
      arguments: Further `--KEY=VALUE` of the configuration.
      kill_after: Iterations after which the server is killed, and started again later; 0: never.
    """
    if "server" not in POLICIES.names():
        POLICIES.register("server")(ServerAgent)
    path, output = folder / "run.yaml", folder / "run"
    path.write_text(RUN)

    def kill_and_start() -> None:
        trees = RunPaths(output).trees / "trees.jsonl"
        while not trees.exists() or trees.read_text().count('"iteration"') < kill_after:
            time.sleep(0.2)
        server.kill()
        time.sleep(5.0)
        server.start()

    killer = threading.Thread(target=kill_and_start, daemon=True)
    if kill_after:
        killer.start()
    config = load_config(path, [f"--policy={server.url}", *arguments])
    runner.run_stage(config, output, "explore")
    if kill_after:
        killer.join(60)
    return list(TreeStore.read(RunPaths(output).trees, finished=True).values())


def best_of_3(
    policy: ServerPolicy, folder: pathlib.Path, *, max_steps: int | None = None
) -> list[BestOfN]:
    """Returns the results of best-of-3 on two tasks of BabyAI, which are checked.

    Args:
      policy: The policy of a server.
      folder: An empty folder, for the model that decides without AGENTRM_REWARD_MODEL.
      max_steps: The longest episode; None: that of BabyAI.
    """
    babyai = load_family("babyai")
    model = os.environ.get("AGENTRM_REWARD_MODEL") or write_tiny_reward_model(folder / "reward")
    scorer = RewardModel.load(model, prompts={"babyai": babyai.prompt()})
    tasks = babyai.tasks("test", kinds=["GoToRedBallGrey"], n=2)
    if max_steps is not None:
        tasks = [dataclasses.replace(task, max_steps=max_steps) for task in tasks]
    with EnvPool() as envs:
        results = best_of_n(policy, scorer, envs, tasks, n=3)
    for result in results:
        assert len(result.rollouts) == 3
        assert result.chosen == int(np.argmax(result.scores))
        assert len(set(result.scores)) > 1
        for rollout in result.rollouts:
            assert rollout.error is None
            assert rollout.policy_tokens >= decoded_tokens(rollout)
            assert rollout.policy_tokens > 0
    return results


def decoded_tokens(rollout: Rollout) -> int:
    """Returns how many tokens of a rollout have a log-probability."""
    return sum(len(step.log_probs) for step in rollout.trajectory.steps)
