"""What enters from an environment: valid texts, plain types, a return within [0, 1], an end."""

import dataclasses

import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure, Prompt
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs import contract
from agentrm_jax.envs.contract import ContractError
from agentrm_jax.envs.pool import EnvPool

TASK = Task(
    environment="mine", task_id="mine/1", kind="only", split="test", problem="1", max_steps=3,
    spec={},
)  # fmt: skip


class Mine:
    """An environment that answers what it was given, step by step."""

    def __init__(self, *answers, first="start", fork=None):
        self.answers, self.first, self.forked = list(answers), first, fork
        self.heard = []

    def reset(self, task):
        return self.first

    def step(self, action):
        self.heard.append(action)
        return self.answers.pop(0)

    def fork(self):
        return self.forked(self) if self.forked else Mine(*self.answers, first=self.first)


def answer(**given):
    return Transition(
        **{"observation": "seen", "reward": 0.0, "done": False, "success": False} | given
    )


def begun(*answers, **options):
    return contract.reset(Mine(*answers, **options), TASK)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "step must return a Transition (got None)"),
        (("seen", 0.0, True), "step must return a Transition (got tuple)"),
        (answer(observation=b"x"), "observation must be a str (got bytes)"),
        (answer(observation=None), "observation must be a str (got None)"),
        (answer(reward="1"), "reward must be a number (got str)"),
        (answer(reward=None), "reward must be a number (got None)"),
        (answer(reward=1j), "reward must be a number (got complex)"),
        (answer(reward=np.zeros(2)), "reward must be a number (got ndarray)"),
        (answer(reward=float("nan")), "reward must be a finite number (got nan)"),
        (answer(reward=np.float32("inf")), "reward must be a finite number (got inf)"),
        (answer(reward=10**400), "reward must be a finite number (got inf)"),
        (answer(reward=10),
         "the sum of the rewards must stay within 0 and 1 (got 10, of it 10 now)"),
        (answer(reward=-1.0),
         "the sum of the rewards must stay within 0 and 1 (got -1, of it -1 now)"),
        (answer(done=1), "done must be True or False (got 1)"),
        (answer(done=None), "done must be True or False (got None)"),
        (answer(success="yes\x1b"), r"success must be True or False (got 'yes\x1b')"),
        (answer(valid=np.array([True])), "valid must be True or False (got array([ True]))"),
    ],
)  # fmt: skip
def test_a_breach_names_the_step_and_what_was_returned(given, message):
    episode = begun(answer(), given)
    episode.step("first")
    with pytest.raises(ContractError) as raised:
        episode.step("second")
    assert str(raised.value) == f"step 2: {message}"


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (answer(reward=np.float32(0.5)), answer(reward=0.5)),
        (answer(reward=np.int64(1)), answer(reward=1.0)),
        (answer(reward=np.array(0.25)), answer(reward=0.25)),
        (answer(reward=True), answer(reward=1.0)),
        (answer(done=np.bool_(True), success=np.bool_(False)), answer(done=True)),
        (answer(observation=np.str_("text")), answer(observation="text")),
        (answer(reward=1 + 5e-7), answer(reward=1 + 5e-7)),
        (answer(observation="\ud83d\ude00 \ud83d"), answer(observation="\U0001f600 \ufffd")),
        (answer(observation="\x00\u202e"), answer(observation="\x00\u202e")),
    ],
)
def test_a_sound_answer_has_pythons_own_types_and_valid_text(given, plain):
    got = begun(given).step("act")
    assert got == plain
    fields = dataclasses.asdict(got)
    assert {name: type(value) for name, value in fields.items()} == {
        "observation": str, "reward": float, "done": bool, "success": bool, "valid": bool,
    }  # fmt: skip


def test_a_text_of_ten_megabytes_is_cut_and_marked():
    text = begun(answer(observation="x" * 10_000_000)).step("act").observation
    assert text == "x" * 1_000_000 + " ... [9,000,000 more characters]"


def test_rewards_that_are_sound_one_by_one_may_not_add_up_beyond_one():
    episode = begun(answer(reward=0.6), answer(reward=0.6))
    assert episode.step("a").reward == 0.6
    with pytest.raises(ContractError, match=r"step 2: .* \(got 1.2, of it 0.6 now\)"):
        episode.step("b")


