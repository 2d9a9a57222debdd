"""Comparisons of methods: numbers against cases done by hand, and the printed table."""

import dataclasses

import pytest

import agentrm_jax as arm
from agentrm_jax.search.methods import Beam, BestOfN
from agentrm_jax.testing import Guess, guess_policy, guess_scorer, guess_tasks

TASKS = guess_tasks(4)


def rollout(task: arm.Task, outcome: float, sample: int = 0, *, error=None, steps: int = 1):
    """A trajectory of some steps, of which the last one pays the outcome."""
    turns = tuple(
        arm.Step(
            reply=f"Action: guess {i}",
            action=f"guess {i}",
            transition=arm.Transition(
                observation="So.",
                reward=outcome if i == steps - 1 else 0.0,
                done=error is None and i == steps - 1,
                success=outcome == 1,
            ),
        )
        for i in range(steps)
    )
    trajectory = arm.Trajectory(task=task, first_observation="Guess.", steps=turns)
    return arm.Rollout(trajectory=trajectory, sample=sample, error=error)


def group(task: arm.Task, outcomes: list[float], chosen: int | None, steps=(1, 1, 1)):
    rollouts = tuple(
        rollout(task, outcome, i, steps=length)
        for i, (outcome, length) in enumerate(zip(outcomes, steps, strict=True))
    )
    return arm.BestOfN(task=task, rollouts=rollouts, scores=(0.5, 0.4, 0.3), chosen=chosen)


GROUPS = [
    group(TASKS[0], [1.0, 0.0, 0.0], 0, steps=(3, 1, 2)),
    group(TASKS[1], [0.0, 1.0, 0.5], 1, steps=(2, 3, 1)),
    group(TASKS[2], [0.0, 0.0, 0.0], 0),
    group(TASKS[3], [1.0, 1.0, 0.0], None),  # the reward model could not decide
]


def means(comparison: arm.MethodComparison) -> dict[str, float]:
    return {method.name: method.score.mean for method in comparison.methods}


def test_means_and_differences_of_a_case_done_by_hand():
    greedy = [rollout(TASKS[i], outcome) for i, outcome in ((0, 0.5), (1, 0.0), (2, 0.25))]
    found = arm.compare({"best": GROUPS, "greedy": greedy})
    best, other = found.methods
    assert (best.score.mean, best.score.n, best.difference) == (0.5, 4, None)
    assert (other.score.mean, other.score.n) == (0.25, 3)
    assert other.difference is not None
    # Only the three tasks that both have: (1 - 0.5) + (1 - 0) + (0 - 0.25), over three.
    assert other.difference.mean == pytest.approx(1.25 / 3)
    assert other.difference.n == 3
    assert -0.25 <= other.difference.low < other.difference.mean < other.difference.high <= 1


def test_baselines_of_a_case_done_by_hand():
    found = means(arm.compare(GROUPS, baselines=["random", "shortest", "oracle"]))
    assert found == {
        "best of 3": 0.5,
        "random of 3": pytest.approx((1 / 3 + 1.5 / 3 + 0 + 2 / 3) / 4),
        "shortest of 3": pytest.approx((0 + 0.5 + 0 + 1) / 4),
        "oracle of 3": pytest.approx((1 + 1 + 0 + 1) / 4),
    }


def test_a_trajectory_that_ended_by_an_error_counts_as_zero():
    answers = [rollout(TASKS[0], 1.0), rollout(TASKS[1], 1.0, error="guess: it broke")]
    assert means(arm.compare({"a": answers})) == {"a": 0.5}


def test_methods_without_a_common_task_have_no_difference():
    found = arm.compare({"a": [rollout(TASKS[0], 1.0)], "b": [rollout(TASKS[1], 0.0)]})
    assert found.methods[1].difference is None


