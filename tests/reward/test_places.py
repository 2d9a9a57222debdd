"""Scores at every place, against each state scored by itself in plain loops."""

from __future__ import annotations

import dataclasses
import pickle
import statistics

import jax
import numpy as np
import pytest

from agentrm_jax.core.beams import SelectingScorer
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory, Transition, Unanswered, to_json
from agentrm_jax.data.attempts import attempt_text
from agentrm_jax.data.chat import render
from agentrm_jax.data.render import Renderer
from agentrm_jax.model.eight_bits import EightBits, decode, in_eight_bits
from agentrm_jax.reward.implicit import ImplicitScorer, ImplicitSettings
from agentrm_jax.reward.places import PLACES, Place, placed
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import (
    CONFIG,
    PROMPT,
    tiny_model,
    tiny_reward_model,
    tiny_state,
    tokenizer,
)

GROUPS = [[tiny_state(0, 3), tiny_state(0, 1), tiny_state(0, 0)], [], [tiny_state(5, 4)]]
OVER = {"mean": statistics.fmean, "min": min, "max": max}


def solved(num_steps: int = 3) -> Trajectory:
    """A trajectory whose last answer ends the episode and pays."""
    whole = tiny_state(0, num_steps)
    end = Transition(observation="You won.", reward=1.0, done=True, success=True)
    last = dataclasses.replace(whole.steps[-1], transition=end)
    return dataclasses.replace(whole, steps=(*whole.steps[:-1], last))


@pytest.fixture(scope="module")
def model():
    return tiny_reward_model()


@pytest.fixture(scope="module")
def ends(model):
    """For each trajectory its scores before any step, after each action and each observation."""
    return [list(model.score_steps(group)) for group in GROUPS]


def test_the_score_at_an_action_is_the_one_of_score_steps(model, ends) -> None:
    found = placed(model, "action").score(GROUPS)
    for group, scores in zip(ends, found, strict=True):
        wanted = [(scored.start, *scored.after_action)[-1] for scored in group]
        np.testing.assert_allclose(scores, wanted, atol=1e-6)
    answered = model.score(GROUPS)
    assert abs(found[0][0] - answered[0][0]) > 1e-3  # the answer changes the score
    assert found[0][2] == pytest.approx(answered[0][2])  # nothing was done


@pytest.mark.parametrize("end", ["observation", "action"])
@pytest.mark.parametrize("over", list(OVER))
def test_scores_over_steps_are_those_of_each_prefix(model, ends, end, over) -> None:
    found = placed(model, Place(end=end, over=over)).score(GROUPS)
    for group, scores in zip(ends, found, strict=True):
        for scored, score in zip(group, scores, strict=True):
            steps = scored.after_action if end == "action" else scored.after_observation
            assert score == pytest.approx(OVER[over](steps or [scored.start]), abs=1e-6)


def test_the_states_of_all_steps_are_read_once() -> None:
    """The prefix cache holds them: a mean over steps reads no more tokens than the last state."""
    last, mean = tiny_reward_model(), tiny_reward_model()
    last.score(GROUPS)
    at_mean = placed(mean, "mean")
    at_mean.score(GROUPS)
    assert mean.tokens_read == last.tokens_read > 0
    assert [at_mean.cost(group) for group in GROUPS] == [last.cost(group) for group in GROUPS]


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("limit", [None, 45, 34])
def test_a_state_without_its_answer_ends_where_actions_are_read(closed, limit) -> None:
    plain = tokenizer()
    closing = (tokenizer().chat.user_open[0],) if closed else ()

    class Closing:
        """The tokenizer with a token after the last reply of a conversation."""

        chat = dataclasses.replace(plain.chat, closing=closing)

        def __getattr__(self, name):
            return getattr(plain, name)

    found: object = Closing()
    renderer = Renderer(found, lambda task: PROMPT, limit or 1000, closed=closed)  # pyright: ignore
    whole = tiny_state(1, 4)
    blind = renderer.state(whole.without_last_answer())
    tokens = np.concatenate(blind.segments)
    if limit is None:
        wanted = renderer.both_ends(whole)[0][-1].action
        assert wanted is not None
        np.testing.assert_array_equal(tokens, np.concatenate(wanted))
        assert blind.truncated_steps == 0
    else:
        assert len(tokens) <= limit
        assert blind.truncated_steps > 0
    assert tuple(tokens[len(tokens) - len(closing) - 1 :]) == (plain.chat.stop_token, *closing)


