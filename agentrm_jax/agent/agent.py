"""The policy of a language model: renders states, decodes replies, parses actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt, Proposal, Question
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.seeds import seeded_bytes
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import Reply, Request
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping


class Agent:
    """The `Policy` of a language model.

    Args:
      engine: The model.
      tokenizer: Its tokenizer.
      prompt_of: Returns the prompt of a task, or None.
      sampling: Parameters of sampling; temperature 0 is the greedy agent.
      seed: The run's seed.
      branches: The numbers of turns that requests will ask for; requests for different numbers are
        decoded in one batch.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt_of: Callable[[Task], Prompt | None],
        sampling: Sampling,
        seed: int,
        branches: Sequence[int] = (),
    ) -> None:
        limit = engine.sizes.context - sampling.max_tokens
        if limit < 1:
            raise UserError(
                f"must be above the most tokens of a reply, {sampling.max_tokens}",
                field="engine.context",
                value=engine.sizes.context,
            )
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.renderer = Renderer(tokenizer, prompt_of, limit)
        self.stopping = Stopping(tokens=tuple(tokenizer.stops))
        self._seed = seed
        self._decoders: dict[int, Scheduler] = {}
        if branches:
            decoder = Scheduler(engine, sampling, self.stopping, branches)
            self._decoders = dict.fromkeys(branches, decoder)
        self._tickets: dict[tuple[Scheduler, int], tuple[int, int]] = {}
        self._asked = 0
        self.truncated_steps = 0  # summed over all requests

    def request(self, trajectory: Trajectory, purpose: str) -> tuple[Request, int]:
        """Returns the engine's request for a state, and the number of its truncated steps."""
        segments, truncated = self.renderer.decoded_pieces(trajectory)
        shared_prefix = self.renderer.instruction(trajectory.task) is not None
        key = random_key(self._seed, trajectory.task.task_id, purpose)
        return Request(segments=segments, shared_prefix=shared_prefix, key=key), truncated

    def warm_up(self) -> None:
        """Compiles the programs that `branches` need."""
        for decoder in self._schedulers_once():
            decoder.warm_up()

    def submit(self, questions: Sequence[Question]) -> list[int]:
        tickets = []
        for state, purpose, n, rank in questions:
            request, truncated = self.request(state, purpose)
            self.truncated_steps += truncated
            if n not in self._decoders:
                self._decoders[n] = Scheduler(self.engine, self.sampling, self.stopping, [n])
            decoder = self._decoders[n]
            self._asked += 1
            self._tickets[decoder, decoder.submit(request, n, rank)] = (self._asked, truncated)
            tickets.append(self._asked)
        self._start()
        return tickets

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        answers = []
        while self._tickets and not answers:
            self._start()
            for decoder in self._schedulers_once():
                for number, replies in decoder.collect():
                    ticket, truncated = self._tickets.pop((decoder, number))
                    answers.append((ticket, [self.proposal(reply, truncated) for reply in replies]))
        if self._tickets and self.room() == 0:
            # A new request could not enter the next call, so the call starts now: the device works
            # while the caller's environments act on the answers.
            self._start()
        return answers

    def room(self) -> int:
        return sum(decoder.room() for decoder in self._schedulers_once())

    def _schedulers_once(self) -> list[Scheduler]:
        return list(dict.fromkeys(self._decoders.values()))

    def _start(self) -> None:
        """Starts the next call of every decoder that has requests and no call in flight."""
        for decoder in self._schedulers_once():
            decoder.start()

    def proposal(self, reply: Reply, truncated_steps: int) -> Proposal:
        text = self.tokenizer.decode(list(reply.tokens))
        return Proposal(
            reply=text,
            action=parse_action(text),
            token_ids=reply.tokens,
            log_probs=reply.log_probs,
            stopped=reply.stopped,
            truncated_steps=truncated_steps,
        )


def random_key(seed: int, *names: str) -> np.ndarray:
    """Returns [2] uint32 key data that depends on the run's seed and the names alone."""
    return np.frombuffer(seeded_bytes(seed, *names), np.uint32).copy()
