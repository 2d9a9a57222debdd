"""What a policy or a reward model returns: valid and plain, or one error that names the mistake."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.proposals import AdmittedPolicy, admitted, scores_of
from agentrm_jax.core.protocols import Proposal, Question, propose
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.core.text import MAX_CHARACTERS

STATE = Trajectory(
    task=Task(
        environment="toy", task_id="toy/\x1b0", kind="easy", split="train", problem="0" * 16,
        max_steps=9, spec={},
    ),
    first_observation="Goal.",
)  # fmt: skip
GOOD = Proposal(reply="Action: go", action="go", token_ids=(1, 2), log_probs=(-1.0, -0.5, -2.0))


class Plugin:
    """A policy that answers every question at once with what `say` gives."""

    def __init__(self, say, tickets=None):
        self.say, self.tickets, self.done = say, tickets, []

    def submit(self, questions):
        numbers = list(range(len(questions)))
        self.done = [(k, self.say(q)) for k, q in zip(numbers, questions, strict=True)]
        return numbers if self.tickets is None else self.tickets

    def collect(self):
        return self.done

    def room(self):
        return 8


def asked(policy, n=2):
    door = AdmittedPolicy(policy)
    door.submit([Question(STATE, "expand/0", n)])
    return door.collect()


def test_a_good_turn_passes_as_it_is():
    assert asked(Plugin(lambda q: [GOOD] * q.n)) == [(0, [GOOD, GOOD])]


def test_texts_become_valid_and_bounded_and_numbers_plain():
    raw = Proposal(
        reply="\ud83d\ude00 \ud83d", action="go " * MAX_CHARACTERS, token_ids=np.array([3, 4]),
        log_probs=[np.float32(-0.5), -1], stopped=np.bool_(False), truncated_steps=np.int64(2),
    )  # fmt: skip
    made = admitted(raw, "toy/0")
    assert made.reply == "\U0001f600 \ufffd"
    assert made.action.endswith("... [2,000,000 more characters]")
    assert (made.token_ids, made.log_probs) == ((3, 4), (-0.5, -1.0))
    assert (made.stopped, made.truncated_steps) == (False, 2)
    assert [type(x) for x in (*made.token_ids, *made.log_probs)] == [int, int, float, float]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reply", None, "reply of a turn .* must be text .got None"),
        ("reply", b"go", "reply of a turn .* must be text"),
        ("action", 3, "action of a turn .* must be text"),
        ("token_ids", (1.5,), "token_ids of a turn .* must hold numbers"),
        ("token_ids", ("1",), "token_ids of a turn .* must hold numbers"),
        ("token_ids", None, "token_ids of a turn .* must hold numbers"),
        ("token_ids", (True,), "token_ids of a turn .* must hold numbers"),
        ("token_ids", (-1,), "token_ids of a turn .* must be at least 0"),
        ("log_probs", (math.nan,), "log_probs of a turn .* must be finite .got nan"),
        ("log_probs", (-math.inf,), "log_probs of a turn .* must be finite"),
        ("log_probs", (-(10**400),), "log_probs of a turn .* must be finite"),
        ("log_probs", (np.complex64(1j),), "log_probs of a turn .* must hold numbers"),
        ("token_ids", (2**31,), "token_ids of a turn .* must be at least 0 and below"),
        ("log_probs", "ab", "log_probs of a turn .* must hold numbers"),
        ("stopped", "yes", "stopped of a turn .* must be true or false"),
        ("truncated_steps", -1, "truncated_steps of a turn .* must be at least 0"),
    ],
)
def test_a_field_that_cannot_be_names_itself_and_the_task(field, value, message):
    wrong = dataclasses.replace(GOOD, **{field: value})
    with pytest.raises(UserError, match=message) as caught:
        asked(Plugin(lambda q: [GOOD, wrong]))
    assert r"toy/\x1b0" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Plugin(lambda q: []), r"must propose 2 turns for task .* \(got 0\)"),
        (Plugin(lambda q: [GOOD] * 3), r"must propose 2 turns for task .* \(got 3\)"),
        (Plugin(lambda q: None), r"must propose 2 turns for task .* \(got None\)"),
        (Plugin(lambda q: ["Action: go"] * 2), r"proposals of a turn .* must be Proposal"),
        (Plugin(lambda q: [GOOD] * 2, tickets=[]), r"submit must return 1 tickets \(got \[\]\)"),
        (Plugin(lambda q: [GOOD] * 2, tickets=None), None),
        (Plugin(lambda q: [GOOD] * 2, tickets=[7]), r"collect returned an unknown ticket \(0\)"),
        (Plugin(lambda q: [GOOD] * 2, tickets=["a"]), r"tickets must be distinct whole numbers"),
    ],
)
def test_a_policy_that_breaks_the_protocol_is_one_error(policy, message):
    if message is None:
        assert len(asked(policy)) == 1
        return
    with pytest.raises(UserError, match=f"policy: {message}"):
        asked(policy)


@pytest.mark.parametrize("room", [None, 2.5, "8"])
def test_room_is_a_whole_number(room):
    policy = Plugin(lambda q: [GOOD] * q.n)
    policy.room = lambda: room
    with pytest.raises(UserError, match="policy: room must return a whole number"):
        AdmittedPolicy(policy).room()


class Scores:
    def __init__(self, scores):
        self.scores = scores

    def score(self, groups):
        return self.scores

    def cost(self, group):
        return 0


def test_scores_that_are_not_finite_are_no_decision():
    scores = scores_of(Scores([[1, np.float32(0.5)], [math.inf]]), [[STATE] * 2, [STATE]])
    assert scores[0] == [1.0, 0.5]
    assert math.isnan(scores[1][0])


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, 2.0, 3.0], [1.0]], [1.0], None, [["a"], [1]]])
def test_scores_of_another_form_are_one_error(scores):
    with pytest.raises(UserError, match="reward model: score must return"):
        scores_of(Scores(scores), [[STATE] * 2, [STATE]])


def test_a_policy_that_answers_nothing_while_a_request_is_open_is_one_error():
    """In place of waiting for ever; with no open request nothing is the right answer."""

    class Idle(Plugin):
        def collect(self):
            return []

    door = AdmittedPolicy(Idle(lambda q: [GOOD] * q.n))
    assert door.collect() == []
    door.submit([Question(STATE, "expand/0", 2)])
    with pytest.raises(UserError, match=r"collect must return at least one answer .* 1 requests"):
        door.collect()
    with pytest.raises(UserError, match=r"collect must return at least one answer"):
        propose(AdmittedPolicy(Idle(lambda q: [GOOD] * q.n)), [(STATE, "expand/0")], 2)


def test_propose_waits_for_all_and_keeps_the_order():
    """Answers come one at a time, the last first; nothing is submitted without a request."""

    class Reversed(Plugin):
        def submit(self, questions):
            assert questions
            return super().submit(questions)

        def collect(self):
            return [self.done.pop()]

    def say(question):
        return [dataclasses.replace(GOOD, action=question.purpose)] * question.n

    door = AdmittedPolicy(Reversed(say))
    requests = [(STATE, f"expand/{k}") for k in range(3)]
    groups = propose(door, requests, 2)
    assert [[p.action for p in group] for group in groups] == [
        [f"expand/{k}"] * 2 for k in range(3)
    ]
    assert propose(door, [], 2) == []
