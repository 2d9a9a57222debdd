"""A judge's tournament, with judges whose mind is known."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Proposal
from agentrm_jax.data.attempts import attempt_text
from agentrm_jax.reward.judge import JudgeConfig, JudgeScorer, parse_choice
from agentrm_jax.testing.models import tiny_state


class Judge:
    """A policy that names the attempt in which the highest number is mentioned."""

    def __init__(self, answer=None) -> None:
        self.questions: list[str] = []
        self._answer = answer or self._highest
        self._waiting: list[tuple[int, list[Proposal]]] = []

    @staticmethod
    def _highest(question: str) -> str:
        attempts = re.split(r"\nAttempt \d+:\n", question.split("Which of the")[0])[1:]
        marks = [max(map(int, re.findall(r"mark (\d+)", text))) for text in attempts]
        return f"It went furthest.\nBest: {1 + marks.index(max(marks))}"

    def submit(self, requests):
        tickets = []
        for asked, _, n, _ in requests:
            assert n == 1
            assert not asked.steps
            self.questions.append(asked.first_observation)
            reply = self._answer(asked.first_observation)
            proposal = Proposal(reply=reply, action="", token_ids=(), log_probs=())
            tickets.append(len(self.questions))
            self._waiting.append((tickets[-1], [proposal]))
        return tickets

    def collect(self):
        found, self._waiting = self._waiting, []
        return found


def attempts(*marks: int, task: int = 0, num_steps: int = 2):
    """Trajectories of a task that end by mentioning a mark."""
    found = []
    for mark in marks:
        trajectory = tiny_state(task, num_steps)
        last = dataclasses.replace(trajectory.steps[-1], reply=f"Action: mark {mark}")
        found.append(dataclasses.replace(trajectory, steps=(*trajectory.steps[:-1], last)))
    return found


def words(text: str) -> int:
    return len(text.split())


def make(judge: Judge, limit: int = 10_000, most: int = 8) -> JudgeScorer:
    return JudgeScorer(judge, words, limit=limit, most=most)


def test_one_question_ranks_a_group() -> None:
    judge = Judge()
    assert make(judge).score([attempts(3, 9, 4)]) == [[0.0, 1.0, 0.0]]
    [question] = judge.questions
    assert "Goal: 0." in question
    assert "Attempt 3:" in question


@pytest.mark.parametrize("n", [2, 3, 5, 7, 16, 17])
@pytest.mark.parametrize("most", [2, 3, 8])
def test_a_tournament_finds_the_best_wherever_it_stands(n: int, most: int) -> None:
    for best in range(n):
        marks = [1 + (7 * i) % n for i in range(n)]
        marks[best] = 100
        judge = Judge()
        [scores] = make(judge, most=most).score([attempts(*marks)])
        assert scores.index(max(scores)) == best
        assert scores.count(max(scores)) == 1
        counts = [len(re.findall(r"Attempt \d+:", question)) for question in judge.questions]
        assert min(counts) >= 2
        assert max(counts) <= most


def test_groups_are_apart_and_one_attempt_needs_no_question() -> None:
    judge = Judge()
    groups = [attempts(1, 2), attempts(5, task=1), attempts(8, 7, task=2), []]
    assert make(judge).score(groups) == [[0.0, 1.0], [0.0], [1.0, 0.0], []]
    assert len(judge.questions) == 2


def test_what_does_not_fit_is_asked_in_rounds() -> None:
    one = attempts(1)[0]
    question = Judge()
    make(question).score([attempts(1, 2)])
    two = words(question.questions[0])
    judge = Judge()
    limit = two + words(attempt_text(one)) // 2 + 8 * 2  # two attempts and not three
    [scores] = make(judge, limit=limit).score([attempts(5, 2, 9, 1)])
    assert scores == [1.0, 0.0, 2.0, 0.0]
    assert all(words(question) <= limit for question in judge.questions)


def test_a_long_attempt_loses_its_oldest_steps() -> None:
    judge = Judge()
    short = attempts(1)[0]
    base = Judge()
    make(base).score([[short, short]])
    limit = words(base.questions[0]) + 8 * 2
    [scores] = make(judge, limit=limit).score([[short, *attempts(2, num_steps=30)]])
    assert scores == [0.0, 1.0]
    assert "steps are left out.)" in judge.questions[0]
    assert words(judge.questions[0]) <= limit
    with pytest.raises(UserError, match=r"engine\.context"):
        make(Judge(), limit=20).score([attempts(1, 2)])


@pytest.mark.parametrize("answer", ["", "The second one.", "Best: 4", "Best: 0", "Best: 2\nor not"])
def test_an_answer_that_names_none_leaves_the_group_undecided(answer: str) -> None:
    mute = attempts(1, 2, 3, task=1)

    def reply(question: str) -> str:
        return answer if "Goal: 1." in question else Judge._highest(question)

    undecided, decided = make(Judge(reply)).score([mute, attempts(4, 6)])
    assert all(map(math.isnan, undecided))
    assert decided == [0.0, 1.0]


def test_choices_are_parsed_strictly() -> None:
    assert parse_choice("Best: 2", 3) == 2
    assert parse_choice("It reached the goal.\n Best: 3.\n", 3) == 3
    assert parse_choice("Best: 2 of them\n", 3) is None
    assert parse_choice("I say Best: 2", 3) is None


def test_cost_counts_what_was_read() -> None:
    judge = Judge()
    scorer = make(judge, most=2)
    groups = [attempts(1, 2, 3), attempts(4, 5, task=1)]
    scorer.score(groups)
    assert sum(scorer.cost(group) for group in groups) == scorer.tokens_read
    assert scorer.tokens_read == sum(map(words, judge.questions))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"most": 1}, "most must be at least 2"),
        ({"form": "numbers"}, "form must be one of choice, log_probs"),
        ({"grades": 27}, "grades must be at most 26"),
        ({"num_pivots": 0}, "num_pivots must be at least 1"),
    ],
)
def test_bad_values_name_the_key(values, key) -> None:
    with pytest.raises(UserError, match=key):
        JudgeConfig(**values)
