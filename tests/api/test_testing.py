"""What `agentrm_jax.testing` ships: a tiny model in memory and in a folder."""

import subprocess
import sys

import numpy as np
import pytest

import agentrm_jax as arm
from agentrm_jax import testing
from agentrm_jax.testing import Guess, guess_tasks, tiny_state


def test_importing_it_imports_no_jax():
    program = (
        "import sys, agentrm_jax.testing as t; t.Guess, t.guess_tasks(1), dir(t); "
        "print('jax' in sys.modules); t.tiny_model; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\nTrue\n", done.stderr


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_is_there(name):
    assert getattr(testing, name) is not None
    assert name in dir(testing)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'tiny_modle'"):
        testing.tiny_modle  # noqa: B018


def test_a_tiny_policy_replies_to_any_state():
    replies = arm.propose(
        testing.tiny_policy(), [(tiny_state(0, 1), "one"), (tiny_state(1, 2), "two")], 2
    )
    assert [len(group) for group in replies] == [2, 2]
    assert all(len(reply.token_ids) <= 10 for group in replies for reply in group)


def test_a_tiny_reward_model_scores_any_state():
    groups = [[tiny_state(0, n) for n in range(3)], [tiny_state(1, 2)]]
    scores = testing.tiny_reward_model().score(groups)
    assert [len(group) for group in scores] == [3, 1]
    assert len({score for group in scores for score in group}) == 4
    assert testing.tiny_reward_model(seed=1).score(groups) != scores


def test_folders_are_read_by_the_python_interface(tmp_path):
    policy = arm.ModelPolicy.load(testing.write_tiny_policy(tmp_path / "policy"))
    scorer = arm.RewardModel.load(testing.write_tiny_reward_model(tmp_path / "reward"))
    with arm.EnvPool({"guess": Guess}) as envs:
        results = arm.best_of_n(policy, scorer, envs, guess_tasks(2, max_steps=2), n=2)
    assert [len(result.rollouts) for result in results] == [2, 2]
    assert np.isfinite([result.scores for result in results]).all()
    with pytest.raises(arm.UserError, match=r"no policy here|holds a reward model"):
        arm.ModelPolicy.load(tmp_path / "reward")


def test_a_folder_with_prompts_of_ones_own(tmp_path):
    folder = testing.write_tiny_reward_model(tmp_path / "reward", {"toy": None})
    assert arm.RewardModel.load(folder).score([[tiny_state(0, 1)]])
    [game] = guess_tasks(1)
    state = arm.Trajectory(task=game, first_observation="Guess a number from 1 to 30.")
    with pytest.raises(arm.UserError, match="the model was not trained on the environment guess"):
        arm.RewardModel.load(folder).score([[state]])
