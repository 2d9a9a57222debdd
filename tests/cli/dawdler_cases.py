"""A run whose policy needs no model and takes its time, for tests that kill its processes."""

from __future__ import annotations

import pathlib
import subprocess
import textwrap
import time
from collections.abc import Callable

import yaml

PLUGIN = '''
    import dataclasses
    import os
    import pathlib
    import random
    import time
    from typing import ClassVar

    import agentrm_jax as arm
    from agentrm_jax.pipeline.reward_kinds import RewardKind

    wall_clock = time.time
    time.time = lambda: wall_clock() + float(os.environ.get("CLOCK", "0"))
    GATE = pathlib.Path(__file__).with_name("go")


    @arm.register_policy("dawdler")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Dawdler(arm.PolicyKind):
        """Waits for the start of a test, then takes its time over each turn."""

        explores_without_trunk: ClassVar[bool] = True

        def open(self, options):
            while not GATE.exists():
                time.sleep(0.05)

            def reply(state, n, seed):
                time.sleep(float(os.environ.get("SECONDS_OF_A_TURN", "0.02")))
                draw = random.Random(f"{seed} {len(state.steps)}")
                ways = ["up", "down", "left", "right"]
                return [f"Thought: on.\\nAction: move {draw.choice(ways)}" for _ in range(n)]

            return reply


    @arm.register_reward_kind("shortness")
    class Shortness(RewardKind):
        """Prefers short trajectories."""

        def open(self, policy):
            return arm.FunctionScorer(lambda states: [-len(state.steps) for state in states])
'''

RUN = """
    environments: [{name: maze, prompt: false, max_steps: 6}]
    seed: 3
    train_policy: false
    agent: {kind: dawdler}
    explore: {num_tasks: 16, search: {num_iterations: 3, expansion_width: 2, concurrency: 2}}
    evaluate: {num_tasks: 8, n: 3, methods: [greedy, best_of_n]}
"""


def write_config(folder: pathlib.Path, *plugins: str) -> pathlib.Path:
    """Writes the configuration into a folder; its policy waits for the file `go` there."""
    plugin = folder / "dawdler.py"
    plugin.write_text(textwrap.dedent(PLUGIN))
    path = folder / "run.yaml"
    config = yaml.safe_load(RUN) | {"plugins": [str(plugin), *plugins]}
    path.write_text(yaml.safe_dump(config))
    return path


def wait_until(true: Callable[[], object], *processes: subprocess.Popen, seconds: int = 400):
    """Waits for something that the processes do; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        for process in processes:
            assert process.poll() in (None, 0), process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
