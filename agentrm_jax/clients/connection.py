"""A server with its probed features, and requests for turns in the form that it supports."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from agentrm_jax.clients.answers import Answer, Choice
from agentrm_jax.clients.client import Client
from agentrm_jax.clients.config import ServerConfig
from agentrm_jax.clients.probe import PATHS, ServerFacts, probe, reply_length
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.protocols import Proposal
from agentrm_jax.core.records import Prompt, Task, Trajectory
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import first_line
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer, load_tokenizer
from agentrm_jax.engine.programs.sampling import Sampling

NEXT_TURN = "\nObservation:"
"""The mark of a next turn that a model writes itself: the reply ends before it."""

_USER, _ASSISTANT = "### User:\n", "### Assistant:\n"
_UNKNOWN_CONTEXT = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModelConfig(ServerConfig):
    """A served language model.

    Attributes:
      model: Name of the model at the server; without one the server must list exactly one model.
      key_env: Name of the environment variable that holds the API key. The key itself is sent to
        the server and written nowhere. Without a name no key is sent.
      concurrency: Requests that are open at the same time.
      connect_seconds: How long a connection may take.
      request_seconds: How long one answer may take, from the request to its last byte.
      attempts: How often a request is sent that the server fails to answer while it answers others.
      wait_seconds: How long the run waits for a server that answers nothing. Then it stops;
        everything so far is kept, and the same command resumes the run.
      api: `chat`: `/v1/chat/completions`, where the server applies the model's chat template.
        `tokens`: `/v1/completions` with our own token ids, for which `tokenizer` is needed: no
        history is tokenized again. `completions`: `/v1/completions` with the conversation as plain
        text, for models without a chat template. `auto`: the first of tokens, chat and completions
        that the server is seen to support.
      tokenizer: Folder with the tokenizer and the chat template of the model that is served.
      context: Most tokens of a conversation and its reply; 0 takes what the server says.
      stop: Strings before which a reply ends, as well as the mark of the next turn.
      extra_body: A JSON object with further keys of each request, for example
        `{"chat_template_kwargs": {"enable_thinking": false}}`.
    """

    api: Literal["auto", "chat", "completions", "tokens"] = "auto"
    tokenizer: str | None = None
    context: int = 0
    stop: tuple[str, ...] = ()
    extra_body: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.context <= _UNKNOWN_CONTEXT:
            raise UserError(field="context", value=self.context, expected="at least 0")
        if self.api == "tokens" and self.tokenizer is None:
            raise UserError("must not be tokens unless tokenizer names a folder", field="api")
        if len(self.stop) > 2:
            raise UserError("must hold at most 2 strings", field="stop")
        self.extra()

    def extra(self) -> dict[str, Any]:
        """Returns `extra_body` as keys and values.

        Raises:
          UserError: It is no JSON object, or holds a key that is set elsewhere.
        """
        try:
            value = parse_json(self.extra_body) if self.extra_body else {}
        except ValueError as error:
            raise UserError(f"must be JSON ({first_line(error)})", field="extra_body") from None
        if not isinstance(value, dict):
            raise UserError("must be a JSON object, such as {...}", field="extra_body")
        if taken := sorted(_OWN_KEYS & set(value)):
            raise UserError(f"must not hold {taken[0]}, which is set elsewhere", field="extra_body")
        return value


_OWN_KEYS = {"model", "messages", "prompt", "n", "seed", "stop", "stream", "max_tokens",
             "max_completion_tokens", "temperature", "top_p", "top_k", "min_p"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A server with its probed features.

    Attributes:
      client: The HTTP client.
      facts: What the probe found.
      config: The configuration.
      tokenizer: The tokenizer of the model, or None.
    """

    client: Client
    facts: ServerFacts
    config: ServedModelConfig
    tokenizer: Tokenizer | None

    @classmethod
    def open(cls, url: str, config: ServedModelConfig, strict: Sequence[str] = ()) -> Connection:
        """Probes a server.

        Args:
          url: Its address.
          config: How it is asked.
          strict: Sampling keys that must work, of `top_k` and `min_p`.

        Raises:
          UserError: The server cannot be used, or the folder holds no tokenizer.
        """
        tokenizer = None
        if config.tokenizer is not None:
            tokenizer = load_tokenizer(pathlib.Path(config.tokenizer))
        client = Client(url, config)
        facts = probe(
            client, api=config.api, tokenizer=tokenizer, extra=config.extra(), strict=strict
        )
        return cls(client=client, facts=facts, config=config, tokenizer=tokenizer)

    @property
    def known_context(self) -> int:
        """Most tokens of a conversation and its reply; 0 if unknown."""
        return self.config.context or self.facts.context

    @property
    def context(self) -> int:
        """Most tokens of a conversation and its reply; very large if unknown."""
        return self.known_context or _UNKNOWN_CONTEXT

    def takes_n(self) -> bool:
        """Whether several turns are asked for at once: they must differ and be countable."""
        facts = self.facts
        countable = facts.log_probs or facts.token_ids_out or self.tokenizer is not None
        return facts.n and countable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
    """A request for turns.

    Attributes:
      body: The request without number and seed.
      truncated_steps: Number of steps that were left out of the state.
    """

    body: dict[str, Any]
    truncated_steps: int = 0


