"""Adaptive n against sampling one trajectory after the other, with the gain by integration."""

from __future__ import annotations

import dataclasses
import math

import pytest
from game_scores import GameScorer, coarse, sometimes_undecided, undecided
from random_game import GamePolicy, GamePool, answer, draw, game
from scipy import integrate, stats

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.search.adaptive_n import AdaptiveN, expected_gain
from agentrm_jax.search.methods import UNDECIDED, BestOfN
from agentrm_jax.search.rollouts import rollouts

TASKS = [game(i) for i in range(9)]
CONFIG = AdaptiveN(cost=0.04, most=9, concurrency=5)


def integrated_gain(scores, config) -> float:
    """The integral of P(next > x) above the best score."""
    k, strength = len(scores), config.prior_strength
    mean = sum(scores) / k
    total = strength + k
    squares = strength * config.prior_deviation**2
    squares += sum((score - mean) ** 2 for score in scores)
    squares += strength * k / total * (mean - config.prior_mean) ** 2
    location = (strength * config.prior_mean + sum(scores)) / total
    scale = math.sqrt(squares / total * (total + 1) / total)
    following = stats.t(df=total, loc=location, scale=scale)
    return integrate.quad(following.sf, max(scores), math.inf, epsabs=1e-12, limit=200)[0]


@pytest.mark.parametrize("scores", [[0.5], [0.1, 0.9], [0.9, 0.9, 0.9], [0.0] * 15, [-3.0, 2.5]])
@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
def test_the_expected_gain_is_the_integral(scores, strength):
    config = AdaptiveN(prior_strength=strength, prior_mean=0.4, prior_deviation=0.3)
    gain = expected_gain(scores, prior_mean=0.4, prior_deviation=0.3, prior_strength=strength)
    assert gain == pytest.approx(integrated_gain(scores, config), rel=1e-6, abs=1e-9)


def test_the_expected_gain_falls_with_equal_scores_and_is_infinite_without_one():
    prior = {"prior_mean": 0.5, "prior_deviation": 0.25, "prior_strength": 1.0}
    gains = [expected_gain([0.8] * k, **prior) for k in range(6)]
    assert gains[0] == math.inf
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] > 0


def plain_sample(task, sample, breaks):
    """(state, tokens, failures, error): a trajectory whose failed turns are sampled again."""
    policy = GamePolicy()
    state = Trajectory(task=task, first_observation=f"game {task.task_id}")
    tokens = failures = attempt = 0
    while not state.done:
        again = f"/again/{attempt}" if attempt else ""
        purpose = f"sample/{sample}/{len(state.steps)}{again}"
        [[proposal]] = propose(policy, [(state, purpose)], 1)
        tokens += len(proposal.log_probs)
        actions = [step.action for step in state.steps] + [proposal.action]
        if breaks(task, actions):
            failures, attempt = failures + 1, attempt + 1
            if attempt == 3:
                return state, tokens, failures, "the game broke"
            continue
        state, attempt = state.extended(proposal.as_step(answer(task, actions))), 0
    return state, tokens, failures, None


def plain_adaptive(task, config, score, breaks):
    """The samples of one task, their scores, and the sample that is chosen."""
    samples, scores = [], []
    while True:
        count = config.step if samples else config.first
        for _ in range(min(count, config.most - len(samples))):
            samples.append(plain_sample(task, len(samples), breaks))
            state, _, _, error = samples[-1]
            scores.append(math.nan if error else score(state))
        decided = [each for each in scores if not math.isnan(each)]
        gain = integrated_gain(decided, config) if decided else math.inf
        if len(samples) == config.most or gain < config.cost:
            break
    ended = [i for i, sample in enumerate(samples) if sample[3] is None]
    best = max(ended, key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i], default=0)
    return samples, scores, best


def check(rollout, task, config, score=coarse, breaks=lambda *_: False) -> int:
    """Compares an answer, its costs and its nodes; returns the number of samples."""
    samples, scores, best = plain_adaptive(task, config, score, breaks)
    ended = any(sample[3] is None for sample in samples)
    no_score = ended and all(map(math.isnan, scores))
    assert rollout.trajectory == samples[best][0]
    assert rollout.error == (UNDECIDED if no_score else samples[best][3])
    assert rollout.sample == 0
    assert rollout.policy_tokens == sum(tokens for _, tokens, _, _ in samples)
    assert rollout.env_steps == sum(len(state.steps) for state, *_ in samples)
    assert rollout.failed_candidates == sum(failures for _, _, failures, _ in samples)
    assert rollout.reward_tokens == sum(error is None for *_, error in samples)
    root, *nodes = rollout.search
    assert (root.parent, root.chosen, root.visits) == (-1, True, len(samples))
    assert root.observation == f"game {task.task_id}"
    expected = []
    for i, (state, *_, error) in enumerate(samples):
        for depth, step in enumerate(state.steps):
            last = depth + 1 == len(state.steps)
            number = scores[i] if last and not math.isnan(scores[i]) else None
            status = "kept" if not last else "failed" if error else "finished"
            parent = len(expected) if depth else 0
            expected.append((parent, step.reply, number, status, i == best))
    found = [(n.parent, n.reply, n.score, n.status, n.chosen) for n in nodes]
    assert found == expected
    return len(samples)


