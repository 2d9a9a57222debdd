"""The probe: it believes what it sees, and nothing else."""

from __future__ import annotations

import time

import pytest
from model_server import ModelServer

from agentrm_jax.clients.client import Client
from agentrm_jax.clients.config import ServerConfig
from agentrm_jax.clients.probe import ServerFacts, probe
from agentrm_jax.core.errors import UserError
from agentrm_jax.testing.models import tokenizer

ALL = frozenset(
    {"chat", "completions", "n", "logprobs", "seed", "stop", "top_k", "usage", "continue"}
)
TOKENS = ALL | {"ids in", "ids out"}


def probed(
    features: frozenset[str] = ALL, api: str = "auto", model: str = "", **more
) -> ServerFacts:
    own = tokenizer()
    with ModelServer(features=features, tokenizer=own) as server:
        client = Client(server.url, ServerConfig(model=model, request_seconds=5, wait_seconds=2))
        given = own if more.pop("with_tokenizer", False) else None
        return probe(client, api=api, tokenizer=given, **more)


def test_a_server_that_does_everything():
    assert probed(strict=("top_k",)) == ServerFacts(
        model="toy", answers_as="toy", api="chat", samples=True, n=True, n_with_seed=True,
        log_probs=True, continues=True, seed=True, stop=True, strict=("top_k",),
        usage=True, context=4096,
    )  # fmt: skip


def test_token_ids_are_used_if_they_come_back_as_they_are():
    facts = probed(TOKENS, with_tokenizer=True)
    assert facts.api == "tokens"
    assert facts.token_ids_in
    assert facts.token_ids_out
    assert facts.log_probs
    assert probed(TOKENS).api == "chat"  # without a tokenizer nothing can be confirmed


@pytest.mark.parametrize("missing", ["ids in", "ids out", "usage"])
def test_token_ids_that_cannot_be_confirmed_are_not_used(missing):
    facts = probed(TOKENS - {missing}, with_tokenizer=True)
    assert facts.api == "chat"
    assert not facts.token_ids_in


def test_a_doubled_first_token_is_found():
    assert probed(TOKENS | {"doubled"}, with_tokenizer=True).api == "chat"
    with pytest.raises(UserError, match="with token ids: token ids are not read as they are"):
        probed(TOKENS | {"doubled"}, api="tokens", with_tokenizer=True)


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize(
    ("feature", "field"),
    [("n", "n"), ("logprobs", "log_probs"), ("seed", "seed"), ("stop", "stop"), ("usage", "usage"),
     ("continue", "continues")],
)  # fmt: skip
def test_a_field_that_is_refused_or_ignored(feature, field, refuses):
    facts = probed(ALL - {feature} | (set() if refuses else {"ignores"}))
    assert not getattr(facts, field)
    others = {"n", "log_probs", "seed", "stop", "usage", "continues"} - {field}
    if field == "usage":
        others -= {"continues"}  # it is seen by the tokens of the prompt
    assert all(getattr(facts, other) for other in others)


def test_a_server_that_ignores_the_temperature():
    facts = probed(ALL | {"greedy"})
    assert not facts.samples
    assert not facts.n
    assert facts.log_probs


def test_completions_where_there_is_no_chat():
    facts = probed(ALL - {"chat"})
    assert facts.api == "completions"
    assert facts.log_probs
    assert not facts.continues
    with pytest.raises(UserError, match=r"/v1/chat/completions: HTTP 404: no such endpoint"):
        probed(ALL - {"chat"}, api="chat")


def test_names_of_models():
    with pytest.raises(
        UserError, match=r"model must be one of the models of http.*: toy .got 'toi'"
    ):
        probed(model="toi")


def test_sampling_keys_that_are_not_obeyed_are_not_confirmed():
    assert probed(ALL - {"top_k"}, strict=("top_k",)).strict == ()


@pytest.mark.parametrize("status", [301, 401, 403, 404, 500, 503])
def test_a_path_of_llama_cpp_may_be_answered_with_anything(status):
    with ModelServer(context=0, props_status=status) as server:
        began = time.monotonic()
        facts = probe(Client(server.url, ServerConfig(wait_seconds=5)))
        assert (facts.api, facts.context) == ("chat", 0)
        assert time.monotonic() - began < 3
