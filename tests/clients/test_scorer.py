"""A reward model behind a server."""

from __future__ import annotations

import math
import threading
import time

import pytest
from model_server import ModelServer

from agentrm_jax.clients.client import Client
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Trajectory, Transition
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.reward.server import APIS, ServedRewardConfig, ServerScorer, reward_in
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.testing.guess import GUESS_PROMPT, Guess, guess_policy, guess_tasks
from agentrm_jax.testing.models import tokenizer

SAID = {"low": "Too low.", "high": "Too high.", "right": "Right."}


@pytest.fixture
def server():
    with ModelServer(tokenizer=tokenizer()) as running:
        yield running


def connected(server: ModelServer, *, with_tokenizer: bool = False, **config) -> ServerScorer:
    own = ServedRewardConfig(**{"request_seconds": 2.0, "wait_seconds": 5.0} | config)
    given = tokenizer() if with_tokenizer else None
    scorer = ServerScorer(Client(server.url, own), own, lambda task: GUESS_PROMPT, given)
    server.behaviour.asked.clear()
    return scorer


def game(*answers: str, task: int = 0) -> Trajectory:
    steps = tuple(
        Step(
            reply=f"Thought: x.\nAction: guess {i}",
            action=f"guess {i}",
            transition=Transition(
                observation=SAID[said], reward=0.0, done=said == "right", success=said == "right"
            ),
        )
        for i, said in enumerate(answers, start=3)
    )
    first = "Guess a number from 1 to 30."
    return Trajectory(task=guess_tasks(task + 1)[task], first_observation=first, steps=steps)


GROUPS = [[game("low", "right"), game("low", "high", "low")], [game("right", task=1)], []]
SCORES = [[1.875, -0.375], [2.0], []]


@pytest.mark.parametrize("with_tokenizer", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_scores_by_every_endpoint(server, api, with_tokenizer):
    scorer = connected(server, api=api, with_tokenizer=with_tokenizer)
    assert scorer.score(GROUPS) == SCORES
    bodies = server.posts(f"/{api}")
    assert len(bodies) == 3
    if api == "get_reward":
        assert all(isinstance(text, str) for body in bodies for text in body["query"])
    else:
        assert all(("input" in body) == with_tokenizer for body in bodies)
        assert all(body["model"] == "toy" for body in bodies)
        assert scorer.tokens_read == sum(map(scorer.cost, GROUPS)) > 0


def test_messages_begin_with_the_prompt_and_end_with_the_last_text(server):
    scorer = connected(server)
    scorer.score([[GROUPS[0][0].without_last_answer()]])
    [body] = server.posts("/classify")
    assert body["messages"][0]["content"] == GUESS_PROMPT.instruction
    assert body["messages"][-1] == {"role": "assistant", "content": "Thought: x.\nAction: guess 4"}


@pytest.mark.parametrize("fault", ["500", "429", "half", "reset"])
def test_faults_that_pass_change_no_score(server, fault):
    scorer = connected(server)
    server.behaviour.fail(fault, times=2)
    assert scorer.score(GROUPS) == SCORES


@pytest.mark.parametrize("fault", ["empty object", "empty reply", "not json", "refused"])
def test_without_a_number_the_reward_model_did_not_decide(server, fault):
    scorer = connected(server, concurrency=1)
    server.behaviour.fail(fault)
    [[first, second], *others] = scorer.score(GROUPS)
    assert math.isnan(first)
    assert [[second], *others] == [[-0.375], [2.0], []]


def test_its_threads_do_not_hold_up_the_end_of_the_process(server):
    scorer = connected(server)
    server.behaviour.fail("slow", times=2)
    scoring = threading.Thread(target=scorer.score, args=(GROUPS,), daemon=True)
    scoring.start()
    while server.behaviour.open < 2:
        time.sleep(0.01)
    assert [each for each in threading.enumerate() if not each.daemon] == [threading.main_thread()]
    scoring.join()


def test_tokens_that_are_no_number_do_not_count(server, monkeypatch):
    scorer = connected(server)
    post = scorer._client.post
    monkeypatch.setattr(
        scorer._client, "post", lambda *a: {**post(*a), "usage": {"prompt_tokens": -5}}
    )
    assert scorer.score(GROUPS) == SCORES
    assert (scorer.tokens_read, scorer.cost(GROUPS[0])) == (0, 0)


def test_another_model_and_a_server_that_stays_away(server):
    scorer = connected(server, wait_seconds=0.5)
    server.behaviour.fail("other model")
    with pytest.raises(UserError, match="scores with the model 'another' and scored with 'toy'"):
        scorer.score(GROUPS)
    server.stop()
    with pytest.raises(UserError, match="give the same command again"):
        scorer.score(GROUPS)


def test_a_server_that_does_not_score_is_refused(server):
    server.behaviour.fail("refused")
    with pytest.raises(UserError, match=r"/classify: scores nothing \(HTTP 400"):
        connected(server)
    server.behaviour.fail("empty reply")
    with pytest.raises(UserError, match="must answer a conversation with a number"):
        connected(server)


@pytest.mark.parametrize(
    ("value", "api", "expected"),
    [
        ({"data": [{"probs": [0.25, 0.75]}]}, "classify", 0.75),
        ({"data": [{"data": [[0.5], [-1.5]]}]}, "pooling", -1.5),
        ({"rewards": [3]}, "get_reward", 3.0),
        ({"data": [{"probs": [True]}]}, "classify", math.nan),
        ({"data": []}, "pooling", math.nan),
        ({"rewards": 10**400}, "get_reward", math.nan),
        ([], "classify", math.nan),
    ],
)
def test_shapes_of_answers(value, api, expected):
    assert reward_in(value, api) == pytest.approx(expected, nan_ok=True)


def test_best_of_n_with_it(server):
    scorer = connected(server)
    with EnvPool({"guess": Guess}) as envs:
        results = best_of_n(guess_policy, scorer, envs, guess_tasks(5), n=4)
    for result in results:
        outcomes = [rollout.trajectory.outcome for rollout in result.rollouts]
        assert result.trajectory.outcome == max(outcomes)
