"""The policy behind a server: turns, failed turns, and searches that use them."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from model_server import Model, ModelServer

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.connection import ServedModelConfig
from agentrm_jax.clients.probe import ServerFacts
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Question, propose
from agentrm_jax.core.records import Step, Trajectory, Transition
from agentrm_jax.data.chat import opening_tokens
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.evaluation.compare import compare
from agentrm_jax.search.beam import beam_search
from agentrm_jax.search.best_of_n import best_of_n
from agentrm_jax.search.explore import explore
from agentrm_jax.search.rollouts import rollouts
from agentrm_jax.testing.guess import GUESS_PROMPT, Guess, guess_scorer, guess_tasks
from agentrm_jax.testing.models import tokenizer

ALL = frozenset(
    {"chat", "completions", "n", "logprobs", "seed", "stop", "top_k", "usage", "continue"}
)
TOKENS = ALL | {"ids in", "ids out"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS = {"guess": GUESS_PROMPT}


@pytest.fixture
def server():
    with ModelServer(tokenizer=tokenizer()) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save(folder)
    return folder


def connected(server: ModelServer, seed: int | None = 0, **config) -> ServerPolicy:
    sampling = config.pop("sampling", Sampling(max_tokens=40))
    quick = {"request_seconds": 5.0, "wait_seconds": 20.0}
    policy = ServerPolicy.connect(
        server.url,
        PROMPTS,
        sampling=sampling,
        config=ServedModelConfig(**quick | config),
        seed=seed,
    )
    server.behaviour.asked.clear()
    return policy


def state(i: int = 0) -> Trajectory:
    task = guess_tasks(i + 1)[i]
    return Trajectory(task=task, first_observation="Guess a number from 1 to 30.")


def test_turns_of_a_chat(server):
    policy = connected(server)
    [turns] = propose(policy, [(state(), "expand/0")], 3)
    [body] = server.posts(CHAT)
    assert body["n"] == 3
    assert body["messages"] == state().messages(GUESS_PROMPT)
    assert body["stop"] == ["\nObservation:"]
    assert all(turn.action.startswith("guess ") for turn in turns)
    assert len({turn.reply for turn in turns}) > 1
    for turn in turns:
        assert turn.tokens == len(turn.log_probs) == len(turn.reply.split())
        assert turn.failure is None
        assert turn.stopped
    # The server counts one of the three texts; the prompt was read once, half of it from its cache.
    assert [turn.prompt_tokens > 0 for turn in turns] == [True, False, False]
    assert policy.usage.decoded == sum(turn.tokens for turn in turns)
    assert policy.usage.read == turns[0].prompt_tokens - turns[0].cached_tokens


def test_the_same_request_has_the_same_seed_whatever_else_is_asked(server):
    requests = [(state(0), "expand/0"), (state(1), "expand/0"), (state(1), "expand/1")]
    first = propose(connected(server), requests, 4)
    again = [propose(connected(server, concurrency=1), [each], 4)[0] for each in requests]
    assert [[t.reply for t in own] for own in first] == [[t.reply for t in own] for own in again]
    assert first[1] != first[2]
    other = propose(connected(server, seed=1), requests, 4)
    assert [[t.reply for t in own] for own in first] != [[t.reply for t in own] for own in other]


@pytest.mark.parametrize("missing", [{"n"}, {"logprobs"}])
def test_several_turns_are_asked_for_one_by_one_if_need_be(server, missing):
    """Without log-probabilities nobody could say how many tokens each of several texts has."""
    server.behaviour.features = ALL - missing
    policy = connected(server)
    [turns] = propose(policy, [(state(), "expand/0")], 3)
    bodies = server.posts(CHAT)
    assert len(bodies) == 3
    assert len({body["seed"] for body in bodies}) == 3
    assert all("n" not in body for body in bodies)
    assert [turn.tokens for turn in turns] == [len(turn.reply.split()) for turn in turns]


def test_a_server_that_ignores_the_temperature_is_said_once(server, capsys):
    server.behaviour.features = ALL | {"greedy"}
    connected(server, sampling=Sampling(temperature=0.0))
    assert capsys.readouterr().err == ""
    connected(server).with_seed(1)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"agentrm: {server.url}: returns the likeliest text at temperature 1")


def test_token_ids_go_in_and_out(server, tokenizer_folder):
    server.behaviour.features = TOKENS
    policy = connected(server, tokenizer=str(tokenizer_folder), sampling=Sampling(max_tokens=100))
    [[turn]] = propose(policy, [(state(), "expand/0")], 1)
    own = tokenizer()
    assert own.decode(turn.token_ids) == turn.reply
    assert len(turn.log_probs) == len(turn.token_ids) + 1 == turn.tokens  # with the stop token
    transition = Transition(observation="Too low.", reward=0.0, done=False, success=False)
    deeper = state().extended(turn.as_step(transition))
    propose(policy, [(deeper, "expand/1")], 1)
    first, second = (body["prompt"] for body in server.posts(COMPLETIONS))
    assert first == opening_tokens(own, GUESS_PROMPT, state().first_observation)
    assert second[: len(first) + len(turn.token_ids)] == [*first, *turn.token_ids]


def test_a_long_conversation_loses_its_oldest_steps(server, tokenizer_folder):
    server.behaviour.features = TOKENS
    policy = connected(server, tokenizer=str(tokenizer_folder), context=300)
    answer = Transition(observation="Too low." * 5, reward=0.0, done=False, success=False)
    step = Step(reply="Thought: no.\nAction: guess 1", action="guess 1", transition=answer)
    long = dataclasses.replace(state(), steps=(step,) * 12)
    assert policy.fits(state())
    assert not policy.fits(long)
    [[turn]] = propose(policy, [(long, "expand/0")], 1)
    assert turn.truncated_steps > 0
    assert len(server.posts(COMPLETIONS)[0]["prompt"]) <= 300 - 40


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("empty object", "the answer has no choices"),
        ("empty reply", "the reply is empty"),
        ("not json", "the answer is not JSON"),
        ("refused", "HTTP 400: the prompt is too long"),
    ],
)
def test_an_answer_without_a_turn_is_a_failed_turn_and_not_asked_for_again(server, fault, reason):
    policy = connected(server)
    server.behaviour.fail(fault)
    [turns] = propose(policy, [(state(), "expand/0")], 2)
    assert len(server.posts(CHAT)) == 1
    assert all(reason in turn.failure and turn.reply == "" for turn in turns)


def test_fewer_choices_than_were_asked_for(server):
    policy = connected(server)
    server.behaviour.fail("fewer")
    [turns] = propose(policy, [(state(), "expand/0")], 3)
    assert [turn.failure for turn in turns] == [None, None, "the server returned 2 of 3 choices"]


def test_wrong_token_ids_are_left_out(server, tokenizer_folder):
    server.behaviour.features = TOKENS
    policy = connected(server, tokenizer=str(tokenizer_folder), sampling=Sampling(max_tokens=100))
    server.behaviour.fail("wrong ids")
    [[turn]] = propose(policy, [(state(), "expand/0")], 1)
    assert turn.token_ids == ()
    assert turn.action.startswith("guess ")


def test_another_model_ends_the_search(server):
    policy = connected(server)
    server.behaviour.fail("other model")
    with pytest.raises(UserError, match="answers with the model 'another' and answered with 'toy'"):
        propose(policy, [(state(), "expand/0")], 1)
    assert policy.collect() == []


@pytest.mark.parametrize("fault", ["500", "429", "half", "reset"])
def test_faults_that_pass_change_no_turn(server, fault):
    wanted = propose(connected(server), [(state(i), "expand/0") for i in range(4)], 2)
    policy = connected(server)
    server.behaviour.fail(fault, times=3)
    found = propose(policy, [(state(i), "expand/0") for i in range(4)], 2)
    assert [[t.reply for t in own] for own in found] == [[t.reply for t in own] for own in wanted]


def test_a_reply_ends_before_the_next_turn_whether_or_not_the_server_stops(server):
    server.behaviour.features = ALL - {"stop"} | {"chatty"}
    policy = connected(server)
    [[turn]] = propose(policy, [(state(), "expand/0")], 1)
    assert "stop" not in server.posts(CHAT)[0]
    assert "Observation" not in turn.reply
    assert len(turn.log_probs) == len(turn.reply.split())
    assert turn.tokens == len(turn.reply.split()) + 3  # what was decoded was decoded


def test_a_reply_of_which_nothing_is_left_costs_its_tokens(server, monkeypatch):
    server.behaviour.features = ALL - {"stop"}
    policy = connected(server)
    monkeypatch.setattr(Model, "_text", lambda *_: "\nObservation: You win.")
    [[turn]] = propose(policy, [(state(), "t")], 1)
    assert turn.failure == "the reply is empty"
    assert policy.usage.decoded == turn.tokens == 3


def test_a_reply_that_is_cut_off_says_so(server):
    policy = connected(server, sampling=Sampling(max_tokens=4))
    [[turn]] = propose(policy, [(state(), "expand/0")], 1)
    assert not turn.stopped
    assert turn.tokens == 4


def test_completions_as_plain_text(server):
    server.behaviour.features = ALL - {"chat"}
    policy = connected(server)
    [[turn]] = propose(policy, [(state(), "expand/0")], 1)
    [body] = server.posts(COMPLETIONS)
    assert body["prompt"].endswith("Guess a number from 1 to 30.\n\n### Assistant:\n")
    assert "\n### User:" in body["stop"]
    assert turn.action.startswith("guess ")


def test_no_more_requests_at_a_time_than_allowed_and_the_urgent_ones_first(server):
    policy = connected(server, concurrency=2)
    assert policy.room() == 2
    questions = [Question(state(i), "expand/0", 1, rank=float(9 - i)) for i in range(10)]
    policy.submit(questions)
    assert policy.room() == 0
    found = []
    while answers := policy.collect():
        found += answers
    assert len(found) == 10
    assert server.behaviour.most_open <= 2
    assert policy.room() == 2
    assert threading.active_count() < 30


def test_sampling_that_the_server_does_not_obey_is_refused(server):
    server.behaviour.features = ALL - {"top_k"}
    with pytest.raises(UserError, match=r"sampling.top_k must be 0 because http"):
        connected(server, sampling=Sampling(top_k=5))


def test_searches_end_to_end(server):
    """Failed turns cost candidates, never the search."""
    policy = connected(server)
    tasks = guess_tasks(6)
    with EnvPool({"guess": Guess}) as envs:
        server.behaviour.fail("empty object", times=3)
        trees = explore(policy, envs, tasks, num_iterations=4, expansion_width=3)
        assert [tree.error for tree in trees] == [None] * 6
        failures = [failure for tree in trees for failure in tree.failures]
        assert failures
        assert all("no choices" in failure.reason for failure in failures)
        results = best_of_n(policy, guess_scorer, envs, tasks, n=4)
        table = compare(results, baselines=["random", "likeliest", "oracle"])
        assert table.methods[0].score.mean > 0
        beams = list(beam_search(policy, guess_scorer, envs, tasks, beam_width=2))
        assert {rollout.error for rollout in beams} == {None}
        assert all(rollout.policy_tokens > 0 for rollout in beams)


def test_a_rollout_whose_turns_always_fail_is_an_error(server):
    policy = connected(server)
    server.behaviour.fail("empty reply", times=10_000)
    with EnvPool({"guess": Guess}) as envs:
        [rollout] = rollouts(policy, envs, guess_tasks(1))
    assert rollout.error == "the reply is empty"
    assert rollout.failed_candidates == 3


def test_baselines_that_need_log_probabilities_are_not_available(server):
    server.behaviour.features = ALL - {"logprobs"}
    policy = connected(server)
    with EnvPool({"guess": Guess}) as envs:
        results = best_of_n(policy, guess_scorer, envs, guess_tasks(2), n=2)
    assert all(rollout.policy_tokens for result in results for rollout in result.rollouts)
    with pytest.raises(UserError, match="must not hold likeliest, which is not available"):
        compare(results, baselines=["likeliest"])


def test_facts_are_frozen(server):
    facts = connected(server).facts
    assert isinstance(facts, ServerFacts)
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.n = False
