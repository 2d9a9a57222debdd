"""The policy of a model directory, for the gateway."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Proposal, propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import shown
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.pipeline.policies import ModelPolicy
from agentrm_jax.serve.batching import BatchThread
from agentrm_jax.serve.conversations import KnownPrompts, check_length, conversation_of_messages
from agentrm_jax.serve.errors import RequestRefused
from agentrm_jax.serve.gateway import Candidate, Proposed, TurnRequest

_NOT_SUPPORTED = (
    "tools", "functions", "response_format", "logit_bias", "presence_penalty",
    "frequency_penalty", "logprobs",
)  # fmt: skip
_STEP_TOKENS = 64
"""Programs are compiled for the longest reply, which is rounded up to a multiple of this."""
_MOST_FILTERS = 32
"""Values of `top_k`, `top_p` and `min_p` together: programs are compiled for each, and kept."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A request as the model's thread takes it.

    Attributes:
      state: The conversation.
      purpose: Decides the random numbers.
      n: The number of candidates.
      sampling: How they are sampled; `max_tokens` is rounded up.
      max_tokens: Most tokens of a candidate.
      stop: Texts before which a candidate is cut.
    """

    state: Trajectory
    purpose: str
    n: int
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]


class PolicyModel:
    """A policy of the engine, in a thread of its own.

    Requests that wait and are sampled in the same way are decoded together.

    Args:
      model: The policy; its environment `CONVERSATION` has no prompt.
      name: The name of the model.
      most_waiting: Most requests that wait.
    """

    def __init__(self, model: ModelPolicy, name: str, most_waiting: int = 256) -> None:
        self._model, self._name = model, name
        self._filters = {model.sampling.filter}
        self._known = KnownPrompts(model.prompts.known())
        self._thread = BatchThread(self._answer, name="policy", most_waiting=most_waiting)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._name

    async def propose(self, request: TurnRequest, n: int, number: int) -> Proposed:
        """Returns n candidates as `TurnPolicy.propose` does.

        Raises:
          RequestRefused: A field is not supported or of another form, or the queue is full.
        """
        rows = self._model.engine.sizes.decode_rows
        if n > rows:
            raise RequestRefused(f"n must be at most {rows}, the engine's decode rows (got {n})")
        asked = self._asked(request, n, number)
        [future] = self._thread.submit([asked])
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Answers all waiting requests and ends the thread."""
        await asyncio.to_thread(self._thread.close)

    def _asked(self, request: TurnRequest, n: int, number: int) -> _Asked:
        given = request.sampling
        if unsupported := next((field for field in _NOT_SUPPORTED if given.get(field)), None):
            raise RequestRefused(
                f"{unsupported} is not supported by a model directory; take a server as the policy"
            )
        stop = given.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
        if not isinstance(stop, tuple) or not all(isinstance(s, str) and s for s in stop):
            raise RequestRefused(f"stop must be a text or a list of texts (got {shown(stop)})")
        seed = given.get("seed")
        if seed is not None and type(seed) is not int:
            raise RequestRefused(f"seed must be a whole number (got {shown(seed)})")
        drawn = secrets.token_hex(16) if seed is None else str(seed)
        sampling = _sampling(given, self._model.sampling)
        self._check_filter(sampling)
        most, context = sampling.max_tokens, self._model.engine.sizes.context
        rounded = -(-most // _STEP_TOKENS) * _STEP_TOKENS
        if rounded < context:
            sampling = dataclasses.replace(sampling, max_tokens=rounded)
        conversation = conversation_of_messages(list(request.messages))
        check_length(conversation.characters, context)
        return _Asked(
            state=self._known.trajectory(conversation),
            purpose=f"{drawn}/{number}",
            n=n,
            sampling=sampling,
            max_tokens=most,
            stop=stop,
        )

    def _check_filter(self, sampling: Sampling) -> None:
        if sampling.filter not in self._filters and len(self._filters) >= _MOST_FILTERS:
            raise RequestRefused(
                f"top_k, top_p and min_p had {_MOST_FILTERS} values already, and programs are "
                "compiled for each; send one of those, or none of the three"
            )
        self._filters.add(sampling.filter)

    def _answer(self, asked: Sequence[_Asked]) -> list[Proposed | Exception]:
        """Proposes turns for all waiting requests, one batch for each way of sampling."""
        answers: dict[int, Proposed | Exception] = {}
        groups: dict[tuple[Sampling, int], list[int]] = {}
        for i, each in enumerate(asked):
            groups.setdefault((each.sampling, each.n), []).append(i)
        for (sampling, n), members in groups.items():
            try:
                agent = self._model.sampled_with(sampling)
                lengths = {}
                for i in members:
                    try:
                        lengths[i] = _checked_length(agent, asked[i])
                    except (UserError, RequestRefused) as error:  # this conversation alone
                        answers[i] = error
                questions = [(asked[i].state, asked[i].purpose) for i in lengths]
                try:
                    proposals = propose(agent, questions, n)
                except BaseException:
                    agent.release()  # else no later request gets these pages
                    raise
                for i, turns in zip(lengths, proposals, strict=True):
                    answers[i] = _proposed(asked[i], agent, turns, lengths[i])
            except Exception as error:  # of this group alone
                answers |= dict.fromkeys(members, error)
        return [answers[i] for i in range(len(asked))]


def _checked_length(agent: Agent, asked: _Asked) -> int:
    """Returns the tokens of a conversation.

    Raises:
      RequestRefused: It does not fit into the cache, which would fail for all others.
    """
    request, _ = agent.request(asked.state, asked.purpose)
    cache, sizes = agent.engine.cache, agent.engine.sizes
    of_reply = -(-asked.sampling.max_tokens // sizes.decode_tokens) * sizes.decode_tokens
    pages = sum(-(-len(segment) // cache.page_size) for segment in request.segments)
    pages += asked.n * of_reply // cache.page_size
    if pages > cache.num_pages:
        raise RequestRefused(
            f"the policy's cache holds {cache.num_pages} pages, and {asked.n} candidates of "
            f"{asked.max_tokens} tokens need {pages}; ask for fewer or shorter ones"
        )
    return request.length


def _proposed(asked: _Asked, agent: Agent, turns: Sequence[Proposal], length: int) -> Proposed:
    candidates = []
    for turn in turns:
        stopped, text = turn.stopped, turn.reply
        if len(turn.token_ids) > asked.max_tokens:
            stopped = False
            text = agent.tokenizer.decode(list(turn.token_ids[: asked.max_tokens]))
        if cuts := [at for mark in asked.stop if (at := text.find(mark)) >= 0]:
            stopped, text = True, text[: min(cuts)]
        reason = "stop" if stopped else "length"
        message = {"role": "assistant", "content": text}
        candidates.append(Candidate(message=message, finish_reason=reason))
    tokens = sum(min(len(turn.token_ids), asked.max_tokens) for turn in turns)
    return Proposed(candidates=candidates, prompt_tokens=length, completion_tokens=tokens)


def _sampling(given: Mapping[str, Any], default: Sampling) -> Sampling:
    """The sampling of a request.

    Raises:
      RequestRefused: A field is out of range or of another form.
    """
    values: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p", "top_k", "max_tokens"):
        value = given.get(name)
        if name == "max_tokens" and value is None:
            value = given.get("max_completion_tokens")
        if value is None:
            continue
        whole = name in ("top_k", "max_tokens")
        if type(value) not in ((int,) if whole else (int, float)):
            kind = "a whole number" if whole else "a number"
            raise RequestRefused(f"{name} must be {kind} (got {shown(value)})")
        values[name] = value if whole else round(float(value), 3)  # few values, few programs
    if values.get("top_k") == -1:
        values["top_k"] = 0  # as vLLM writes that all are kept
    try:
        return dataclasses.replace(default, **values)
    except UserError as error:
        raise RequestRefused(str(error)) from None
