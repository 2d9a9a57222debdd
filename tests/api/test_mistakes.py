"""What a caller of the Python API reads after a mistake."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

import agentrm_jax as arm
from agentrm_jax.pipeline.model_folders import Prompts
from agentrm_jax.search.methods import Beam
from agentrm_jax.testing import Guess, guess_policy, guess_scorer, guess_tasks

TASKS = guess_tasks(3)


class Broken:
    """An environment without `fork` whose answers are wrong."""

    answer: object = "a text"

    def reset(self, task):
        return "Begin."

    def step(self, action):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Raising(Broken):
    answer = ValueError("no such lamp")


class WithInfo(Broken):
    def reset(self, task):
        return "Begin.", {}


def best(environment=Guess, *, policy=guess_policy, scorer=guess_scorer, tasks=TASKS, n=2):
    with arm.EnvPool({"guess": environment}) as envs:
        return arm.best_of_n(policy, scorer, envs, tasks, n=n)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (Broken, "step 1: step must return a Transition (got str)"),
        (Raising, "step 1: ValueError: no such lamp"),
        (WithInfo, "reset must return a str (got tuple)"),
    ],
)
def test_a_table_names_what_broke_its_trajectories(environment, reason):
    results = best(
        environment,
        policy=lambda state, n, seed: ["Thought: Try.\nAction: guess 1"] * n,
        scorer=lambda states: [0.5] * len(states),
    )
    table = str(arm.compare(results))
    assert "best of 2: 6 of 6 trajectories ended by an error, outcome 0; the first: " in table
    assert table.endswith(f"environment 'guess', task {TASKS[0].task_id!r}: {reason}")


def test_a_table_says_that_replies_hold_no_action():
    silent = best(policy=lambda state, n, seed: ["guess 3"] * n)
    steps = sum(len(r.trajectory.steps) for result in silent for r in result.rollouts)
    assert f"best of 2: {steps} of {steps} replies hold no action" in str(arm.compare(silent))
    assert arm.compare(best()).notes == ()


def test_iterators_of_answers_are_compared():
    with arm.EnvPool({"guess": Guess}) as envs:
        table = arm.compare(arm.rollouts(guess_policy, envs, TASKS), baselines=())
    assert table.methods[0].score.n == len(TASKS)
    with pytest.raises(arm.UserError, match="answers of at least one method"):
        arm.compare({})


TASK = {"environment": "guess", "task_id": "a", "max_steps": 3}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (TASKS[0], r"tasks must be a list of Task \(got Task\)"),
        ([TASK], r"tasks must be a list of Task \(got dict in it\)"),
        ([TASKS[0], TASKS[0]], "task_id must be unique .got .* twice."),
        ([arm.Task(**TASK | {"task_id": ""})], "task_id must be a text that is not empty"),
        ([arm.Task(**TASK | {"task_id": 3})], r"task_id must be a text .*\(got 3\)"),
        ([arm.Task(**TASK | {"max_steps": 0})], r"a: max_steps must be a whole number from 1 to"),
        ([arm.Task(**TASK | {"max_steps": "3"})], r"max_steps must .*\(got '3'\)"),
    ],
)
def test_wrong_tasks_are_refused_by_every_search(tasks, message):
    with arm.EnvPool({"guess": Guess}) as envs:
        searches = [
            lambda: arm.best_of_n(guess_policy, guess_scorer, envs, tasks),
            lambda: list(arm.beam_search(guess_policy, guess_scorer, envs, tasks)),
            lambda: arm.explore(guess_policy, envs, tasks, num_iterations=1),
            lambda: arm.evaluate({"b": Beam()}, guess_policy, guess_scorer, envs, tasks),
        ]
        for search in searches:
            with pytest.raises(arm.UserError, match=message):
                search()
        expected = contextlib.nullcontext() if "twice" in message else pytest.raises(arm.UserError)
        with expected:
            list(arm.rollouts(guess_policy, envs, tasks))


@pytest.mark.parametrize("n", [0, "3", 1.5])
def test_numbers_of_trajectories_are_whole(n):
    with pytest.raises(arm.UserError, match="n must be at least 1"):
        best(n=n)
    assert len(best(n=np.int64(2))[0].rollouts) == 2


@pytest.mark.parametrize("environments", [Guess, [Guess], 3])
def test_a_pool_says_how_classes_are_given(environments):
    with pytest.raises(arm.UserError, match=r'classes by name, such as \{"guess": Guess\}'):
        arm.EnvPool(environments)


def test_an_unknown_environment_is_compared_with_the_names_of_the_pool():
    with arm.EnvPool({"gues": Guess}) as envs, pytest.raises(arm.UserError) as error:
        arm.best_of_n(guess_policy, guess_scorer, envs, TASKS)
    assert str(error.value) == (
        "environment 'guess': neither given to the pool, which has gues, nor registered"
    )


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("puct", r"selection must be a rule, such as UCB\(\) or PUCT\(\)"),
        (arm.PUCT, r"selection must be an instance, such as PUCT\(\)"),
        (lambda children: None, r"a score for each child, here \[1, 6\] \(got NoneType\)"),
        (lambda children: children.value[0], r"here \[1, 6\] \(got \[6\]\)"),
    ],
)
def test_what_is_no_selection_rule_is_refused(selection, message):
    with arm.EnvPool({"guess": Guess}) as envs, pytest.raises(arm.UserError, match=message):
        arm.explore(guess_policy, envs, TASKS[:1], selection=selection, num_iterations=2)


@pytest.mark.parametrize(
    "selection",
    [
        lambda children: children.value if children.visits[0, 0] > 0 else -children.value,
        lambda children: np.sqrt(children.value),
    ],
)
def test_a_rule_that_cannot_be_compiled_says_what_to_use(selection):
    with arm.EnvPool({"guess": Guess}) as envs, pytest.raises(Exception) as error:  # noqa: PT011
        arm.explore(guess_policy, envs, TASKS[:1], selection=selection, num_iterations=2)
    assert "use jax.numpy, and jnp.where instead of if" in error.value.__notes__[0]


def by_prior(children):
    return children.value + children.prior / (1 + jnp.sqrt(children.visits))


def test_a_store_resumes_and_refuses_another_search(tmp_path):
    def explore(n=3, **options):
        with arm.EnvPool({"guess": Guess}) as envs:
            options = {"selection": by_prior, "num_iterations": 4, **options}
            return arm.explore(guess_policy, envs, TASKS[:n], store=tmp_path / "trees", **options)

    first = explore(n=2)
    lines = (tmp_path / "trees" / "trees.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trees" / "trees.jsonl").write_text("".join(lines[:-3]))
    assert explore(n=2) == first
    assert explore()[:2] == first
    for changed, message in [
        ({"num_iterations": 8}, "num_iterations = 4 .got 8."),
        ({"expansion_width": 2}, "expansion_width = 5 .got 2."),
        ({"selection": arm.PUCT()}, "selection = .*by_prior.* .got 'PUCT"),
    ]:
        with pytest.raises(arm.UserError, match=message):
            explore(**changed)
    (tmp_path / "trees" / "search.json").unlink()  # as the trees of a run
    assert explore()[:2] == first


def test_a_prompt_is_a_record():
    with pytest.raises(arm.UserError, match=r"prompts\['guess'\] must be a Prompt or None"):
        Prompts({"guess": "Guess the number."})
