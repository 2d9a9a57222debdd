"""The policy of a language model: renders states, decodes replies, parses actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import BackgroundPolicy, Prompt, Proposal, Question
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


class Agent(BackgroundPolicy):
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
        self._schedulers: dict[int, Scheduler] = {}
        if branches:
            scheduler = Scheduler(engine, sampling, self.stopping, branches)
            self._schedulers = dict.fromkeys(branches, scheduler)
        self._tickets: dict[tuple[Scheduler, int], tuple[int, int]] = {}
        self._asked = 0
        self.truncated_steps = 0  # summed over all requests

    def request(self, trajectory: Trajectory, purpose: str) -> tuple[Request, int]:
        """Returns the engine's request for a state, and the number of its truncated steps.

        Args:
          trajectory: The state.
          purpose: Name of the turn within its task; part of the random key.
        """
        state = self.renderer.decoded_state(trajectory)
        key = random_key(self._seed, trajectory.task.task_id, purpose)
        request = Request(segments=state.segments, shared_prefix=state.shared_prefix, key=key)
        return request, state.truncated_steps

    def fits(self, state: Trajectory) -> bool:
        """Returns whether a state fits into the context, with room for a reply.

        Args:
          state: The state.
        """
        return self.renderer.decoded_state(state).truncated_steps == 0

    def warm_up(self) -> None:
        """Compiles the programs that `branches` need."""
        for scheduler in self._distinct_schedulers():
            scheduler.warm_up()

    def submit(self, questions: Sequence[Question]) -> list[int]:
        tickets = []
        for state, purpose, n, rank in questions:
            request, truncated = self.request(state, purpose)
            self.truncated_steps += truncated
            if n not in self._schedulers:
                self._schedulers[n] = Scheduler(self.engine, self.sampling, self.stopping, [n])
            scheduler = self._schedulers[n]
            self._asked += 1
            self._tickets[scheduler, scheduler.submit(request, n, rank)] = (self._asked, truncated)
            tickets.append(self._asked)
        self.start()
        return tickets

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        answers = []
        with self.engine.usage.timed():
            while self._tickets and not answers:
                self.start()
                for scheduler in self._distinct_schedulers():
                    for number, replies in scheduler.collect():
                        ticket, truncated = self._tickets.pop((scheduler, number))
                        proposals = [self.proposal(reply, truncated) for reply in replies]
                        answers.append((ticket, proposals))
        return answers

    def room(self) -> int:
        return sum(scheduler.room() for scheduler in self._distinct_schedulers())

    def release(self) -> None:
        """Forgets all requests and gives their pages back, after a call that failed."""
        for scheduler in self._distinct_schedulers():
            scheduler.release()
        self._tickets.clear()

    def _distinct_schedulers(self) -> list[Scheduler]:
        return list(dict.fromkeys(self._schedulers.values()))

    def start(self) -> None:
        """Starts the next call of every scheduler that has requests and no call in flight."""
        for scheduler in self._distinct_schedulers():
            scheduler.start()

    def proposal(self, reply: Reply, truncated_steps: int) -> Proposal:
        """Returns a reply of the engine as text with its action.

        Args:
          reply: The tokens.
          truncated_steps: Number of steps of the state that were truncated.
        """
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