def test_max_steps_ends_an_episode_that_its_environment_never_ends():
    episode = begun(*[answer()] * 5)
    assert [episode.step("a").done for _ in range(3)] == [False, False, True]
    with pytest.raises(ContractError, match="an action after step 3, which ended the episode"):
        episode.step("a")
    assert len(episode.environment.heard) == 3


def test_a_fork_counts_steps_and_rewards_of_its_own():
    parent = begun(answer(reward=0.5), answer(reward=0.5), answer(done=True))
    parent.step("a")
    copy = parent.fork()
    assert copy.step("b").reward == 0.5
    assert (parent.steps, copy.steps, parent.total, copy.total) == (1, 2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("fork", "message"),
    [
        (lambda self: self, "fork must return a copy (got the environment itself)"),
        (lambda self: "copy", "fork must return an environment (got str)"),
        (lambda self: [], "fork must return an environment (got list)"),
    ],
)
def test_what_fork_must_return(fork, message):
    with pytest.raises(ContractError) as raised:
        begun(fork=fork).fork()
    assert str(raised.value) == message


def test_fork_that_returns_nothing():
    episode = begun()
    episode.environment.fork = lambda: None
    with pytest.raises(ContractError, match=r"fork must return an environment \(got None\)"):
        episode.fork()


def test_the_first_observation_is_text_and_valid():
    assert contract.reset(Mine(first="\udc00"), TASK)[1] == "\ufffd"
    with pytest.raises(ContractError, match=r"reset must return a str \(got tuple\)"):
        contract.reset(Mine(first=("text", {})), TASK)


def test_an_environment_that_changes_its_task_changes_its_own():
    task = dataclasses.replace(TASK, spec={"words": ["a"]})

    class Changing(Mine):
        def reset(self, task):
            task.spec["words"].append("b")
            return " ".join(task.spec["words"])

    assert [contract.reset(Changing(), task)[1] for _ in range(2)] == ["a b", "a b"]
    assert task.spec == {"words": ["a"]}


def test_actions_reach_an_environment_as_valid_text():
    episode = begun(answer())
    episode.step("say \ud83d\ude00\udc00")
    assert episode.environment.heard == ["say \U0001f600\ufffd"]


class _Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


class _Leaving(Exception):
    def __str__(self):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb\x1b[31m \ud800"), r"ValueError: a b\x1b[31m " + "\ufffd"),
        (_Unspeakable(), "_Unspeakable:"),
        (_Leaving(), "_Leaving:"),
        (KeyError("k"), "KeyError: 'k'"),
    ],
)
def test_an_exception_as_one_printable_line(error, line):
    assert contract.reason_of(error) == line


class _Family:
    name, pooled, metric = "mine", False, "score"

    def __init__(self, *environments):
        self.environments = list(environments)

    def create(self):
        return self.environments.pop(0)


def test_the_pool_fails_the_episode_that_breaks_its_contract_and_no_other(monkeypatch):
    bad = [Mine(answer(), answer(reward=10.0)) for _ in range(2)]  # the second for the replay
    family = _Family(Mine(answer(), answer(done=True)), *bad)
    monkeypatch.setattr("agentrm_jax.envs.given.load_family", lambda name: family)
    pool = EnvPool(workers=0)
    (good, _), (broken, _) = pool.reset([TASK, TASK])
    pool.step([(good, "a"), (broken, "a")])
    sound, failure = pool.step([(good, "b"), (broken, "b")])
    assert sound == answer(done=True)
    assert failure == EnvironmentFailure(
        reason="environment 'mine', task 'mine/1': step 2: the sum of the rewards must stay within "
        "0 and 1 (got 10, of it 10 now)"
    )


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (None, "tasks must return a list (got None)"),
        ("ab", "tasks must return a list (got str)"),
        ([{}], "tasks must return Task records (got dict)"),
        ([dataclasses.replace(TASK, environment="other")],
         "task 'mine/1': environment must be 'mine' (got 'other')"),
        ([dataclasses.replace(TASK, max_steps=0)],
         "task 'mine/1': max_steps must be an integer from 1 to 100000 (got 0)"),
        ([dataclasses.replace(TASK, max_steps=True)],
         "task 'mine/1': max_steps must be an integer from 1 to 100000 (got True)"),
        ([dataclasses.replace(TASK, max_steps=10**9)],
         "task 'mine/1': max_steps must be an integer from 1 to 100000 (got 1000000000)"),
        ([dataclasses.replace(TASK, split="dev")],
         "task 'mine/1': split must be one of train, test, paper (got 'dev')"),
        ([dataclasses.replace(TASK, spec={"x": {1, 2}})],
         "task 'mine/1': spec must hold plain JSON values: Object of type set is not JSON "
         "serializable"),
        ([dataclasses.replace(TASK, spec={"x": (1, 2)})],
         "task 'mine/1': spec must hold plain JSON values: lists, not tuples; keys are texts"),
        ([dataclasses.replace(TASK, spec={"x": float("nan")})],
         "task 'mine/1': spec must hold plain JSON values: Out of range float values are not JSON "
         "compliant"),
        ([TASK, TASK], "task_id 'mine/1' is there twice"),
        ([dataclasses.replace(TASK, kind=3)], "task 'mine/1': expected text, got int"),
    ],
)  # fmt: skip
def test_a_list_of_tasks_that_cannot_be_used(tasks, message):
    with pytest.raises(UserError) as raised:
        contract.admit_tasks("mine", tasks)
    expected = message if message.startswith("tasks") else f"tasks: {message}"
    assert str(raised.value).split(": nan")[0] == f"environment 'mine': {expected}"


