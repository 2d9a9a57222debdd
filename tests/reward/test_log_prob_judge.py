"""The judge by log-probabilities against a dense forward pass over each question alone."""

from __future__ import annotations

import dataclasses
import functools
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.attempts import attempt_text
from agentrm_jax.data.chat import opening_tokens, reply_tokens
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.model import llama
from agentrm_jax.model.eight_bits import EightBits, decode, in_eight_bits
from agentrm_jax.reward import log_prob_judge
from agentrm_jax.reward.judge import JudgeConfig
from agentrm_jax.reward.log_prob_judge import LogProbJudge, answer_tokens
from agentrm_jax.search.best_of_n import choose_best
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.testing.models import CONFIG, SIZES, tiny_state, weights

LONGEST = 640
SHAPE = dataclasses.replace(CONFIG, max_positions=LONGEST)
TOKENIZER = train_tokenizer([log_prob_judge._QUESTION], SHAPE.vocab_size)


@functools.cache
def judge(num_pivots: int = 4, grades: int = 2, context: int = LONGEST) -> LogProbJudge:
    sizes = dataclasses.replace(SIZES, context=context, cache_tokens=16 * LONGEST, extend_tokens=64)
    config = JudgeConfig(form="log_probs", num_pivots=num_pivots, grades=grades)
    return LogProbJudge(llama.unstacked(weights(0)), SHAPE, TOKENIZER, sizes, config)


def attempts(*numbers: int, task: int = 0):
    """Attempts at one task that differ in their first action."""
    found = []
    for number in numbers:
        state = tiny_state(task, 1)
        [step] = state.steps
        done = dataclasses.replace(step.transition, done=True)
        step = dataclasses.replace(step, reply=f"Action: {'ab' * number}", transition=done)
        found.append(dataclasses.replace(state, steps=(step,)))
    return found


@jax.jit
def logits_at(tokens, last):
    positions = jnp.arange(tokens.shape[0])[None]
    hidden = llama.forward(weights(0), SHAPE, tokens[None], positions, jnp.ones_like(positions))
    return llama.logits(weights(0), SHAPE, hidden[0, last])


def slow_answer(task, first: str, second: str, grades: int) -> float:
    """One question: the probabilities of all tokens, of which the answers' are taken."""
    letters = string.ascii_uppercase[:grades]
    question = log_prob_judge._QUESTION.format(
        task=task, first=first, second=second, last=letters[-1]
    )
    tokens = opening_tokens(TOKENIZER, None, question)
    padded = np.zeros(LONGEST, np.int32)
    padded[: len(tokens)] = tokens
    log_probs = jax.nn.log_softmax(logits_at(padded, len(tokens) - 1))
    chances = [float(np.exp(log_probs[reply_tokens(TOKENIZER, letter)[0]])) for letter in letters]
    worth = [1 - k / (grades - 1) for k in range(grades)]
    return sum(c * w for c, w in zip(chances, worth, strict=True)) / sum(chances)


def slow_scores(group, num_pivots: int, grades: int) -> list[float]:
    texts = [attempt_text(attempt) for attempt in group]
    pivots: list[int] = []
    for i, text in enumerate(texts):
        if len(pivots) < num_pivots and text not in texts[:i]:
            pivots.append(i)
    scores = []
    for i in range(len(group)):
        total = 0.0
        for pivot in pivots:
            if i == pivot:
                total += 0.5
                continue
            as_first = slow_answer(group[i].first_observation, texts[i], texts[pivot], grades)
            as_second = slow_answer(group[i].first_observation, texts[pivot], texts[i], grades)
            total += (as_first + 1 - as_second) / 2
        scores.append(total / len(pivots))
    return scores


@pytest.mark.parametrize(
    ("num_pivots", "grades"), [(1, 2), (2, 5), (4, 2)], ids=["one pivot", "grades", "all pairs"]
)
def test_scores_equal_one_forward_pass_for_each_question(num_pivots, grades):
    groups = [attempts(3, 1, 2, 1), attempts(4, 2, task=1)]
    scores = judge(num_pivots, grades).score(groups)
    for group, own in zip(groups, scores, strict=True):
        assert own == pytest.approx(slow_scores(group, num_pivots, grades), abs=1e-5)
    assert scores[0][1] == scores[0][3]  # equal attempts
    assert len(set(scores[0])) == 3


