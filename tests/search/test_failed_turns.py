"""Turns that fail cost candidates: no environment acts on them, and no search takes one for a turn
without an action."""

from __future__ import annotations

import dataclasses

import pytest

from agentrm_jax.agent.function import FunctionPolicy, as_policy
from agentrm_jax.core.protocols import Proposal
from agentrm_jax.core.records import Step, Transition, step_from_json, to_json
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.reward.function import as_scorer
from agentrm_jax.search.adaptive_expansion import AdaptiveExpansion
from agentrm_jax.search.adaptive_n import AdaptiveN
from agentrm_jax.search.dvts import DVTS
from agentrm_jax.search.explore import Explorer, explore
from agentrm_jax.search.guided_mcts import GuidedMCTS
from agentrm_jax.search.look_ahead import LookAhead
from agentrm_jax.search.methods import Beam, BestOfN, Greedy
from agentrm_jax.search.retry import Retry
from agentrm_jax.search.rollouts import rollouts
from agentrm_jax.search.search_config import SearchConfig
from agentrm_jax.search.smc import SMC
from agentrm_jax.testing.guess import Guess, guess_policy, guess_scorer, guess_tasks

TASKS = guess_tasks(4)
METHODS = {
    "greedy": Greedy(),
    "best_of_n": BestOfN(n=3),
    "beam": Beam(beam_width=2, expansion_width=3),
    "dvts": DVTS(num_subtrees=2, expansion_width=3),
    "look_ahead": LookAhead(beam_width=2, expansion_width=2),
    "smc": SMC(num_particles=4),
    "guided_mcts": GuidedMCTS(num_iterations=4, expansion_width=3),
    "adaptive_expansion": AdaptiveExpansion(agreement=0.5),
    "adaptive_n": AdaptiveN(cost=0.01, most=4),
    "retry": Retry(num_attempts=2, retry_below=0.9),
}


def sometimes(state, n, seed):
    """One turn in five fails, by the seed; one in five of the others has no action."""
    replies = guess_policy(state, n, seed)
    return [
        Proposal.failed("the reply is empty") if (seed + i) % 5 == 0
        else "I do not know." if (seed + i) % 5 == 1 else reply
        for i, reply in enumerate(replies)
    ]  # fmt: skip


def always(state, n, seed):
    return [Proposal.failed("the server returned nothing")] * n


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_with_the_other_turns(name):
    with EnvPool({"guess": Guess}) as envs:
        answers = list(
            METHODS[name].run(as_policy(sometimes, 0), as_scorer(guess_scorer), envs, TASKS, 0)
        )
    assert len(answers) == len(TASKS)
    assert sum(answer.failed_candidates for answer in answers) > 0
    assert all(answer.error is None for answer in answers)
    steps = [step for answer in answers for step in answer.trajectory.steps]
    assert all(step.reply for step in steps)


@pytest.mark.parametrize("name", METHODS)
def test_a_policy_that_gives_no_turn_at_all_is_an_error(name):
    with EnvPool({"guess": Guess}) as envs:
        answers = list(
            METHODS[name].run(as_policy(always, 0), as_scorer(guess_scorer), envs, TASKS, 0)
        )
    assert {answer.error for answer in answers} == {"the server returned nothing"}


@pytest.mark.parametrize("num_rollouts", [1, 3])
def test_trees_note_failed_turns_and_have_no_node_for_them(num_rollouts, tmp_path):
    config = SearchConfig(
        num_iterations=4, expansion_width=3, num_rollouts=num_rollouts, concurrency=4
    )
    store = TreeStore(tmp_path)
    with EnvPool({"guess": Guess}) as envs:
        Explorer(FunctionPolicy(sometimes, seed=0), envs, store, config).run(TASKS, {})
    store.close()
    trees = TreeStore.read(tmp_path, finished=True).values()
    assert [tree.error for tree in trees] == [None] * len(TASKS)
    failures = [failure for tree in trees for failure in tree.failures]
    assert {failure.reason for failure in failures} == {"the reply is empty"}
    steps = [node.step for tree in trees for i in tree.iterations for node in i.nodes]
    assert all(step.reply for step in steps)
    assert any(step.action == "" for step in steps)  # a turn without an action is a turn


def test_a_tree_whose_policy_gives_nothing_ends_early():
    with EnvPool({"guess": Guess}) as envs:
        trees = explore(always, envs, TASKS, num_iterations=2)
    assert {tree.error for tree in trees} == {"the server returned nothing"}


def test_a_failed_turn_leaves_the_environment_alone():
    """The episode goes on from where it was: nothing is reset or replayed."""
    resets = []

    class Counted(Guess):
        def reset(self, task):
            resets.append(task.task_id)
            return super().reset(task)

    with EnvPool({"guess": Counted}) as envs:
        ended = list(rollouts(sometimes, envs, TASKS, n=4))
    assert len(resets) == len(ended) == 16
    assert sum(rollout.failed_candidates for rollout in ended) > 0


ANSWER = Transition(observation="On.", reward=0.0, done=False, success=False)


@pytest.mark.parametrize(
    ("log_probs", "stopped", "stored"),
    [
        ((-1.0, -1.0, -0.5), True, None),  # with the stop token: the lengths tell it
        ((-1.0, -1.0), False, None),
        ((-1.0, -1.0), True, True),  # a server leaves the stop token out
        ((), False, False),
    ],
)
def test_a_step_says_whether_its_reply_was_cut_off(log_probs, stopped, stored):
    turn = Proposal(reply="Go.", action="", token_ids=(1, 2), log_probs=log_probs, stopped=stopped)
    step = turn.as_step(ANSWER)
    assert step.stopped is stored
    assert step.cut_off is not stopped
    value = to_json(step)
    assert ("stopped" in value) == (stored is not None)
    assert step_from_json(value) == step


def test_a_turn_counts_its_tokens_itself():
    turn = Proposal(reply="Go.", action="", token_ids=(1, 2), log_probs=(-1.0, -1.0, -0.5))
    assert turn.tokens == 3
    assert dataclasses.replace(turn, completion_tokens=7).tokens == 7
    assert Step(reply="Go.", action="", transition=ANSWER).cut_off is False
