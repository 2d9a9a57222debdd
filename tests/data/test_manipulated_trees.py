"""Manipulated paths of search trees that a reward model is trained on."""

from __future__ import annotations

import pytest

import agentrm_jax as arm
from agentrm_jax.core.errors import UserError
from agentrm_jax.data.manipulated_trees import manipulated_trees
from agentrm_jax.data.manipulations import INVALID
from agentrm_jax.pipeline.train_config import RewardTrainConfig
from agentrm_jax.testing import Guess, guess_policy, guess_tasks


@pytest.fixture(scope="module")
def trees():
    with arm.EnvPool({"guess": Guess}) as envs:
        return arm.label(arm.explore(guess_policy, envs, guess_tasks(12), num_iterations=6))


def long_paths(trees):
    ends = [
        tree.state(branch.to_last_label().nodes[-1]) for tree in trees for branch in tree.branches()
    ]
    return [path for path in ends if len(path.steps) > 1]


def test_each_path_has_one_manipulated_form_of_value_zero(trees):
    paths, found = long_paths(trees), manipulated_trees(trees, 1.0, seed=0)
    assert len(found) == len(paths) > 12
    kinds = set()
    for path, tree in zip(paths, found, strict=True):
        assert (tree.task, tree.first_observation) == (path.task, path.first_observation)
        assert len(tree.steps) == len(path.steps)
        assert (tree.num_labels, tree.weights[-1], tree.values[-1]) == (1, 1.0, 0.0)
        [branch] = tree.branches()
        assert tree.state(branch.nodes[-1]).steps == tree.steps
        actions = [step.action for step in tree.steps]
        if set(actions) == {INVALID}:
            kinds.add("invalid")
        elif actions == [step.action for step in path.steps]:
            kinds.add("answers")
        else:
            assert sorted(actions) == sorted(step.action for step in path.steps)
            kinds.add("shuffled")
    assert kinds == {"invalid", "answers", "shuffled"}


def test_a_part_of_the_paths_by_the_seed(trees):
    some = manipulated_trees(trees, 0.3, seed=1)
    assert some == manipulated_trees(trees, 0.3, seed=1)
    assert some != manipulated_trees(trees, 0.3, seed=2)
    assert 0 < len(some) < len(long_paths(trees))
    assert manipulated_trees(trees, 0.0, seed=1) == []


def test_manipulated_answers_are_not_learned_as_text():
    with pytest.raises(UserError, match="manipulated"):
        RewardTrainConfig(manipulated=0.1, observation_loss=0.5)