def search(tasks, config, *, pool=None, scorer=None, policy=None):
    pool = pool or GamePool()
    found = list(config.run(policy or GamePolicy(), scorer or GameScorer(), pool, tasks, 0))
    assert pool.episodes == {}  # every environment was given back
    assert len(found) == len(tasks)
    return {r.trajectory.task.task_id: dataclasses.replace(r, wall_seconds=0.0) for r in found}


@pytest.mark.parametrize(
    "changed", [{}, {"first": 1, "step": 3}, {"cost": 0.0, "most": 4}, {"cost": 9.0}]
)
def test_answers_equal_plain_sampling(changed):
    config = dataclasses.replace(CONFIG, **changed)
    found = search(TASKS, config)
    counts = {check(found[task.task_id], task, config) for task in TASKS}
    if config.cost == 0:
        assert counts == {config.most}
    elif config.cost == 9:
        assert counts == {config.first}
    else:
        assert len(counts) > 2  # n adapts to the task


@pytest.mark.parametrize("score", [sometimes_undecided, undecided])
def test_samples_without_a_score_come_last(score):
    found = search(TASKS, CONFIG, scorer=GameScorer(score))
    for task in TASKS:
        check(found[task.task_id], task, CONFIG, score)


@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_a_sample_whose_environment_fails_is_not_chosen(share):
    """Unless all fail."""

    def breaks(task, actions):
        return bool(actions) and draw("breaks", *(a.lower().split() for a in actions)) < share

    found = search(TASKS, CONFIG, pool=GamePool(breaks))
    for task in TASKS:
        check(found[task.task_id], task, CONFIG, breaks=breaks)
    assert any(rollout.failed_candidates for rollout in found.values())


def test_a_task_that_cannot_begin_is_an_error():
    pool = GamePool(lambda task, actions: task.task_id == "game/1")
    found = search(TASKS, CONFIG, pool=pool)
    assert found["game/1"].error == "the game broke"
    assert found["game/1"].trajectory.steps == ()
    check(found["game/2"], TASKS[2], CONFIG)


def test_concurrency_and_order_do_not_change_answers():
    expected = search(TASKS, dataclasses.replace(CONFIG, concurrency=1))
    scorer = GameScorer()
    found = search(TASKS[::-1], dataclasses.replace(CONFIG, concurrency=99), scorer=scorer)
    assert found == expected
    assert scorer.calls < scorer.groups  # tasks whose rounds end together are scored together


def test_sample_i_is_sample_i_of_best_of_n():
    """n is all that adapts: with cost 0 the answer is that of best-of-n."""
    fixed = BestOfN(n=4).run(GamePolicy(), GameScorer(), GamePool(), TASKS, 0)
    answers = {r.trajectory.task.task_id: r.trajectory for r in fixed}
    found = search(TASKS, dataclasses.replace(CONFIG, cost=0.0, most=4))
    assert {name: rollout.trajectory for name, rollout in found.items()} == answers
    policy = GamePolicy()
    search(TASKS, CONFIG, policy=policy)
    sampled = GamePolicy()
    list(rollouts(sampled, GamePool(), TASKS, n=CONFIG.most))
    assert set(policy.asked) < set(sampled.asked)
    assert len(policy.asked) == len(set(policy.asked))  # nothing is sampled twice


def test_a_missing_cost_is_named():
    with pytest.raises(UserError, match=r"cost has no value; run `agentrm calibrate`"):
        AdaptiveN().run(GamePolicy(), GameScorer(), GamePool(), TASKS, 0)
    assert set(AdaptiveN.thresholds) == {"cost"}
    for cost in AdaptiveN.thresholds["cost"]:
        assert AdaptiveN(cost=cost).cost == cost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 0}, "first must be at least 1"),
        ({"step": 0}, "step must be at least 1"),
        ({"first": 5, "most": 4}, r"first must be at most most, 4 \(got 5\)"),
        ({"cost": -0.1}, "cost must be at least 0"),
        ({"prior_strength": 0.0}, "prior_strength must be above 0"),
        ({"prior_deviation": 0.0}, "prior_deviation must be above 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        AdaptiveN(**options)
