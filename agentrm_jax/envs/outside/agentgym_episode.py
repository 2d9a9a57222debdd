"""Episodes on an environment server of AgentGym: one of them is one `Simulator`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import weakref
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.addresses import server_address
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.core.text import printable
from agentrm_jax.envs.outside.agentgym_servers import SERVER_KINDS, ServerKind
from agentrm_jax.envs.outside.returns import Earned, RewardRule, is_success
from agentrm_jax.envs.outside.web import AnswerError, ask

MOVED = "AGENTRM_AGENTGYM_"
"""Begins the name of the variable with the new address of a server: `AGENTRM_AGENTGYM_TEXTCRAFT`.
The address in a run's configuration is part of what its stages depend on."""

_CLOSE_SECONDS = 1.0
_NO_ID = object()
_unreachable: set[str] = set()
"""Servers on which an episode could not be closed: no further one is tried."""


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A server, and how it is asked.

    Attributes:
      kind: The requests and answers of its program.
      url: Its address, the path of its kind included.
      seconds: Seconds that one answer may take.
    """

    kind: ServerKind
    url: str
    seconds: float

    @classmethod
    def of_task(cls, task: Task) -> Server:
        """Returns the server that the `spec` of a task names."""
        kind = SERVER_KINDS[task.spec["kind"]]
        url = server_address(os.environ.get(MOVED + kind.name.upper()) or task.spec["url"])
        path = "" if url.endswith(kind.path) else kind.path
        return cls(kind, url + path, task.spec["seconds"])

    def create(self) -> int | str:
        """Begins an episode; returns its number."""
        answer = self.post("/create", self.kind.create)
        number = answer.get(self.kind.id_key) if isinstance(answer, Mapping) else answer
        if isinstance(number, bool) or not isinstance(number, int | str) or number == "":
            raise AnswerError(f"{self.url}/create: no number of an episode in {_brief(answer)}")
        return number

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Returns the answer to a POST request.

        Raises:
          AnswerError: See `web.ask`; or the answer is an error, or about another episode.
        """
        answer = ask("POST", self.url + path, dict(body), seconds=self.seconds)
        return self._checked(path, answer, body.get(self.kind.id_key, _NO_ID))

    def observation(self, number: int | str) -> Any:
        """Returns the answer to `GET /observation`."""
        url = f"{self.url}/observation?{self.kind.id_key}={number}"
        return self._checked("/observation", ask("GET", url, seconds=self.seconds), number)

    def _checked(self, path: str, answer: Any, number: Any) -> Any:
        if isinstance(answer, Mapping):
            if "error" in answer:
                raise AnswerError(f"{self.url}{path}: the server says: {_brief(answer['error'])}")
            other = answer.get(self.kind.id_key, number)
            if number is not _NO_ID and other != number:
                raise AnswerError(
                    f"{self.url}{path}: asked for episode {number}, and the answer is about "
                    f"episode {_brief(other)}"
                )
        return answer


class ServerSimulator:
    """One episode of a server at a time; a reset uses it again (`envs.replay.Simulator`)."""

    def __init__(self) -> None:
        self._server: Server | None = None

    def reset(self, task: Task) -> str:
        """Starts an item.

        Raises:
          AnswerError: The server does not answer properly.
        """
        server = Server.of_task(task)
        if server != self._server:
            self._server, self._number = server, server.create()
            if server.kind.closes:
                weakref.finalize(self, _close, server, self._number)
        kind = server.kind
        self._earned, self._rule = Earned(), RewardRule(**task.spec["reward"])
        self._steps_left = task.max_steps
        body = {kind.id_key: self._number, kind.item_key: task.spec["item"], **kind.reset}
        answer = server.post("/reset", body)
        if kind.observes:
            answer = server.observation(self._number)
        if isinstance(answer, str):
            return answer.removeprefix("Observation:").strip()
        texts = [_text(answer, key, f"{server.url}/reset") for key in kind.first]
        if kind.lists_actions:
            texts.append(f"Available actions: {_listed(answer.get('available_actions'))}")
        return "\n".join(texts)

    def step(self, action: str) -> Transition:
        """Performs an action.

        Raises:
          AnswerError: The server does not answer properly.
          ContractError: The reward is outside of the rule that maps it.
        """
        assert self._server is not None, "step before reset"
        server, kind = self._server, self._server.kind
        said = _plain_words(action) if kind.plain_words else action.strip()
        answer = server.post("/step", {kind.id_key: self._number, "action": said})
        where = f"{server.url}/step"
        text = _text(answer, "state" if "state" in _keys(answer) else "observation", where)
        before, self._steps_left = self._earned, self._steps_left - 1
        self._earned = before.after(_number(answer, kind.reward_key, where), self._rule)
        done = _ended(answer, where)
        return Transition(
            observation=text.removeprefix("Observation:").strip(),
            reward=self._earned.paid - before.paid,
            done=done or self._steps_left <= 0,
            success=done and is_success(self._earned, self._rule),
            valid=said != "" and not text.startswith(kind.refusals or ("\0",)),
        )


def _close(server: Server, number: int | str) -> None:
    """Ends an episode on its server, as far as that is possible in a second."""
    if server.url in _unreachable:
        return
    try:
        url, body = f"{server.url}/close", {server.kind.id_key: number}
        ask("POST", url, body, seconds=_CLOSE_SECONDS)
    except AnswerError:
        _unreachable.add(server.url)


def _plain_words(action: str) -> str:
    return " ".join(re.sub(r"[^A-Za-z0-9, ]+", "", action).split())


def _keys(answer: Any) -> Mapping[str, Any]:
    return answer if isinstance(answer, Mapping) else {}


def _text(answer: Any, key: str, where: str) -> str:
    value = _keys(answer).get(key)
    if not isinstance(value, str):
        raise AnswerError(f"{where}: no text `{key}` in {_brief(answer)}")
    return value


def _number(answer: Any, key: str, where: str) -> float:
    value = _keys(answer).get(key)
    if not isinstance(value, int | float):  # some servers say true for 1
        raise AnswerError(f"{where}: no number `{key}` in {_brief(answer)}")
    with contextlib.suppress(OverflowError):
        return float(value)
    raise AnswerError(f"{where}: `{key}` is too large a number")


def _ended(answer: Any, where: str) -> bool:
    flags = [_keys(answer).get(key) for key in ("done", "terminated", "truncated")]
    given = [flag for flag in flags if isinstance(flag, bool)]
    if not given:
        raise AnswerError(f"{where}: no `done`, true or false, in {_brief(answer)}")
    return any(given)


def _listed(actions: Any) -> str:
    texts = actions if isinstance(actions, list) else []
    return ", ".join(text for text in texts if isinstance(text, str))


def _brief(value: Any) -> str:
    text = printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= 200 else f"{text[:200]}..."
