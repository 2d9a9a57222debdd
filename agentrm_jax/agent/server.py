"""A served policy, asked by the API of OpenAI: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import dataclasses
import heapq
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

from agentrm_jax.clients.answers import read_answer
from agentrm_jax.clients.client import Cancelled, RequestFailed
from agentrm_jax.clients.connection import (
    Connection,
    ServedModelConfig,
    TurnForm,
    TurnRequest,
    strict_keys,
)
from agentrm_jax.clients.probe import ServerFacts
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import BackgroundPolicy, Proposal, Question
from agentrm_jax.core.records import Prompt, Task, Trajectory
from agentrm_jax.core.seeds import derived_seed
from agentrm_jax.engine.programs.sampling import Sampling


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class _Call:
    """One HTTP request: turns `first` to `first + n` of a question. They are sent in this order."""

    rank: float
    ticket: int
    first: int
    n: int = dataclasses.field(compare=False)
    request: TurnRequest = dataclasses.field(compare=False)
    seed: int = dataclasses.field(compare=False)


@dataclasses.dataclass(slots=True)
class ServerUsage:
    """Tokens of a served policy.

    Attributes:
      decoded: Tokens of all turns.
      read: Tokens of all prompts, without those from the server's prefix cache.
      truncated_steps: Steps that did not fit into the context, summed over all requests.
    """

    decoded: int = 0
    read: int = 0
    truncated_steps: int = 0


class ServerPolicy(BackgroundPolicy):
    """A served policy.

    Requests are sent by threads. An answer that is empty or malformed is a failed turn
    (`Proposal.failure`); a server that is away is waited for. Few servers give the same text for
    the same seed whatever else they decode, so results repeat only as far as the server's do.

    Args:
      connection: The server, as the probe found it.
      prompt_of: Returns the prompt of a task, or None.
      sampling: Parameters of sampling.
      seed: Seed of the run. None: that of the search (`best_of_n(..., seed=0)`).

    Attributes:
      sampling: Parameters of sampling.
      usage: Tokens so far; the policies that `with_seed` returns count into it as well.

    Raises:
      UserError: The server does not do what `sampling` asks for.
    """

    def __init__(
        self,
        connection: Connection,
        prompt_of: Callable[[Task], Prompt | None],
        sampling: Sampling,
        seed: int | None = None,
    ) -> None:
        self._connection, self._prompt_of, self.sampling = connection, prompt_of, sampling
        self._own_seed, self._seed = seed, seed or 0
        self._form = TurnForm(connection, prompt_of, sampling)
        if sampling.temperature > 0 and not connection.facts.samples:
            connection.client.note_once(
                "returns the likeliest text at temperature 1 as well: turns of equal states will "
                "be equal; turn sampling on in the server or with extra_body"
            )
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._workers = 0
        self._last_ticket = 0
        self._open: dict[int, list[Proposal | None]] = {}
        self._num_calls = 0  # open ones
        self._answers: queue.SimpleQueue[tuple[_Call, list[Proposal] | BaseException]] = (
            queue.SimpleQueue()
        )
        self._cancelled = threading.Event()
        self.usage = ServerUsage()

    @classmethod
    def connect(
        cls,
        url: str,
        prompts: Mapping[str, Prompt | None] | None = None,
        *,
        sampling: Sampling | None = None,
        config: ServedModelConfig | None = None,
        seed: int | None = None,
    ) -> ServerPolicy:
        """Probes a server and returns its policy.

        Args:
          url: Address of the server, for example `http://127.0.0.1:8000`.
          prompts: Prompts by environment; an environment without one has none.
          sampling: Parameters of sampling (default: temperature 1 and 64 tokens).
          config: Name of the model, key, concurrency, time-outs (default: `ServedModelConfig()`).
          seed: Seed of the run. None: that of the search (`best_of_n(..., seed=0)`).

        Returns:
          The policy.

        Raises:
          UserError: The server cannot be used.
        """
        sampling, known = sampling or Sampling(), dict(prompts or {})
        connection = Connection.open(url, config or ServedModelConfig(), strict_keys(sampling))
        return cls(connection, lambda task: known.get(task.environment), sampling, seed)

    @property
    def facts(self) -> ServerFacts:
        """The features of the server that the probe confirmed."""
        return self._connection.facts

    def with_seed(self, seed: int) -> ServerPolicy:
        """Returns a policy of the same server with the seed of a run.

        Args:
          seed: Ignored if the policy has a seed of its own.

        Returns:
          A policy without open requests.
        """
        own = seed if self._own_seed is None else self._own_seed
        policy = ServerPolicy(self._connection, self._prompt_of, self.sampling, own)
        policy.usage = self.usage
        return policy

    def fits(self, state: Trajectory) -> bool:
        """Returns whether a state fits into the context; True if only the server knows.

        Args:
          state: The state.
        """
        return self._form.fits(state)

    def submit(self, questions: Sequence[Question]) -> list[int]:
        """Queues requests and sends as many as `concurrency` allows.

        Args:
          questions: The requests.

        Returns:
          A ticket for each request.
        """
        tickets, calls = [], []
        for state, purpose, n, rank in questions:
            request = self._form.request(state)
            self.usage.truncated_steps += request.truncated_steps
            self._last_ticket += 1
            ticket, task_id = self._last_ticket, state.task.task_id
            self._open[ticket] = [None] * n
            size = n if self._connection.takes_n() else 1
            for first in range(0, n, size):
                names = (task_id, purpose) if first == 0 else (task_id, purpose, str(first))
                seed = derived_seed(self._seed, *names)
                calls.append(_Call(rank, ticket, first, size, request, seed))
            tickets.append(ticket)
        with self._lock:
            self._num_calls += len(calls)
            for call in calls:
                heapq.heappush(self._waiting, call)
        self.start()
        return tickets

    def start(self) -> None:
        """Starts threads for requests that wait, `concurrency` at most."""
        with self._lock:
            most = self._connection.config.concurrency
            new = min(len(self._waiting), most - self._workers)
            self._workers += max(new, 0)
        for _ in range(new):
            arguments = (self._waiting, self._answers, self._cancelled)
            threading.Thread(target=self._work, args=arguments, daemon=True).start()

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        """Waits until a request is answered.

        Returns:
          (ticket, turns) of at least one request if any is open.

        Raises:
          UserError: The server was away for too long, refuses the key, or has another model.
        """
        finished: list[tuple[int, list[Proposal]]] = []
        try:
            while self._open and not (finished and self._answers.empty()):
                call, answer = self._answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                finished += self._stored(call, answer)
        except BaseException:
            self._cancel()
            raise
        return finished

    def room(self) -> int:
        """Returns the number of requests that can be sent at once.

        Returns:
          `concurrency` without the open requests; 0 if there are more of these.
        """
        return max(0, self._connection.config.concurrency - self._num_calls)

    def _stored(self, call: _Call, proposals: list[Proposal]) -> list[tuple[int, list[Proposal]]]:
        """Stores the turns of a call; returns those of its question if no other is missing."""
        with self._lock:
            self._num_calls -= 1
        self.usage.decoded += sum(proposal.tokens for proposal in proposals)
        self.usage.read += sum(max(0, p.prompt_tokens - p.cached_tokens) for p in proposals)
        turns = self._open[call.ticket]
        turns[call.first : call.first + call.n] = proposals
        whole = [turn for turn in turns if turn is not None]
        if len(whole) < len(turns):
            return []
        del self._open[call.ticket]
        return [(call.ticket, whole)]

    def _cancel(self) -> None:
        """Forgets all open requests; threads that wait for the server end."""
        with self._lock:
            self._cancelled.set()
            self._waiting, self._workers, self._num_calls = [], 0, 0
            self._cancelled, self._answers = threading.Event(), queue.SimpleQueue()
            self._open.clear()

    def _work(
        self,
        waiting: list[_Call],
        answers: queue.SimpleQueue[tuple[_Call, list[Proposal] | BaseException]],
        cancelled: threading.Event,
    ) -> None:
        """Sends requests until none waits: the work of one thread."""
        while True:
            with self._lock:
                if cancelled.is_set():
                    return
                if not waiting:
                    self._workers -= 1
                    return
                call = heapq.heappop(waiting)
            try:
                answers.put((call, self._asked(call, cancelled)))
            except Cancelled:
                return
            except BaseException as error:
                answers.put((call, error))

    def _asked(self, call: _Call, cancelled: threading.Event) -> list[Proposal]:
        """Returns the turns of a call, failed ones if the server gives none."""
        client = self._connection.client
        body = self._form.numbered(call.request, call.n, call.seed)
        try:
            value = client.post(self._form.path, body, cancelled)
            answer = read_answer(value, call.n)
        except RequestFailed as error:
            client.note_failure("a turn", error)
            return [Proposal.failed(str(error))] * call.n
        if answer.model and answer.model != self.facts.answers_as != "":
            raise UserError(
                f"{client.url}: answers with the model {answer.model!r} and "
                f"answered with {self.facts.answers_as!r} before; everything so far is kept: serve "
                "that model again and give the same command to resume"
            )
        turns = self._form.proposals(answer, call.request.truncated_steps)
        for turn in turns:
            if turn.failure is not None:
                client.note_failure("a turn", turn.failure)
        return turns
