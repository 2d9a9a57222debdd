"""Curves of score against tokens: best-of-k by enumeration, equal tokens by plain loops."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from report_cases import step, task

from agentrm_jax.core.records import Trajectory
from agentrm_jax.evaluation.curves import best_of_k_rows, curves, equal_tokens, oracle_scores
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.search.rollouts import Rollout

N = 4


def rollout(number: int, sample: int, generator: random.Random) -> Rollout:
    outcome = generator.choice((0.0, 0.25, 1.0))
    steps = (step("go", "so", reward=outcome, done=generator.random() < 0.9),)
    return Rollout(
        trajectory=Trajectory(task=task(number), first_observation="", steps=steps),
        sample=sample,
        policy_tokens=generator.randrange(1, 60),
        error=None if generator.random() < 0.9 else "broke",
    )


def made(seed: int, tasks: int = 9):
    """Trajectories of some tasks, with scores of which some are equal."""
    generator = random.Random(seed)
    groups = {
        task(number).task_id: [rollout(number, sample, generator) for sample in range(N)]
        for number in range(tasks)
    }
    scores = {name: [float(generator.randrange(3)) for _ in own] for name, own in groups.items()}
    return groups, scores


def best_of(group, scores, chosen) -> float:
    """The outcome of the best of some trajectories: the first of equals, ended ones first."""

    def key(i: int):
        return (group[i].trajectory.done, scores[i] if group[i].trajectory.done else 0.0, -i)

    best = group[max(chosen, key=key)]
    return 0.0 if best.error else best.trajectory.outcome


def enumerated(group, scores, k: int) -> float:
    found = [best_of(group, scores, chosen) for chosen in itertools.combinations(range(N), k)]
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(3))
def test_best_of_k_is_the_mean_over_all_draws(seed: int) -> None:
    groups, scores = made(seed)
    rows = best_of_k_rows(groups, {"explicit": scores}, score_at="action", seed=3, sampling_seed=2)
    assert len(rows) == len(groups)
    for row in rows:
        group, own = groups[row["task_id"]], scores[row["task_id"]]
        assert row["scores"] == pytest.approx([enumerated(group, own, k + 1) for k in range(N)])
        assert row["policy_tokens"] == sum(r.policy_tokens for r in group) / N
        assert (row["score_at"], row["seed"], row["sampling_seed"]) == ("action", 3, 2)


def test_no_decision_is_worth_nothing() -> None:
    groups, scores = made(0, 1)
    [name] = groups
    scores[name][1] = math.nan
    [row] = best_of_k_rows(groups, {"judge": scores})
    assert row["scores"] == [0.0] * N


def episode(number: int, outcome: float, tokens: int, method: str = "beam", **labels) -> Episode:
    return Episode(
        task=task(number), method=method, seed=0, outcome=outcome, success=float(outcome == 1),
        policy_tokens=tokens, env_steps=1, wall_seconds=0.0, steps=1, **labels,
    )  # fmt: skip


def test_points_of_a_curve() -> None:
    rows, scores = [], []
    groups, own = made(1)
    for seed in range(2):  # two sampling seeds of the same tasks
        groups, own = made(seed)
        scores.append((groups, own))
        rows += best_of_k_rows(
            groups, {"explicit": own, **oracle_scores(groups)}, sampling_seed=seed
        )
    sampled = [episode(n, 0.0, 0, "best_of_n", n=N, reward_model="explicit") for n in range(9)]
    greedy = [episode(n, n % 2, 10 + n, "greedy") for n in range(9)]
    found = curves([*sampled, *greedy], rows)
    assert {(p["label"], p["method"]) for p in found} == {
        ("best-of-n, explicit", "best_of_n"), ("oracle-of-n", "oracle_of_n"), ("greedy", "greedy")
    }  # fmt: skip
    for k in range(1, N + 1):
        [point] = [p for p in found if (p["k"], p["reward_model"]) == (k, "explicit")]
        means, tokens = [], []
        for name in groups:
            both = [enumerated(g[name], s[name], k) for g, s in scores]
            means.append(sum(both) / 2)
            tokens.append(sum(r.policy_tokens for g, _ in scores for r in g[name]) / (2 * N))
        assert point["score_mean"] == pytest.approx(sum(means) / 9)
        assert point["tokens"] == pytest.approx(k * sum(tokens) / 9)
        assert point["score_ci95"][0] <= point["score_mean"] <= point["score_ci95"][1]
        assert point["n_tasks"] == 9
    [point] = [p for p in found if p["label"] == "greedy"]
    assert (point["k"], point["tokens"], point["score_mean"]) == (None, 14.0, pytest.approx(4 / 9))


@pytest.mark.parametrize("multiple", [0.5, 1.0, 2.6, 4.0, 7.0])
def test_searches_are_compared_at_equal_tokens(multiple: float) -> None:
    """The mixture of two best-of-k that costs what the search costs, task by task."""
    generator = random.Random(0)
    groups, scores = made(2)
    rows = best_of_k_rows(groups, {"explicit": scores})
    each = sum(r.policy_tokens for own in groups.values() for r in own) / (9 * N)
    budget = round(multiple * each)
    searched = [
        episode(n, generator.random(), budget, reward_model="explicit", beam_width=2,
                expansion_width=2)
        for n in range(9)
    ]  # fmt: skip
    sampled = [episode(n, 0.0, 0, "best_of_n", n=N, reward_model="explicit") for n in range(9)]
    [found] = [r for r in equal_tokens([*searched, *sampled], rows) if r["split"] == "all"]
    k = min(max(budget / each, 1.0), N)
    low = min(int(k), N - 1)
    expected = 0.0
    for each_episode in searched:
        group, own = groups[each_episode.task.task_id], scores[each_episode.task.task_id]
        chance = k - low  # of drawing one trajectory more
        best = (1 - chance) * enumerated(group, own, low) + chance * enumerated(group, own, low + 1)
        expected += (each_episode.outcome - best) / 9
    assert found["difference"] == pytest.approx(expected)
    assert found["k"] == pytest.approx(k)
    assert found["a_tokens"] == budget
    assert found["b_tokens"] == pytest.approx(k * each)
    assert found["equal"] == (1 <= budget / each <= N)
    assert found["b_label"] == f"best-of-{k:.3g}, explicit"
    assert found["n_tasks"] == 9


def test_more_than_five_searches_are_corrected() -> None:
    groups, scores = made(2)
    rows = best_of_k_rows(groups, {"explicit": scores})
    generator = random.Random(0)
    sampled = [episode(n, 0.0, 0, "best_of_n", n=N, reward_model="explicit") for n in range(9)]
    found = [
        [
            episode(n, generator.random(), 50, "beam", reward_model="explicit", beam_width=width)
            for n in range(9)
        ]
        for width in range(1, 7)
    ]
    five = equal_tokens([*sampled, *(e for own in found[:5] for e in own)], rows)
    assert all("p_holm" not in row for row in five)
    six = equal_tokens([*sampled, *(e for own in found for e in own)], rows)
    assert all(row["p_holm"] >= row["p_value"] for row in six)
    best = min(row["p_value"] for row in six if row["split"] == "all")
    assert min(row["p_holm"] for row in six if row["split"] == "all") == min(1.0, 6 * best)


def test_a_method_without_its_reward_model_in_best_of_n_is_left_out() -> None:
    groups, scores = made(2)
    rows = best_of_k_rows(groups, {"explicit": scores})
    sampled = [episode(n, 0.0, 0, "best_of_n", n=N, reward_model="explicit") for n in range(9)]
    other = [episode(n, 0.0, 5, reward_model="implicit") for n in range(9)]
    assert equal_tokens([*sampled, *other], rows) == []
    assert equal_tokens(other, []) == []
