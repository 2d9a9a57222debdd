"""The probe: a few short requests that show which features a server really has.

Servers ignore fields that they do not support, or refuse the whole request. So a feature counts
only if an answer shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentrm_jax.clients.answers import Answer, read_answer
from agentrm_jax.clients.client import Client, RequestFailed
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.data.chat import opening_tokens
from agentrm_jax.data.tokenizer import Tokenizer

Api = Literal["chat", "completions", "tokens"]
"""`/v1/chat/completions`; `/v1/completions` with text; `/v1/completions` with our token ids."""

PATHS: Mapping[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "tokens": "/v1/completions",
}

_QUESTION = "Write one sentence about any animal that you like."
_BEGUN = "The sentence is: My favourite animal is"
_TOKENS = 16
_STRICTEST = {"top_k": 1, "min_p": 1.0}
"""Values with which sampling takes the likeliest token."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """The features of a server, as its answers show them. An unconfirmed one is False, empty or 0.

    Attributes:
      model: Name under which the model is asked.
      answers_as: Name of the model in the answers.
      api: The endpoint that is used, and what is sent to it.
      samples: Whether the texts at temperature 1 differ from the likeliest one.
      n: Whether several texts of one request are there and differ.
      n_with_seed: Whether they differ if the request has a seed.
      log_probs: Whether the log-probabilities of all tokens of a text are returned.
      token_ids_in: Whether a prompt of token ids is read as it is: no token is added.
      token_ids_out: Whether the ids of a text are returned and are those of our tokenizer.
      continues: Whether a reply that is begun is continued (`continue_final_message`).
      seed: Whether a seed repeats a text and another seed gives another text.
      stop: Whether a text ends before a stop string.
      strict: Sampling keys that were seen to work, of `top_k` and `min_p`.
      usage: Whether the tokens of a request are counted.
      context: Most tokens of a conversation and its reply.
    """

    model: str
    answers_as: str = ""
    api: Api = "chat"
    samples: bool = False
    n: bool = False
    n_with_seed: bool = False
    log_probs: bool = False
    token_ids_in: bool = False
    token_ids_out: bool = False
    continues: bool = False
    seed: bool = False
    stop: bool = False
    strict: tuple[str, ...] = ()
    usage: bool = False
    context: int = 0

    @property
    def log_probs_body(self) -> dict[str, Any]:
        """The keys of a request for the token fields that were confirmed."""
        body: dict[str, Any] = {}
        if self.log_probs:
            body["logprobs"] = True if self.api == "chat" else 1
        if self.token_ids_out:
            body["return_token_ids"] = True
        return body


def probe(
    client: Client,
    *,
    api: Api | Literal["auto"] = "auto",
    tokenizer: Tokenizer | None = None,
    extra: Mapping[str, Any] | None = None,
    strict: Sequence[str] = (),
) -> ServerFacts:
    """Returns the features of a server.

    Args:
      client: The HTTP client.
      api: The endpoint; `auto` takes the first that works: token ids if a tokenizer is given,
        then chat, then completions.
      tokenizer: That of the model, with its chat format; needed for token ids.
      extra: Further keys of every request.
      strict: The sampling keys that are to be confirmed, of `top_k` and `min_p`.

    Raises:
      UserError: The server has no such model, no endpoint works, or the key is refused.
    """
    model, context = served_model(client)
    orders: tuple[Api, ...] = ("tokens", "chat", "completions")
    tried: list[Api] = [each for each in orders if api in ("auto", each)]
    reasons = []
    for each in tried:
        if each == "tokens" and tokenizer is None:
            continue
        probing = _Probing(client, each, {"model": model, **(extra or {})}, tokenizer)
        try:
            facts = probing.facts(ServerFacts(model=model, api=each, context=context), strict)
        except RequestFailed as error:
            reasons.append(f"{PATHS[each]}{' with token ids' * (each == 'tokens')}: {error}")
            continue
        return facts
    if api == "tokens" and tokenizer is None:
        raise UserError("must not be tokens unless tokenizer names a folder", field="api")
    raise UserError(f"{client.url}: cannot be asked for turns; " + "; ".join(reasons))


def served_model(client: Client) -> tuple[str, int]:
    """Returns the name of the model and its context, 0 if the server does not say."""
    wanted = client.config.model
    try:
        value = client.get("/v1/models")
    except RequestFailed as error:
        if not wanted:
            raise UserError(
                f"{client.url}: does not list its models ({error}); name one", field="model"
            ) from None
        return wanted, _llama_context(client)
    listed = value.get("data") if isinstance(value, Mapping) else None
    entries = {
        printable(admit_text(entry["id"], 200)): entry
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), str)
    }
    names = ", ".join(sorted(entries)[:10]) or "none"
    if not wanted and len(entries) != 1:
        raise UserError(f"must name one of the models of {client.url}: {names}", field="model")
    if wanted and entries and wanted not in entries:
        raise UserError(
            f"must be one of the models of {client.url}: {names}", field="model", value=wanted
        )
    name = wanted or next(iter(entries))
    entry = entries.get(name, {})
    sizes = (entry.get(key) for key in ("max_model_len", "context_length"))
    context = next((size for size in sizes if type(size) is int and size > 0), 0)
    return name, context or _llama_context(client)


def _llama_context(client: Client) -> int:
    """Returns the context that llama.cpp's server gives a request, 0 for other servers."""
    value = client.optional("/props")
    settings = value.get("default_generation_settings") if isinstance(value, Mapping) else None
    size = settings.get("n_ctx") if isinstance(settings, Mapping) else None
    return size if type(size) is int and size > 0 else 0