def test_the_printed_table():
    same = [rollout(task, outcome) for task, outcome in zip(TASKS, (1, 1, 0, 1), strict=True)]
    table = str(arm.compare({"first": same, "a longer name": same[:2]}))
    head, first, second = table.splitlines()
    assert head == (
        "method         tasks  mean   95% interval    first is better by       p      smallest"
    )
    assert first.startswith("first          4      0.750  [")
    assert second == (
        "a longer name  2      1.000  [0.158, 1.000]  +0.000 [+0.000, +0.000]  1.000"
    )  # 0.025 ** (1 / 2) = 0.158
    assert all(line == line.rstrip() for line in table.splitlines())


@pytest.mark.parametrize(
    ("results", "baselines", "message"),
    [
        ([], [], "method: must have an answer for at least one task"),
        ({"x": [rollout(TASKS[0], 1), rollout(TASKS[0], 0)]}, [], "x: must have one answer"),
        ([rollout(TASKS[0], 1.0)], ["random"], "baselines choose among the trajectories"),
        (GROUPS, ["best"], "baselines must be one of random, .*oracle.*got 'best'"),
    ],
)
def test_what_is_refused(results, baselines, message):
    with pytest.raises(arm.UserError, match=message):
        arm.compare(results, baselines)


def test_no_method_at_all_is_refused():
    with pytest.raises(arm.UserError, match="at least one method"):
        arm.compare({})


def test_evaluating_methods_gives_what_each_gives_alone():
    methods = {"best": BestOfN(n=3), "beam": Beam(beam_width=2, expansion_width=3)}
    with arm.EnvPool({"guess": Guess}) as envs:
        both = arm.evaluate(methods, guess_policy, guess_scorer, envs, TASKS, seed=3)
        best = arm.best_of_n(guess_policy, guess_scorer, envs, TASKS, n=3, seed=3)
        beam = arm.beam_search(
            guess_policy, guess_scorer, envs, TASKS, beam_width=2, expansion_width=3, seed=3
        )
        assert both == arm.compare({"best": best, "beam": list(beam)})
        again = arm.evaluate(methods, guess_policy, guess_scorer, envs, TASKS, seed=3)
        assert again == both


def test_more_than_five_differences_are_corrected():
    def answers(outcomes):
        return [rollout(task, outcome) for task, outcome in zip(TASKS, outcomes, strict=True)]

    worse = {f"worse {i}": answers((0, 0, 0, 0)) for i in range(6)}
    few, many = (
        arm.compare({"best": answers((1, 1, 1, 1)), **dict(list(worse.items())[:count])})
        for count in (5, 6)
    )
    assert [method.p_value for method in few.methods] == [None, *[0.125] * 5]  # 2 / 2 ** 4
    assert [method.p_value for method in many.methods] == [None, *[0.75] * 6]
    assert many.methods[1].smallest_difference is None  # the same difference on all tasks


def test_blind_scores_are_taken_before_the_last_answer():
    def answered(states):
        return [float(bool(state.steps) and state.steps[-1].answered) for state in states]

    seen = []

    def scorer(states):
        seen.extend(answered(states))
        return answered(states)

    with arm.EnvPool({"guess": Guess}) as envs:
        for place, wanted in (("observation", {1.0}), ("action", {0.0})):
            seen.clear()
            arm.evaluate({"best": BestOfN(n=2)}, guess_policy, scorer, envs, TASKS, score_at=place)
            assert set(seen) == wanted
        with pytest.raises(arm.UserError, match="place must be one of observation, action"):
            arm.evaluate(["best_of_n"], guess_policy, scorer, envs, TASKS, score_at="end")


def test_evaluating_registered_methods_by_name():
    with arm.EnvPool({"guess": Guess}) as envs:
        found = arm.evaluate(["best_of_n", "beam"], guess_policy, guess_scorer, envs, TASKS)
        assert [method.name for method in found.methods] == ["best_of_n", "beam"]
        with pytest.raises(arm.UserError, match="best_of_m"):
            arm.evaluate(["best_of_m"], guess_policy, guess_scorer, envs, TASKS)


def test_scores_do_not_depend_on_the_order_of_answers():
    backwards = arm.compare({"best": GROUPS[::-1]})
    assert means(backwards) == means(arm.compare({"best": GROUPS}))
    assert dataclasses.is_dataclass(backwards)
