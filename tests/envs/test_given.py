"""Pools of environments that are given as classes."""

import subprocess
import sys
import textwrap

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.testing import Guess, guess_tasks


def played(pool, tasks):
    """The observations of an episode, of a copy of it, and whether it ran in a worker."""
    (handle, first), *_ = pool.reset(tasks)
    (copy, there), *_ = pool.branch([(handle, "guess 1")])
    (low, *_) = pool.step([(handle, "guess 2")])
    (again, *_) = pool.step([(copy, "guess 3")])
    return first, there.observation, low.observation, again.observation, pool.elsewhere(tasks[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_of_a_module(workers):
    with EnvPool({"guess": Guess}, workers=workers) as pool:
        *texts, elsewhere = played(pool, guess_tasks(1, seed=3))
    assert elsewhere == bool(workers)
    assert texts[0].startswith("Guess a number")
    assert all("Too" in text for text in texts[1:])


class WithoutFork:
    """An environment that cannot be copied; it counts its actions."""

    def reset(self, task):
        self.total = 0
        return "begin"

    def step(self, action):
        self.total += len(action)
        return Transition(observation=f"{self.total}", reward=0.0, done=False, success=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_fork_an_episode_is_played_again(workers):
    task = Task(environment="own", task_id="own/1", max_steps=9)
    with EnvPool({"own": WithoutFork}, workers=workers) as pool:
        [(handle, _)] = pool.reset([task])
        pool.step([(handle, "ab")])
        [(copy, transition)] = pool.branch([(handle, "c")])
        assert transition.observation == "3"
        assert [t.observation for t in pool.step([(handle, "de"), (copy, "f")])] == ["4", "4"]


def test_a_class_of_a_function_runs_in_this_process():
    class Local(WithoutFork):
        pass

    task = Task(environment="own", task_id="own/1", max_steps=9)
    with EnvPool({"own": Local}, workers=1) as pool:
        assert not pool.elsewhere(task)
        [(handle, text)] = pool.reset([task])
        assert (text, pool.step([(handle, "ab")])[0].observation) == ("begin", "2")


SCRIPT = """
    from __future__ import annotations
    import os, sys
    import agentrm_jax as arm

    print("main", flush=True)  # no __main__ guard: a worker must not run this line

    STEP = 2
    def size(action): return STEP * len(action)

    class Own:
        def reset(self, task): return f"{os.getpid()}"
        def step(self, action):
            text = f"{size(action)} {'jax' in sys.modules}"
            return arm.Transition(observation=text, reward=0.0, done=False, success=False)
        def fork(self): return Own()

    import jax  # the class does not need it: a worker does not import it
    with arm.EnvPool({"own": Own}, workers=1) as pool:
        [(handle, pid)] = pool.reset([arm.Task(environment="own", task_id="own/1", max_steps=3)])
        print(pid != str(os.getpid()), pool.step([(handle, "abc")])[0].observation)
"""


def test_a_class_of_a_script_runs_in_workers_without_the_rest_of_the_script(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "main\nTrue 6 False\n"


@pytest.mark.parametrize(
    ("environments", "what"),
    [
        ({"own": 3}, r"environments\['own'\] must be a class \(got 3\)"),
        ({"own": dict}, "class dict must have reset and step"),
        (["mase"], "did you mean maze"),
    ],
)
def test_what_is_no_environment_is_one_error(environments, what):
    with pytest.raises(UserError, match=what):
        EnvPool(environments)
