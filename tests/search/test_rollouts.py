"""Rollouts against playing one trajectory after the other."""

from __future__ import annotations

import dataclasses
import random
import time

import pytest
from random_game import GamePolicy, GamePool, answer, game

from agentrm_jax.agent.function import FunctionPolicy
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.search.rollouts import Rollout, rollouts

EPISODES = [(game(i), sample) for i in range(4) for sample in range(3)]
REMEMBERS = 2


def plain(task, sample) -> Rollout:
    policy = GamePolicy("NESW-", REMEMBERS)
    trajectory = Trajectory(task=task, first_observation=f"game {task.task_id}")
    tokens = truncated = 0
    while not trajectory.done:
        purpose = f"sample/{sample}/{len(trajectory.steps)}"
        [[proposal]] = propose(policy, [(trajectory, purpose)], 1)
        actions = [step.action for step in trajectory.steps] + [proposal.action]
        truncated += max(0, len(trajectory.steps) - REMEMBERS)
        tokens += len(proposal.log_probs)
        trajectory = trajectory.extended(proposal.as_step(answer(task, actions)))
    return Rollout(
        trajectory=trajectory, sample=sample, policy_tokens=tokens, truncated_steps=truncated,
        env_steps=len(trajectory.steps), wall_seconds=0.0,
    )  # fmt: skip


def played(episodes, slots: int, pool: GamePool) -> dict[tuple[str, int], Rollout]:
    found = {}
    for rollout in rollouts(GamePolicy("NESW-", REMEMBERS), pool, episodes, concurrency=slots):
        key = (rollout.trajectory.task.task_id, rollout.sample)
        assert key not in found
        assert rollout.wall_seconds >= 0
        found[key] = dataclasses.replace(rollout, wall_seconds=0.0)
    assert pool.episodes == {}  # every environment was given back
    return found


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_rollouts_equal_playing_one_by_one(slots):
    """Whatever runs beside them, and in any order."""
    expected = {(task.task_id, sample): plain(task, sample) for task, sample in EPISODES}
    assert any(rollout.truncated_steps for rollout in expected.values())
    shuffled = random.Random(slots).sample(EPISODES, len(EPISODES))
    assert played(EPISODES, slots, GamePool()) == expected
    assert played(shuffled, slots, GamePool()) == expected


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_broken_environment_ends_its_trajectory_only(depth):
    """At the reset or later: an error, with the steps that were made before."""
    whole = played(EPISODES, 5, GamePool())
    pool = GamePool(lambda task, actions: task.task_id == "game/1" and len(actions) == depth)
    found = played(EPISODES, 5, pool)
    assert found.keys() == whole.keys()
    broken = 0
    for key, rollout in found.items():
        if key[0] == "game/1" and len(whole[key].trajectory.steps) >= depth:
            broken += 1
            assert rollout.error == "the game broke"
            made = max(0, depth - 1)
            assert rollout.env_steps == made
            assert rollout.trajectory.steps == whole[key].trajectory.steps[:made]
            assert not rollout.trajectory.done
        else:
            assert rollout == whole[key]
    assert broken


def test_a_turn_whose_environment_fails_is_sampled_again():
    """The episode is played again up to there; turns before stay, and the failure is counted."""

    class Flaky(GamePool):
        """Breaks the first action of each task in each state with two steps."""

        def __init__(self):
            super().__init__(self.breaks_once)
            self.seen = set()

        def breaks_once(self, task, actions):
            state = (task.task_id, tuple(actions[:2]))
            fresh = len(actions) == 3 and state not in self.seen
            self.seen |= {state} if len(actions) == 3 else set()
            return fresh

    whole = played(EPISODES, 5, GamePool())
    found = played(EPISODES, 5, Flaky())
    again = [key for key, rollout in found.items() if rollout.failed_candidates]
    assert again
    for key, rollout in found.items():
        assert rollout.error is None
        assert rollout.trajectory.done
        if key not in again:
            assert rollout == whole[key]
        else:
            assert rollout.failed_candidates == 1
            assert rollout.trajectory.steps[:2] == whole[key].trajectory.steps[:2]


def test_no_episodes():
    assert list(rollouts(GamePolicy(), GamePool(), [])) == []


def test_environments_are_released_if_the_caller_stops_early():
    pool = GamePool()
    running = rollouts(GamePolicy(), pool, EPISODES, concurrency=4)
    next(running)
    assert pool.episodes
    running.close()
    assert pool.episodes == {}


def test_pairs_name_their_samples_themselves():
    with pytest.raises(UserError, match=r"n must be 1 if tasks are given with .* \(got 2\)"):
        rollouts(GamePolicy(), GamePool(), EPISODES, n=2)


def test_no_more_calls_are_made_after_one_of_several_threads_has_failed():
    calls = []

    def fails(state, n, seed):
        calls.append(state)
        raise ValueError("no connection")

    pool, policy = GamePool(), FunctionPolicy(fails, concurrency=2)
    with pytest.raises(ValueError, match="no connection"):
        list(rollouts(policy, pool, [game(i) for i in range(100)]))
    assert pool.episodes == {}
    made = len(calls)
    assert made < 100
    time.sleep(0.05)
    assert len(calls) <= made + 2  # calls that were running


def test_a_seed_that_was_given_stays():
    """A search hands the policy on to another one, which has a seed of its own."""
    once = FunctionPolicy(lambda state, n, seed: [""] * n).with_seed(5)
    assert once.with_seed(0).seed == 5
