"""Policies of plain functions, with threads and without; the conversation of a state."""

import threading
import time

import pytest

import agentrm_jax as arm
from agentrm_jax.core.protocols import Question
from agentrm_jax.testing import GUESS_PROMPT, Guess, guess_policy, guess_scorer, guess_tasks

TASKS = guess_tasks(6)


def played(policy) -> list[arm.Trajectory]:
    with arm.EnvPool({"guess": Guess}) as envs:
        found = list(arm.rollouts(policy, envs, TASKS, n=2, seed=5))
    return [
        r.trajectory for r in sorted(found, key=lambda r: (r.trajectory.task.task_id, r.sample))
    ]


def slow(state: arm.Trajectory, n: int, seed: int) -> list[str]:
    """Replies after a time that depends on the call, so that calls end out of order."""
    time.sleep(seed % 4 / 1000)
    return guess_policy(state, n, seed)


def question(number: int, n: int = 1) -> Question:
    state = arm.Trajectory(task=TASKS[number], first_observation="Guess a number from 1 to 30.")
    return Question(state, "one", n)


def policy_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "ThreadPool" in thread.name}


def test_threads_change_no_answer():
    expected = played(guess_policy)
    assert played(arm.FunctionPolicy(slow, concurrency=4)) == expected
    assert played(arm.FunctionPolicy(slow, concurrency=1)) == expected


def test_threads_change_no_search():
    with arm.EnvPool({"guess": Guess}) as envs:

        def searched(policy):
            trees = arm.explore(policy, envs, TASKS[:3], num_iterations=5, expansion_width=3)
            beams = arm.beam_search(policy, guess_scorer, envs, TASKS, beam_width=2)
            kept = {r.trajectory.task.task_id: r.trajectory for r in beams}
            return [tree.nodes for tree in trees], kept

        assert searched(arm.FunctionPolicy(slow, concurrency=4)) == searched(guess_policy)


def test_calls_run_at_the_same_time():
    both = threading.Barrier(2, timeout=20)

    def meets(state, n, seed):
        both.wait()  # breaks if the other call does not run
        return ["Action: guess 1"] * n

    policy = arm.FunctionPolicy(meets, concurrency=2)
    assert policy.room() == 2
    tickets = policy.submit([question(0), question(1)])
    assert policy.room() == 0
    answers = {}
    while len(answers) < 2:
        answers |= policy.collect()
    assert sorted(answers) == sorted(tickets)
    assert policy.room() == 2


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_error_names_the_task(concurrency):
    def fails(state, n, seed):
        if state.task == TASKS[2]:
            raise ConnectionError("no answer")
        return guess_policy(state, n, seed)

    with pytest.raises(ConnectionError, match="no answer") as caught:
        played(arm.FunctionPolicy(fails, concurrency=concurrency))
    assert caught.value.__notes__ == [f"raised by the policy function for task {TASKS[2].task_id}"]


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize(
    ("replies", "message"),
    [
        (["Action: guess 1"], "must return 2 texts for task guess/0/0 (got 1)"),
        ("Action: guess 1", "must return a list of 2 texts for task guess/0/0 (got str)"),
        (["Action: guess 1", 2], "must return texts for task guess/0/0 (got int among them)"),
    ],
)
def test_a_wrong_return_value_names_the_task(concurrency, replies, message):
    policy = arm.FunctionPolicy(lambda state, n, seed: replies, concurrency=concurrency)
    policy.submit([question(0, 2)])
    with pytest.raises(arm.UserError) as caught:
        policy.collect()
    assert message in str(caught.value)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_end_with_the_search(fails):
    before = policy_threads()

    def function(state, n, seed):
        if fails:
            raise ConnectionError("no answer")
        return guess_policy(state, n, seed)

    policy = arm.FunctionPolicy(function, concurrency=4)
    try:
        played(policy)
    except ConnectionError:
        assert fails
    deadline = time.monotonic() + 10
    while policy_threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not policy_threads() - before


def test_after_an_error_no_further_call_is_made():
    calls = []

    def function(state, n, seed):
        calls.append(state.task.task_id)
        time.sleep(0.05)
        raise ConnectionError("no answer")

    policy = arm.FunctionPolicy(function, concurrency=2)
    policy.submit([question(i % 6) for i in range(50)])
    with pytest.raises(ConnectionError):
        policy.collect()
    time.sleep(0.2)
    assert len(calls) <= 6
    assert policy.collect() == []
    assert policy.room() == 2


def test_the_seed_of_a_call_follows_from_its_question_alone():
    seeds: dict[str, list[int]] = {}

    def records(state, n, seed):
        seeds.setdefault(state.task.task_id, []).append(seed)
        return guess_policy(state, n, seed)

    def asked(numbers, seed):
        seeds.clear()
        arm.propose(
            arm.FunctionPolicy(records, seed=seed),
            [(question(i).state, "one") for i in numbers],
            1,
        )
        return dict(seeds)

    everything = asked(range(4), seed=1)
    assert asked([2], seed=1) == {TASKS[2].task_id: everything[TASKS[2].task_id]}
    assert asked([2], seed=2) != {TASKS[2].task_id: everything[TASKS[2].task_id]}
    assert len({seed for [seed] in everything.values()}) == 4


def test_a_seed_of_its_own_comes_before_that_of_the_search():
    own = arm.FunctionPolicy(guess_policy, seed=5)
    assert own.with_seed(7).seed == 5
    assert arm.FunctionPolicy(guess_policy).with_seed(7).seed == 7


def test_wrong_arguments():
    with pytest.raises(arm.UserError, match="policy must be a function"):
        arm.FunctionPolicy("guess")  # type: ignore[arg-type]
    with pytest.raises(arm.UserError, match="concurrency must be at least 1"):
        arm.FunctionPolicy(guess_policy, concurrency=0)


def test_the_messages_of_a_state():
    step = arm.Step(
        reply="Thought: the middle.\nAction: guess 15",
        action="guess 15",
        transition=arm.Transition(observation="Too low.", reward=0, done=False, success=False),
    )
    start = arm.Trajectory(task=TASKS[0], first_observation="Guess a number from 1 to 30.")
    assert start.messages() == [{"role": "user", "content": "Guess a number from 1 to 30."}]
    assert start.extended(step).messages() == [
        {"role": "user", "content": "Guess a number from 1 to 30."},
        {"role": "assistant", "content": "Thought: the middle.\nAction: guess 15"},
        {"role": "user", "content": "Too low."},
    ]
    told = start.extended(step).messages(GUESS_PROMPT)
    assert [message["role"] for message in told] == ["user", "assistant"] * 3 + ["user"]
    *example, last = GUESS_PROMPT.example  # ends with the environment's text
    assert [message["content"] for message in told] == [
        GUESS_PROMPT.instruction, "OK.", *example, f"{last}\n\nGuess a number from 1 to 30.",
        "Thought: the middle.\nAction: guess 15", "Too low.",
    ]  # fmt: skip
    assert [m["content"] for m in start.messages(arm.Prompt(instruction="Play."))] == [
        "Play.", "OK.", "Guess a number from 1 to 30.",
    ]  # fmt: skip
    whole = arm.Prompt(instruction="Play.", example=tuple(example))
    contents = [m["content"] for m in start.messages(whole)]
    assert contents == ["Play.", "OK.", *example, "Guess a number from 1 to 30."]