class _Probing:
    """The requests of the probe at one endpoint."""

    def __init__(
        self, client: Client, api: Api, base: Mapping[str, Any], tokenizer: Tokenizer | None
    ) -> None:
        self._client, self._tokenizer = client, tokenizer
        self._api: Api = api
        self._base = {**base, "max_tokens": _TOKENS}
        self._ids: list[int] = []
        if api == "chat":
            self._base["messages"] = [{"role": "user", "content": _QUESTION}]
        elif api == "completions":
            self._base["prompt"] = _QUESTION
        else:
            assert tokenizer is not None
            self._ids = opening_tokens(tokenizer, None, _QUESTION)
            self._base |= {"prompt": self._ids, "stop_token_ids": list(tokenizer.chat.stop)}

    def facts(self, facts: ServerFacts, strict: Sequence[str]) -> ServerFacts:
        """Returns the facts with all that this endpoint shows.

        Raises:
          RequestFailed: It does not answer the plainest request, or token ids are not confirmed.
        """
        plain = self._asked(temperature=0.0)
        text = plain.choices[0].text
        if plain.choices[0].failure is not None:
            raise RequestFailed(plain.choices[0].failure)
        log_probs, ids_out = self._of_tokens()
        ids_in = self._api == "tokens" and plain.prompt_tokens == len(self._ids)
        if self._api == "tokens" and not (ids_in and ids_out):
            what = "read as they are" if not ids_in else "returned"
            raise RequestFailed(f"token ids are not {what}")
        seed = self._repeats()
        n_with_seed = seed and self._differ(seed=11)
        return dataclasses.replace(
            facts,
            answers_as=plain.model,
            samples=self._samples(text),
            n=n_with_seed or self._differ(),
            n_with_seed=n_with_seed,
            log_probs=log_probs,
            token_ids_in=ids_in,
            token_ids_out=ids_out,
            continues=self._api == "chat" and self._continues(),
            seed=seed,
            stop=self._stops(text),
            strict=tuple(key for key in strict if self._is_strict(key, text)),
            usage=plain.prompt_tokens is not None and plain.completion_tokens is not None,
        )

    def _asked(self, n: int = 1, **more: Any) -> Answer:
        body = {**self._base, **more, **({"n": n} if n > 1 else {})}
        return read_answer(self._client.post(PATHS[self._api], body), n)

    def _tried(self, n: int = 1, **more: Any) -> Answer | None:
        try:
            return self._asked(n, **more)
        except RequestFailed:
            return None

    def _text(self, **more: Any) -> str | None:
        answer = self._tried(**more)
        return answer.choices[0].text or None if answer else None

    def _of_tokens(self) -> tuple[bool, bool]:
        """Whether log-probabilities and token ids are returned, and fit the text."""
        log_probs = {"logprobs": True if self._api == "chat" else 1}
        ids = {"return_token_ids": True} if self._tokenizer is not None else {}
        answer = self._tried(temperature=0.0, **log_probs, **ids) or self._tried(
            temperature=0.0, **log_probs
        )
        if answer is None or answer.choices[0].failure is not None:
            return False, False
        choice = answer.choices[0]
        joined = "".join(choice.tokens).strip()
        has_log_probs = bool(choice.log_probs) and joined.startswith(choice.text.strip())
        has_ids = self._tokenizer is not None and (
            bool(choice.token_ids)
            and text_of(self._tokenizer, choice.token_ids).strip() == choice.text.strip()
        )
        return has_log_probs, has_ids

    def _samples(self, text: str) -> bool:
        """Whether the temperature is obeyed: one of three texts is another than the likeliest."""
        texts = (self._text(temperature=1.0) for _ in range(3))
        return any(each is not None and each != text for each in texts)

    def _repeats(self) -> bool:
        """Whether a seed repeats a text, and another one changes it."""
        first = self._text(temperature=1.0, seed=11)
        if first is None or first != self._text(temperature=1.0, seed=11):
            return False
        return any(self._text(temperature=1.0, seed=seed) != first for seed in (12, 13))

    def _differ(self, **more: Any) -> bool:
        """Whether the texts of one request differ."""
        answer = self._tried(3, temperature=1.0, **more)
        texts = [choice.text for choice in answer.choices] if answer else []
        return all(texts) and len(set(texts)) > 1

    def _continues(self) -> bool:
        """Whether a begun reply is continued: it needs fewer tokens than one that is ended."""
        messages = [*self._base["messages"], {"role": "assistant", "content": _BEGUN}]
        flags = {"continue_final_message": True, "add_generation_prompt": False}
        begun = self._tried(messages=messages, temperature=0.0, **flags)
        ended = self._tried(messages=messages, temperature=0.0)
        counts = [answer.prompt_tokens if answer else None for answer in (begun, ended)]
        return counts[0] is not None and counts[1] is not None and counts[0] < counts[1]

    def _stops(self, text: str) -> bool:
        """Whether a text ends before a string from its middle."""
        middle = len(text) // 2
        stop = text[middle : middle + 4]
        if not text[:middle].strip() or not stop.strip():
            return False
        stopped = self._text(temperature=0.0, stop=[stop])
        return stopped is not None and stopped.strip() == text.partition(stop)[0].strip()

    def _is_strict(self, key: str, text: str) -> bool:
        """Whether the strictest value of a key gives the likeliest text at temperature 1."""
        more = {key: _STRICTEST[key]}
        return all(self._text(temperature=1.0, **more) == text for _ in range(3))


def text_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Returns the text of a reply's tokens, up to the first that is no part of a reply."""
    return tokenizer.decode(token_ids[: reply_length(tokenizer, token_ids)])


def reply_length(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int:
    """Returns the number of tokens before the first that ends a reply."""
    ends = frozenset(tokenizer.chat.stop) | frozenset(tokenizer.control)
    return next((i for i, token in enumerate(token_ids) if token in ends), len(token_ids))