class TurnForm:
    """Writes requests for turns, and reads their answers.

    Args:
      connection: The server.
      prompt_of: Returns the prompt of a task, or None.
      sampling: Parameters of sampling.

    Raises:
      UserError: A sampling key was not seen to work, or the context is shorter than a reply.
    """

    def __init__(
        self,
        connection: Connection,
        prompt_of: Callable[[Task], Prompt | None],
        sampling: Sampling,
    ) -> None:
        self._connection, self._prompt_of = connection, prompt_of
        self._facts, self._tokenizer = connection.facts, connection.tokenizer
        limit = connection.context - sampling.max_tokens
        if limit < 1:
            raise UserError(
                f"must be above the most tokens of a reply, {sampling.max_tokens}",
                field="context",
                value=connection.context,
            )
        self._renderer = None
        if self._facts.api == "tokens":
            assert self._tokenizer is not None  # the probe has used it
            self._renderer = Renderer(self._tokenizer, prompt_of, limit)
        marks = [NEXT_TURN, *connection.config.stop]
        self._stops = ["\n" + _USER.strip(), *marks] if self._facts.api == "completions" else marks
        self._base = {
            **connection.config.extra(),
            "model": self._facts.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            **_filters(connection, sampling),
            **self._facts.log_probs_body,
        }
        if self._facts.stop:
            self._base["stop"] = self._stops[:4]

    @property
    def path(self) -> str:
        return PATHS[self._facts.api]

    def fits(self, state: Trajectory) -> bool:
        """Returns whether a state fits into the context; True if the context is unknown."""
        return self._renderer is None or self._renderer.state(state).truncated_steps == 0

    def request(self, state: Trajectory) -> TurnRequest:
        """Returns the request for turns from a state."""
        if self._renderer is not None:
            assert self._tokenizer is not None
            rendered = self._renderer.state(state)
            ids = [int(token) for segment in rendered.segments for token in segment]
            body = {"prompt": ids, "stop_token_ids": list(self._tokenizer.chat.stop)}
            return TurnRequest(
                body={**self._base, **body}, truncated_steps=rendered.truncated_steps
            )
        messages = state.messages(self._prompt_of(state.task))
        if self._facts.api == "chat":
            return TurnRequest(body={**self._base, "messages": messages})
        return TurnRequest(body={**self._base, "prompt": transcript(messages) + _ASSISTANT})

    def numbered(self, request: TurnRequest, n: int, seed: int) -> dict[str, Any]:
        """Returns the body of a request for n turns, with the seed if the server supports seeds."""
        body = dict(request.body)
        if n > 1:
            body["n"] = n
        if self._facts.seed and (n == 1 or self._facts.n_with_seed):
            body["seed"] = seed
        return body

    def proposals(self, answer: Answer, truncated_steps: int) -> list[Proposal]:
        """Returns the turns of an answer; the first has the tokens of the prompt."""
        alone = answer.completion_tokens if len(answer.choices) == 1 else None
        proposals = [self._proposal(choice, alone, truncated_steps) for choice in answer.choices]
        proposals[0] = dataclasses.replace(
            proposals[0],
            prompt_tokens=answer.prompt_tokens or 0,
            cached_tokens=answer.cached_tokens,
        )
        return proposals

    def _proposal(self, choice: Choice, decoded: int | None, truncated_steps: int) -> Proposal:
        if choice.failure is not None:
            return _failed(choice.failure, decoded or 0)
        text, ids, log_probs = self._checked(choice)
        cut = _cut(text, self._stops)
        stopped = choice.stopped or cut != text or 0 < len(ids) < len(choice.token_ids)
        if cut != text:  # the rest is no part of the turn, and neither are its tokens
            text, ids, log_probs = cut, (), log_probs[: _tokens_within(choice.tokens, text, cut)]
        if not text.strip():
            return _failed("the reply is empty", self._decoded(choice, decoded))
        return Proposal(
            reply=text,
            action=parse_action(text),
            token_ids=ids,
            log_probs=log_probs,
            stopped=stopped,
            truncated_steps=truncated_steps,
            completion_tokens=self._decoded(choice, decoded),
        )

    def _checked(self, choice: Choice) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
        """Returns the text, the ids that are this text, and the log-probabilities up to its end."""
        ids, log_probs = choice.token_ids, choice.log_probs if self._facts.log_probs else ()
        if not (self._facts.token_ids_out and self._tokenizer is not None and ids):
            return choice.text, (), log_probs
        length = reply_length(self._tokenizer, ids)
        text = self._tokenizer.decode(ids[:length])
        if text.strip() != choice.text.strip():
            return choice.text, (), log_probs
        return text, ids[:length], log_probs[: length + (length < len(ids))]

    def _decoded(self, choice: Choice, counted: int | None) -> int:
        """Returns the decoded tokens: n texts may be counted as one by the server."""
        if length := max(len(choice.token_ids), len(choice.log_probs)):
            return length
        if counted is not None:
            return counted
        return len(self._tokenizer.encode(choice.text)) if self._tokenizer is not None else 0


