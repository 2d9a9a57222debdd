"""Gymnasium environments: text in and out, forks by copy and by replay, rewards by a rule."""

from __future__ import annotations

import itertools
import threading

import gymnasium
import pytest

import agentrm_jax as arm
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.reply import parse_action
from agentrm_jax.envs.conformance import findings
from agentrm_jax.envs.registry import load_family


class Counting(gymnasium.Env):
    """A number is brought to a target by `add N`; each step costs, the target pays."""

    observation_space = gymnasium.spaces.Text(100)
    action_space = gymnasium.spaces.Text(20)
    made = itertools.count()

    def __init__(self, cost=0.0, lock=False, drift=False):
        self.cost, self.drift = cost, drift
        self.number = next(Counting.made)
        self.lock = threading.Lock() if lock else None  # cannot be copied

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target = int(self.np_random.integers(3, 9))
        self.value = 0
        return self._text(), {}

    def step(self, action):
        if not action.removeprefix("add ").isdigit():
            return "Say add N.", -self.cost, False, False, {"valid": False}
        self.value += int(action.removeprefix("add "))
        won, lost = self.value == self.target, self.value > self.target
        return self._text(), won - self.cost, won, lost, {}

    def _text(self):
        drift = f" (environment {self.number})" if self.drift else ""
        return f"{self.value} of {self.target}{drift}"


class Counted(arm.GymnasiumEnv):
    reward = arm.RewardRule(low=-1, high=1)

    def make(self, task):
        return Counting(**task.spec.get("kwargs", {}))


class Unruly(arm.GymnasiumEnv):
    def make(self, task):
        return Counting()


class Insisting(Counted):
    fork_by = "copy"


class Numbers(arm.GymnasiumEnv):
    """Observations and actions that are no texts."""

    reward = arm.RewardRule()

    def make(self, task):
        return gymnasium.make("FrozenLake-v1", is_slippery=False)

    def text(self, observation, info):
        return f"You are at {observation}."

    def action(self, text):
        return {"left": 0, "down": 1, "right": 2, "up": 3}.get(text)