def test_both_orders_cancel_exactly():
    a, b = attempts(3, 1)
    first, second = (slow_answer(a.first_observation, *texts, 2) for texts in _both_orders(a, b))
    assert abs(first + second - 1) > 1e-3  # one order alone prefers a place
    # The first attempt is the pivot: its score is 1/2, that of the other its chance to win.
    [[pivot, b_over_a]], [[other_pivot, a_over_b]] = (
        judge(1).score([pair]) for pair in ([a, b], [b, a])
    )
    assert pivot == other_pivot == 0.5
    assert a_over_b + b_over_a == 1.0
    assert sum(judge(2).score([[a, b]])[0]) == 1.0


def _both_orders(a, b):
    texts = attempt_text(a), attempt_text(b)
    return texts, texts[::-1]


def test_the_order_of_attempts_decides_nothing_if_all_are_compared():
    group = attempts(3, 1, 2, 5)
    [scores] = judge(8).score([group])
    [turned] = judge(8).score([group[::-1]])
    assert scores == pytest.approx(turned[::-1], abs=1e-6)
    assert judge(8).score([group]) == [scores]


def test_groups_without_a_comparison():
    assert judge().score([[], attempts(1), attempts(2, 2, 2)]) == [[], [0.5], [0.5] * 3]
    assert judge().cost([]) == judge().cost(attempts(1)) == 0
    assert judge().score([]) == []


def test_cost_counts_common_beginnings_once():
    fresh = judge.__wrapped__(2)
    groups = [attempts(1, 2, 3), attempts(4, 5, task=1)]
    fresh.score(groups)
    assert sum(map(fresh.cost, groups)) == fresh.tokens_read
    texts = [attempt_text(attempt) for attempt in groups[0]]
    # Pivots 1 and 2 in both orders: (1, 2), (1, 3), (2, 3) and their reverses.
    whole = 6 * len(fresh._tokens("Goal: 0.", texts[0], texts[1]))
    assert fresh.cost(groups[0]) < 0.6 * whole


def test_a_long_attempt_loses_its_oldest_steps():
    context = 480
    short, long = tiny_state(0, 1), tiny_state(0, 30)
    game = judge(context=context)._games([short, long])
    questions = [np.concatenate(q.segments) for q in game.questions.values()]
    assert max(map(len, questions)) <= context
    assert "steps are left out.)" in TOKENIZER.decode(questions[0].tolist())
    [scores] = judge(context=context).score([[short, long]])
    assert sum(scores) == 1.0
    with pytest.raises(UserError, match=r"engine\.context must be larger"):
        judge(context=160).score([[short, long]])


def test_an_attempt_whose_environment_failed_takes_part():
    failed = dataclasses.replace(tiny_state(0, 0), first_observation="")
    [scores] = judge().score([[failed, *attempts(1, 2)]])
    assert np.isfinite(scores).all()
    [first, *_] = judge()._games([failed, *attempts(1, 2)]).questions.values()
    text = TOKENIZER.decode(np.concatenate(first.segments).tolist())
    assert "Goal: 0." in text
    assert "(no step)" in text


def test_answers_that_begin_alike_are_refused():
    assert len(set(answer_tokens(TOKENIZER, 26))) == 26

    class Spaced:
        """Writes a blank token before every text."""

        chat, control = TOKENIZER.chat, TOKENIZER.control

        def encode(self, text, before=None, after=None):
            return [7, *TOKENIZER.encode(text, before, after)]

        def decode(self, ids):
            return TOKENIZER.decode(ids)

    with pytest.raises(UserError, match=r"judge\.form must be choice .* answers A and B"):
        answer_tokens(Spaced(), 2)


def test_best_of_n_takes_the_attempt_that_wins():
    group = attempts(3, 1, 2)
    rollouts = [
        Rollout(trajectory=attempt, sample=i, policy_tokens=1, env_steps=1, wall_seconds=0.0)
        for i, attempt in enumerate(group)
    ]
    [choice] = choose_best([rollouts], judge())
    assert choice.chosen == int(np.argmax(slow_scores(group, 4, 2)))


def test_a_judge_in_8_bits_is_the_rounded_judge():
    """Also the rows of the answers, which it reads out of the embeddings."""
    kept = llama.unstacked(in_eight_bits(weights(0)))
    rounded = jax.tree.map(decode, kept, is_leaf=lambda x: isinstance(x, EightBits))
    config, group = JudgeConfig(form="log_probs", num_pivots=2), attempts(1, 2, 3)
    sizes = dataclasses.replace(SIZES, context=LONGEST, cache_tokens=16 * LONGEST, extend_tokens=64)
    in_bits = dataclasses.replace(sizes, weights="int8")
    [wanted] = LogProbJudge(rounded, SHAPE, TOKENIZER, sizes, config).score([group])
    for params in (kept, weights(0)):
        [found] = LogProbJudge(params, SHAPE, TOKENIZER, in_bits, config).score([group])
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.ptp(wanted) > 1e-4
