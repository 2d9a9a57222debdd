"""Each way to break the contract is found, by its own promise, in one line."""

import copy
import dataclasses
import functools
import random

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Transition
from agentrm_jax.core.reply import parse_action
from agentrm_jax.envs.conformance import findings
from agentrm_jax.envs.maze import Maze
from agentrm_jax.envs.registry import family_at, load_family


def broken(family, **options):
    """The promises that are broken, and how."""
    return {f.name: f.broken for f in findings(family, parse_action, **options) if f.broken}


class Wrapped:
    """A maze's episode with something changed."""

    def __init__(self, inner):
        self.inner = inner

    def reset(self, task):
        return self.inner.reset(task)

    def step(self, action):
        return self.inner.step(action)

    def fork(self):
        new = copy.copy(self)
        new.inner = self.inner.fork()
        return new


class Random(Wrapped):
    def step(self, action):
        answer = super().step(action)
        return dataclasses.replace(answer, observation=f"{answer.observation} {random.random()}")


class SharedFork(Wrapped):
    def fork(self):
        return copy.copy(self)  # its maze is the parent's


class Forkless:
    """An environment as `EnvPool({...})` takes it: nothing copies it."""

    def __init__(self, inner):
        self.inner = inner

    def reset(self, task):
        return self.inner.reset(task)

    def step(self, action):
        return self.inner.step(action)


class SelfFork(Wrapped):
    def fork(self):
        return self


class NoFork(Wrapped):
    def fork(self):
        return None


class Global(Wrapped):
    """It counts the steps of all episodes together."""

    steps = 0

    def reset(self, task):
        Global.steps = 0
        return super().reset(task)

    def step(self, action):
        Global.steps += 1
        answer = super().step(action)
        return dataclasses.replace(answer, observation=f"{self.steps}: {answer.observation}")


class Raising(Wrapped):
    def step(self, action):
        verb, direction = action.split(" ")
        return super().step(f"{verb} {direction}")


class Endless(Wrapped):
    def step(self, action):
        return dataclasses.replace(super().step(action), done=False, reward=0.0)


class Generous(Wrapped):
    def step(self, action):
        return dataclasses.replace(super().step(action), reward=0.7)


class Octets(Wrapped):
    def step(self, action):
        return dataclasses.replace(super().step(action), observation=b"seen")


class Exact(Wrapped):
    """It tells letter case apart, though the family's keys do not."""

    def step(self, action):
        answer = super().step(action)
        return dataclasses.replace(answer, observation=f"{action}: {answer.observation}")


@functools.cache
def listed(split, kinds, n, seed):
    return Maze().tasks(split, kinds=kinds, n=n, seed=seed)


class Cached(Maze):
    """A maze whose lists are drawn once."""

    def tasks(self, split, *, kinds, n, seed=0):
        return list(listed(split, kinds, n, seed))


def maze(episode=None, **changes):
    members = dict(changes)
    if episode is not None:
        members["create"] = lambda self: episode(Maze.create(self))
    return type("Changed", (Cached,), members)()


def relisted(change):
    """A maze whose lists are changed."""
    return maze(
        tasks=lambda self, split, **given: change(Cached.tasks(self, split, **given), split, given)
    )


_SAME = "the same actions get the same answers"
_FORKS = "a fork and its parent do not touch each other"
_KEYS = "actions with equal keys get equal answers"
_JUNK = "no action raises, and texts and rewards are sound"
_LIMIT = "an episode ends after max_steps"
_LISTS = "lists of tasks are sound, and the same each time"
_PROBLEMS = "a problem has one name, and train and test share none"
_PROMPTS = "the prompt's replies and the expert's hold their actions"