def task(environment="counted", max_steps=10, **spec):
    return arm.Task(
        environment=environment, task_id=f"{environment}/1", max_steps=max_steps, spec=spec
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("lock", [False, True], ids=["copied", "replayed"])
def test_branches_are_independent(workers, lock):
    with arm.EnvPool({"counted": Counted}, workers=workers) as pool:
        [(root, first)] = pool.reset([task(seed=3, kwargs={"cost": 0.1, "lock": lock})])
        target = int(first.partition(" of ")[2])
        grown = pool.branch([(root, f"add {n}") for n in (1, 2, 1)])
        assert [a.observation for _, a in grown] == [f"{n} of {target}" for n in (1, 2, 1)]
        [won] = pool.step([(grown[1][0], f"add {target - 2}")])
        [(_, lost)] = pool.branch([(grown[0][0], "add 50")])
        [refused] = pool.step([(grown[2][0], "sing")])
    assert (won.done, won.success) == (True, False)  # 0.8 of at most 1: not all of it
    assert 0.45 + won.reward == pytest.approx((0.8 + 1) / 2)
    assert (lost.done, lost.success) == (True, False)
    assert (refused.valid, refused.done, refused.observation) == (False, False, "Say add N.")


def test_a_replay_that_differs_is_an_error_of_the_branch():
    with arm.EnvPool({"counted": Counted}) as pool:
        [(root, _)] = pool.reset([task(kwargs={"lock": True, "drift": True}, seed=1)])
        [failed] = pool.branch([(root, "add 1")])
    assert isinstance(failed, EnvironmentFailure)
    assert "the replay differs from what happened" in failed.reason


def test_a_class_may_insist_on_copies():
    with arm.EnvPool({"counted": Insisting}) as pool:
        [(root, _)] = pool.reset([task(kwargs={"lock": True}, seed=1)])
        [failed] = pool.branch([(root, "add 1")])
    assert "set fork_by to replay" in failed.reason


def test_a_return_outside_of_the_rule_is_an_error():
    with arm.EnvPool({"counted": Counted}) as pool:
        [(root, _)] = pool.reset([task(kwargs={"cost": 0.6}, seed=3)])
        [first] = pool.step([(root, "add 1")])
        assert first.reward == pytest.approx(0.2)
        [failed] = pool.step([(root, "add 1")])
    assert "the sum of the rewards is -1.2, outside of reward.low = -1" in failed.reason


def test_a_text_that_means_nothing_costs_nothing():
    with arm.EnvPool({"counted": Counted}) as pool:
        [(root, _)] = pool.reset([task(seed=3)])
        first, second = (pool.step([(root, "")])[0] for _ in range(2))
    assert (first.reward, second.reward) == (0.5, 0.0)  # the sum 0 lies between -1 and 1
    assert (first.observation, first.valid) == ("This action is not understood.", False)


def test_a_rule_is_needed():
    with (
        arm.EnvPool({"counted": Unruly}) as pool,
        pytest.raises(arm.UserError, match=r"Unruly\.reward is missing; write, for example"),
    ):
        pool.reset([task(seed=1)])


def test_observations_and_actions_may_be_translated():
    with arm.EnvPool({"lake": Numbers}, workers=1) as pool:
        [(root, first)] = pool.reset([task("lake", seed=0)])
        answers = pool.branch([(root, action) for action in ("right", "down", "jump", "")])
    assert first == "You are at 0."
    texts = [answer.observation for _, answer in answers]
    unknown = "This action is not understood."
    assert texts == ["You are at 1.", "You are at 4.", unknown, unknown]
    assert [answer.valid for _, answer in answers] == [True, True, False, False]


LAKE = {
    "id": "FrozenLake-v1",
    "kwargs": {"is_slippery": False, "render_mode": "ansi"},
    "actions": {"left": 0, "down": 1, "Right": 2, "up": 3},
    "reward": {"low": 0, "high": 1},
    "max_steps": 8,
}


def test_a_configured_environment_is_played_to_its_goal():
    family = load_family("gymnasium@lake").configured(LAKE)
    assert family.counts() == {"train": 100_000, "test": 100_000, "paper": 0}
    [first] = family.tasks("test", kinds=family.kinds(), n=1)
    assert first.environment == "gymnasium@lake"
    assert first.spec["seed"] >= 1_000_000
    with arm.EnvPool(workers=1) as pool:
        [(handle, text)] = pool.reset([first])
        way = ["down", "down", "right", "RIGHT", "down", "right"]
        answers = [pool.step([(handle, action)])[0] for action in way]
    assert "FFF" in text
    assert [answer.done for answer in answers] == [False] * 5 + [True]
    assert (answers[-1].reward, answers[-1].success) == (1, True)
    assert "left, down, Right, up" in family.prompt().instruction


def test_the_contract_holds():
    family = load_family("gymnasium").configured(LAKE)
    for finding in findings(family, parse_action, n=2):
        assert not finding.broken, finding


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"reward": None}, r"options\.reward is missing"),
        ({"id": ""}, r"options\.id must be given, or make in its place"),
        ({"make": "a:b"}, r"options\.id must be given, or make in its place, and not both"),
        ({"fork_by": "luck"}, r"options\.fork_by must be one of auto, copy, replay"),
        ({"kwargs": 3}, r"options\.kwargs must be keys and values"),
        ({"max_steps": True}, r"options\.max_steps must be a whole number"),
        ({"max_steps": 0}, r"options\.max_steps must be from 1"),
        ({"train_seeds": -1}, r"options\.train_seeds must be from 0"),
    ],
)
def test_options_that_are_refused_name_their_key(changed, reason):
    options = {key: value for key, value in (LAKE | changed).items() if value is not None}
    with pytest.raises(arm.UserError, match=reason):
        load_family("gymnasium").configured(options)


def test_names_and_makers_that_are_wrong_are_one_error():
    with pytest.raises(arm.UserError, match="'a b' is no label"):
        load_family("gymnasium@a b")
    options = {**LAKE, "id": "", "make": "nowhere:make"}
    family = load_family("gymnasium").configured(options)
    with arm.EnvPool() as pool, pytest.raises(arm.UserError, match=r"options\.make cannot be"):
        pool.reset(family.tasks("train", kinds=family.kinds(), n=1))
