"""A policy from an engine: renders states, asks the engine, parses the replies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.agent.reply import parse_action
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt, Proposal, Question
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import Reply, Request
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import stopping_at


class Agent:
    """The `Policy` of a language model.

    Args:
      engine: The model.
      tokenizer: Its tokenizer.
      prompt_of: The prompt of a task, or None.
      sampling: How turns are sampled; temperature 0 is the greedy agent.
      seed: The run's seed.
      branches: The numbers of turns that will be asked for at the same time; states that ask for
        different numbers are decoded in one batch.
      stop_strings: A reply ends before any of them, as at the stop token.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt_of: Callable[[Task], Prompt | None],
        sampling: Sampling,
        seed: int,
        branches: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
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
        self.stopping = stopping_at(
            stop_strings, tokenizer.stops, tokenizer.vocab_size, tokenizer.decode
        )
        self._seed = seed
        self._decoders: dict[int, Scheduler] = {}
        if branches:
            decoder = Scheduler(engine, sampling, self.stopping, branches)
            self._decoders = dict.fromkeys(branches, decoder)
        self._tickets: dict[tuple[Scheduler, int], tuple[int, int]] = {}
        self._asked = 0
        self.truncated_steps = 0  # left out or shortened to fit, added up over the turns

    def request(self, trajectory: Trajectory, purpose: str) -> tuple[Request, int]:
        """Returns the engine's request for a state, and how many of its steps did not fit."""
        segments, dropped = self.renderer.decoded_pieces(trajectory)
        shared_prefix = self.renderer.instruction(trajectory.task) is not None
        key = random_key(self._seed, trajectory.task.task_id, purpose)
        return Request(segments=segments, shared_prefix=shared_prefix, key=key), dropped

    def warm_up(self) -> None:
        """Compiles all that answering needs, where `branches` were given."""
        for decoder in dict.fromkeys(self._decoders.values()):
            decoder.warm_up()

    def submit(self, questions: Sequence[Question]) -> list[int]:
        tickets = []
        for state, purpose, n, rank in questions:
            request, dropped = self.request(state, purpose)
            self.truncated_steps += dropped
            if n not in self._decoders:
                self._decoders[n] = Scheduler(self.engine, self.sampling, self.stopping, [n])
            decoder = self._decoders[n]
            self._asked += 1
            self._tickets[decoder, decoder.submit(request, n, rank)] = (self._asked, dropped)
            tickets.append(self._asked)
        for decoder in dict.fromkeys(self._decoders.values()):
            decoder.start()
        return tickets

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        found = []
        for decoder in dict.fromkeys(self._decoders.values()):
            for number, replies in decoder.collect():
                ticket, dropped = self._tickets.pop((decoder, number))
                found.append((ticket, [self.proposal(reply, dropped) for reply in replies]))
        return found

    def room(self) -> int:
        return sum(decoder.room() for decoder in dict.fromkeys(self._decoders.values()))

    def proposal(self, reply: Reply, dropped_steps: int) -> Proposal:
        text = self.tokenizer.decode(list(reply.tokens))
        return Proposal(
            reply=text,
            action=parse_action(text),
            token_ids=reply.tokens,
            log_probs=reply.log_probs,
            stopped=reply.stopped,
            dropped_steps=dropped_steps,
        )


def random_key(seed: int, *names: str) -> np.ndarray:
    """[2] uint32 key data from the run's seed and names: the same wherever it is asked for."""
    text = "\0".join((str(seed), *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint32).copy()