def transcript(messages: Sequence[Mapping[str, str]]) -> str:
    """Returns a conversation as plain text, for models without a chat template."""
    marks = {"user": _USER, "assistant": _ASSISTANT}
    return "".join(f"{marks[each['role']]}{each['content']}\n\n" for each in messages)


def _filters(connection: Connection, sampling: Sampling) -> dict[str, float]:
    """Returns the filters of sampling that are set; `top_p` belongs to every such server."""
    filters: dict[str, float] = {} if sampling.top_p == 1.0 else {"top_p": sampling.top_p}
    for key in strict_keys(sampling):
        if key not in connection.facts.strict:
            raise UserError(
                f"sampling.{key} must be 0 because {connection.client.url} was not seen to obey it"
            )
        filters[key] = getattr(sampling, key)
    return filters


def strict_keys(sampling: Sampling) -> tuple[str, ...]:
    """Returns the sampling keys in use that not every server supports."""
    return tuple(key for key in ("top_k", "min_p") if getattr(sampling, key))


def _failed(reason: str, decoded: int) -> Proposal:
    return dataclasses.replace(Proposal.failed(reason), completion_tokens=decoded)


def _tokens_within(tokens: Sequence[str], text: str, cut: str) -> int:
    """Returns the number of a text's tokens that lie before a cut; 0 if they are not the text."""
    if not "".join(tokens).startswith(text):
        return 0
    ends = itertools.accumulate(map(len, tokens))
    return sum(end <= len(cut) for end in ends)


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((i for stop in stops if (i := text.find(stop)) >= 0), default=len(text))]