@pytest.mark.parametrize(
    ("family", "promise", "how"),
    [
        (maze(Random), _SAME, "differs when played again"),
        (maze(Global), _SAME, "differs when two episodes are played at the same time"),
        (maze(SharedFork), _FORKS, "differs when"),
        (maze(SelfFork), _FORKS, "fork must return a copy (got the environment itself)"),
        (maze(NoFork), _FORKS, "fork must return an environment (got None)"),
        (maze(Forkless), _FORKS, "Forkless has no method fork; write one that returns"),
        (maze(Raising), _JUNK, "ValueError: not enough values to unpack"),
        (maze(Endless), _LIMIT, "not done after 5 steps"),
        (maze(Generous), _JUNK, "the sum of the rewards must stay within 0 and 1"),
        (maze(Octets), _SAME, "step 1: observation must be a str (got bytes)"),
        (maze(Exact), _KEYS, "have one key but two answers"),
        (maze(action_key=lambda self, action: 3), _KEYS, "action_key must return one str (got 3)"),
        (maze(action_key=lambda self, action: 1 / 0), _KEYS, "ZeroDivisionError"),
        (maze(prompt=lambda self: Prompt(instruction="x", example=("seen", "I go up."))), _PROMPTS,
         "turn 1 of the example holds no action"),
        (maze(prompt=lambda self: "Go."), _PROMPTS, "prompt must return a Prompt (got str)"),
        (maze(demonstrate=lambda self, task: [Demonstration(thought="x\nAction: y", action="z")]),
         _PROMPTS, "the expert's action 'z' is read as 'y'"),
        (relisted(lambda tasks, split, given: None), _LISTS, "must return a list (got None)"),
        (relisted(lambda tasks, split, given: random.sample(tasks, len(tasks))), _LISTS,
         "train: another list the second time"),
        (relisted(lambda tasks, split, given: [
            *tasks[1:], dataclasses.replace(tasks[1], task_id="other")]), _LISTS,
         "train: two tasks pose the same problem"),
        (relisted(lambda tasks, split, given: tasks[given["n"] // 2 :]), _LISTS,
         "train: a longer list does not hold"),
        (relisted(lambda tasks, split, given: [
            dataclasses.replace(t, spec={**t.spec, "set": {1}}) for t in tasks]), _LISTS,
         "spec must hold plain JSON values"),
        (relisted(lambda tasks, split, given: [
            dataclasses.replace(t, problem=t.task_id) for t in Cached().tasks(
                "train", kinds=given["kinds"], n=given["n"])]), _LISTS, "is of another split"),
        (relisted(lambda tasks, split, given: [
            dataclasses.replace(t, problem=f"{given['seed']}-{i}", spec=first.spec)
            for i, t in enumerate(tasks) for first in tasks[:1]]), _PROBLEMS,
         "have one spec and two problems"),
        (relisted(lambda tasks, split, given: [
            dataclasses.replace(t, split=split, problem=str(i)) for i, t in enumerate(tasks)]),
         _PROBLEMS, "pose the same problem"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_found(family, promise, how):
    found = broken(family)
    assert promise in found, found
    assert how in found[promise]
    assert "\n" not in found[promise]


def test_a_sound_environment_keeps_all_promises():
    found = list(findings(load_family("maze"), parse_action))
    assert len(found) == 8
    assert not any(finding.broken or finding.skipped for finding in found)


def test_an_environment_without_keys_and_expert_is_tried_with_the_rest():
    class Plain(Cached):
        action_key = None
        demonstrate = lambda self, task: None  # noqa: E731

    del Plain.action_key

    class Keyless:
        def __getattr__(self, name):
            if name == "action_key":
                raise AttributeError(name)
            return getattr(Plain(), name)

    found = {finding.name: finding for finding in findings(Keyless(), parse_action)}
    assert found[_KEYS].skipped == "it has no action_key: actions are compared exactly"
    assert not any(finding.broken for finding in found.values())


def test_an_environment_without_tasks_skips_what_is_played():
    family = maze(tasks=lambda self, split, **given: [])
    found = {finding.name: finding for finding in findings(family, parse_action)}
    assert found[_LISTS] == dataclasses.replace(found[_LISTS], broken="", skipped="")
    assert found[_SAME].skipped == found[_FORKS].skipped == "it lists no tasks"


def test_answers_are_compared_as_a_whole():
    assert Transition(observation="", reward=0.0, done=False, success=False) != Transition(
        observation="", reward=0.0, done=False, success=False, valid=False
    )


def test_a_class_is_checked_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine_of_conformance.py").write_text(
        "from agentrm_jax.envs.maze import Maze\nclass Mine(Maze):\n    name = 'maze'\n"
        "class Lame:\n    name = 'lame'\nclass Dead:\n    def __init__(self): 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert family_at("mine_of_conformance:Mine").name == "maze"
    for path, message in [
        ("mine_of_conformance:Lame", "lacks .*create"),
        ("mine_of_conformance:Dead", "cannot be loaded: ZeroDivisionError"),
        ("mine_of_conformance:Nobody", "cannot be loaded: AttributeError"),
        ("no_such_module:Mine", "cannot be loaded: ModuleNotFoundError"),
        ("a b:c d", "cannot be loaded"),
    ]:
        with pytest.raises(UserError, match=message):
            family_at(path)