def test_the_rendered_trajectory_ends_at_the_stop_token() -> None:
    whole = tiny_state(2, 3)
    [answered, blind] = [
        render(tokenizer(), PROMPT, state)[0] for state in (whole, whole.without_last_answer())
    ]
    assert blind.reply_spans == answered.reply_spans
    end = blind.action_ends[-1]
    assert blind.state_ends[-1] == end == len(blind.tokens) - 1
    np.testing.assert_array_equal(blind.tokens, answered.tokens[: end + 1])


def test_a_state_without_its_answer_holds_nothing_of_the_outcome() -> None:
    whole = solved()
    blind = whole.without_last_answer()
    assert (whole.outcome, whole.done, whole.success) == (1.0, True, True)
    assert (blind.outcome, blind.done, blind.success) == (0.0, False, False)
    assert [step.answered for step in blind.steps] == [True, True, False]
    assert blind.without_last_answer() is blind
    assert blind.steps[:-1] == whole.steps[:-1]
    assert "won" not in repr(blind)
    assert pickle.loads(pickle.dumps(blind)) == blind != whole
    assert set(to_json(blind)["steps"][-1]) == set(to_json(whole)["steps"][-1])
    assert Unanswered() != Transition(observation="", reward=0.0, done=False, success=False)
    roles = [message["role"] for message in blind.messages(PROMPT)]
    assert roles == [message["role"] for message in whole.messages(PROMPT)][:-1]
    assert attempt_text(whole).removesuffix("\nObservation: You won.") == attempt_text(blind)


def test_a_function_reads_the_states_of_the_place() -> None:
    asked: list[list[Trajectory]] = []

    def function(states):
        asked.append(list(states))
        return [float("nan") if not s.steps else len(s.steps) + s.outcome for s in states]

    whole = solved()
    assert placed(function, "action").score([[whole]]) == [[3.0]]
    assert not asked[-1][0].steps[-1].answered
    assert placed(function, "mean").score([[whole]]) == [[pytest.approx((1 + 2 + 4) / 3)]]
    assert [len(state.steps) for state in asked[-1]] == [1, 2, 3]
    assert placed(function, "max").score([[whole.without_last_answer()]]) == [[3.0]]
    [[undecided]] = placed(function, "mean").score([[tiny_state(0, 0)]])
    assert np.isnan(undecided)


def test_replies_alone_decide_an_implicit_score() -> None:
    """Its score after an action is that after the answer, which it reads for nothing."""
    models = [tiny_model(seed).params for seed in (0, 1)]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    settings = ImplicitSettings(beta=0.1, limit=256, mesh=mesh)
    scorer = ImplicitScorer(
        models[0], models[1], CONFIG, tokenizer(), lambda task: PROMPT, settings
    )
    blind, answered = placed(scorer, "action"), scorer
    for at_action, after in zip(blind.score(GROUPS), answered.score(GROUPS), strict=True):
        np.testing.assert_allclose(at_action, after, rtol=1e-4, atol=1e-5)
    assert blind.cost(GROUPS[0]) < answered.cost(GROUPS[0])


def test_an_implicit_model_in_8_bits_is_the_rounded_model() -> None:
    kept = [in_eight_bits(tiny_model(seed).params) for seed in (0, 1)]
    rounded = jax.tree.map(decode, kept, is_leaf=lambda x: isinstance(x, EightBits))
    settings = ImplicitSettings(
        beta=0.1, limit=256, mesh=make_mesh(MeshConfig(), jax.devices()[:1])
    )
    ours, wanted = (
        ImplicitScorer(*models, CONFIG, tokenizer(), lambda task: PROMPT, settings).score(GROUPS)
        for models in (kept, rounded)
    )
    for found, others in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(found, others, rtol=1e-4, atol=1e-5)


def test_the_next_beam_is_selected_at_the_action(model) -> None:
    states = [tiny_state(number, 2) for number in range(4)]
    blind = placed(model, "action")
    assert isinstance(blind, SelectingScorer)
    assert not isinstance(placed(model, "mean"), SelectingScorer)
    [scores] = blind.score([states])
    [ranked] = blind.select([(states, [scores[0] + 1])], 2, 2)
    best, kept = int(np.argmax(scores)), ranked[:2]  # the states that are not kept may follow
    assert [(each.finished, each.candidate) for each in kept] == [(0, None), (None, best)]
    assert kept[1].score == pytest.approx(scores[best])


def test_the_scorer_itself_scores_after_the_observation(model) -> None:
    assert placed(model, "observation") is model
    assert placed(model, Place()) is model
    assert PLACES["mean"] == Place(over="mean")
    with pytest.raises(UserError, match="place must be one of observation, action, mean, min, max"):
        placed(model, "after")
    with pytest.raises(UserError, match="end must be one of observation, action"):
        Place(end="reply")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="scorer must be a function"):
        placed(3, "mean")  # pyright: ignore[reportArgumentType]
