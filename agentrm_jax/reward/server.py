"""A served reward model: `/classify`, `/pooling` or `/get_reward`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from agentrm_jax.clients.answers import token_count
from agentrm_jax.clients.client import Client, RequestFailed
from agentrm_jax.clients.config import ServerConfig
from agentrm_jax.clients.connection import transcript
from agentrm_jax.clients.probe import served_model
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice
from agentrm_jax.core.records import Prompt, Task, Trajectory
from agentrm_jax.core.text import admit_text, printable
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer

RewardApi = Literal["classify", "pooling", "get_reward"]
APIS: tuple[RewardApi, ...] = ("classify", "pooling", "get_reward")

_MOST_COSTS = 65_536
_UNLIMITED = 1 << 30
_PROBE = [
    {"role": "user", "content": "Which colour has the sky?"},
    {"role": "assistant", "content": "Blue."},
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedRewardConfig(ServerConfig):
    """A served reward model.

    Attributes:
      api: The endpoint: `classify` and `pooling` of vLLM, which read messages or token ids;
        `get_reward` of OpenRLHF, which reads text.
    """

    api: RewardApi = "classify"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("api", self.api, APIS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RewardFacts:
    """The names of a served reward model.

    Attributes:
      api: The endpoint.
      model: Name under which it is asked; empty if none is sent.
      answers_as: Name of the model in the answers.
    """

    api: RewardApi
    model: str = ""
    answers_as: str = ""


class ServerScorer:
    """Scores trajectories by a served reward model.

    The value is taken as the server gives it: vLLM squashes it into (0, 1) unless the model's
    `problem_type` is regression. A trajectory that the server refuses, or for which it gives no
    number, is NaN: the reward model did not decide.

    Args:
      client: Asks the server.
      config: The endpoint.
      prompt_of: Returns the prompt of a task, or None.
      tokenizer: That of the reward model with its chat format. With one, conversations are sent as
        our token ids, or to `/get_reward` as the text of the template; without one as messages, or
        as plain text.

    Attributes:
      facts: What is known of the reward model.
      tokens_read: Tokens that it has read, by the server's count.

    Raises:
      UserError: The server does not score a short conversation.
    """

    def __init__(
        self,
        client: Client,
        config: ServedRewardConfig,
        prompt_of: Callable[[Task], Prompt | None],
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._client, self._prompt_of = client, prompt_of
        self._api: RewardApi = config.api
        self._renderer = None
        if tokenizer is not None:
            self._renderer = Renderer(tokenizer, prompt_of, _UNLIMITED)
        model = client.config.model
        if config.api != "get_reward":
            model, _ = served_model(client)
        self.facts = RewardFacts(api=config.api, model=model)
        self._costs: dict[int, int] = {}
        self._lock = threading.Lock()
        self.tokens_read = 0
        self._probe()

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns scores as `Scorer.score` does.

        Args:
          groups: Each holds trajectories of one task.

        Raises:
          UserError: The server was away for too long, or has another model.
        """
        flat = [trajectory for group in groups for trajectory in group]
        scores = iter(self._scores(flat))
        return [[next(scores) for _ in group] for group in groups]

    def _scores(self, flat: Sequence[Trajectory]) -> list[float]:
        """Scores in threads that do not hold up the end of the process, as those of a pool do."""
        waiting, cancelled = collections.deque(enumerate(flat)), threading.Event()
        answers: queue.SimpleQueue[tuple[int, float | BaseException]] = queue.SimpleQueue()

        def work() -> None:
            while waiting and not cancelled.is_set():
                with contextlib.suppress(IndexError):  # another thread took the last one
                    number, trajectory = waiting.popleft()
                    try:
                        answers.put((number, self._score(trajectory, cancelled)))
                    except BaseException as error:
                        answers.put((number, error))

        found = [math.nan] * len(flat)
        try:
            for _ in range(min(self._client.config.concurrency, len(flat))):
                threading.Thread(target=work, daemon=True).start()
            for _ in flat:
                number, answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                found[number] = answer
        finally:
            cancelled.set()
        return found

    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns the number of tokens that the server read for a group that was scored.

        Args:
          group: Trajectories of one task.

        Returns:
          The tokens by the server's count, 0 if it does not count. A common beginning counts for
          each trajectory, as nobody knows what the server keeps.
        """
        return sum(self._costs.get(_key(trajectory), 0) for trajectory in group)

    def _probe(self) -> None:
        """Refuses a server that does not score a short conversation."""
        text = transcript(_PROBE)
        body = {"query": [text]} if self._api == "get_reward" else {"messages": _PROBE}
        try:
            value, score, _ = self._asked(body, threading.Event())
        except RequestFailed as error:
            raise UserError(f"{self._client.url}/{self._api}: scores nothing ({error})") from None
        if math.isnan(score):
            raise UserError(
                f"{self._client.url}/{self._api}: must answer a conversation with a number"
            )
        self.facts = dataclasses.replace(self.facts, answers_as=_model_in(value))

    def _score(self, trajectory: Trajectory, cancelled: threading.Event) -> float:
        try:
            value, score, tokens = self._asked(self._body(trajectory), cancelled)
        except RequestFailed as error:
            self._client.note_failure("the score of a trajectory", error)
            return math.nan
        if math.isnan(score):
            self._client.note_failure("the score of a trajectory", "the answer holds no number")
        model = _model_in(value)
        if model and model != self.facts.answers_as != "":
            raise UserError(
                f"{self._client.url}: scores with the model {model!r} and scored with "
                f"{self.facts.answers_as!r} before; serve that model again"
            )
        with self._lock:
            self.tokens_read += tokens
            if len(self._costs) >= _MOST_COSTS:
                del self._costs[next(iter(self._costs))]
            self._costs[_key(trajectory)] = tokens
        return score

    def _body(self, trajectory: Trajectory) -> dict[str, Any]:
        if self._renderer is not None:
            segments = self._renderer.state(trajectory).segments
            ids = [int(token) for segment in segments for token in segment]
            if self._api == "get_reward":
                return {"query": [self._renderer.tokenizer.decode(ids)]}
            return {"input": [ids]}
        messages = trajectory.messages(self._prompt_of(trajectory.task))
        return (
            {"query": [transcript(messages)]}
            if self._api == "get_reward"
            else {"messages": messages}
        )

    def _asked(self, body: Mapping[str, Any], cancelled: threading.Event) -> tuple[Any, float, int]:
        """Returns the answer, its score and the tokens that were read."""
        body = {**({"model": self.facts.model} if self.facts.model else {}), **body}
        if self._api == "pooling":
            body["task"] = "classify"
        value = self._client.post(f"/{self._api}", body, cancelled)
        usage = value.get("usage") if isinstance(value, Mapping) else None
        tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        return value, reward_in(value, self._api), token_count(tokens) or 0


def reward_in(value: Any, api: RewardApi) -> float:
    """Returns the score in an answer, NaN if there is none.

    Args:
      value: The JSON value. Of a list of numbers the last is the score: the class that stands for
        good, or the last token.
      api: The endpoint.
    """
    if not isinstance(value, Mapping):
        return math.nan
    if api == "get_reward":
        return _last_number(value.get("rewards"))
    data = value.get("data")
    entry = data[-1] if isinstance(data, list) and data else None
    if not isinstance(entry, Mapping):
        return math.nan
    return _last_number(entry.get("probs" if api == "classify" else "data"))


def _last_number(value: Any) -> float:
    while isinstance(value, list):
        value = value[-1] if value else None
    if type(value) not in (int, float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def _model_in(value: Any) -> str:
    model = value.get("model") if isinstance(value, Mapping) else None
    return printable(admit_text(model, 200)) if isinstance(model, str) else ""


def _key(trajectory: Trajectory) -> int:
    """A key of a trajectory: its task and its texts."""
    texts = tuple((step.reply, step.transition.observation) for step in trajectory.steps)
    return hash((trajectory.task.task_id, trajectory.first_observation, texts))