def test_tasks_and_prompts_come_out_with_valid_texts():
    (task,) = contract.admit_tasks(
        "mine", [dataclasses.replace(TASK, task_id="mine/\ud800", max_steps=np.int64(3))]
    )
    assert task == dataclasses.replace(TASK, task_id="mine/\ufffd")
    prompt = Prompt(instruction="\udfff", example=("\ud83d\ude00",))
    assert contract.admit_prompt(prompt) == Prompt(instruction="\ufffd", example=("\U0001f600",))
    with pytest.raises(ContractError, match="prompt must return a Prompt"):
        contract.admit_prompt("say something")


class _Foreign(_Family):
    """A family whose methods return or raise what they are told."""

    def __init__(self, **answers):
        self.answers = {"kinds": ["only"], "missing": None, "tasks": [TASK]} | answers

    def _answer(self, method):
        if isinstance(found := self.answers[method], BaseException):
            raise found
        return found

    def kinds(self):
        return self._answer("kinds")

    def missing(self):
        return self._answer("missing")

    def tasks(self, split, *, kinds, n, seed=0):
        return self._answer("tasks")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"tasks": ZeroDivisionError("no")}, "tasks: ZeroDivisionError: no"),
        ({"tasks": SystemExit(3)}, "tasks: SystemExit: 3"),
        ({"kinds": SystemExit("bye")}, "kinds: SystemExit: bye"),
        ({"kinds": None}, "kinds: must return a list of texts (got None)"),
        ({"kinds": "only"}, "kinds: must return a list of texts (got str)"),
        ({"kinds": [3]}, "kinds: TypeError: expected text, got int"),
    ],
)
def test_what_a_familys_methods_raise_names_the_environment_and_the_method(answers, message):
    with pytest.raises(UserError) as raised:
        contract.listed_tasks(_Foreign(**answers), "test", n=1)
    assert str(raised.value) == f"environment 'mine': {message}"


def test_what_an_environment_lacks_is_one_printable_line():
    assert contract.missing_of(_Foreign()) == ""
    assert contract.missing_of(_Foreign(missing="get\nit\x1b[2J")) == r"get\nit\x1b[2J"
    with pytest.raises(UserError, match="environment 'mine': missing: KeyError: 'x'"):
        contract.missing_of(_Foreign(missing=KeyError("x")))


def test_an_interruption_is_no_mistake_of_an_environment():
    with pytest.raises(KeyboardInterrupt):
        contract.listed_tasks(_Foreign(tasks=KeyboardInterrupt()), "test", n=1)


@pytest.mark.parametrize(("example", "kind"), [("ab", "str"), (None, "None")])
def test_a_prompts_example_is_no_text(example, kind):
    with pytest.raises(ContractError, match=rf"example must be a tuple of texts \(got {kind}\)"):
        contract.admit_prompt(Prompt(instruction="x", example=example))
