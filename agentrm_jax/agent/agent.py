"""A policy from an engine: renders states, asks the engine, parses the replies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from agentrm_jax.agent.reply import parse_action
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt, Proposal
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer
from agentrm_jax.engine.engine import Engine, Reply, Request
from agentrm_jax.engine.sampling import Sampling


class Agent:
    """The `Policy` of a language model.

    Args:
      engine: The model.
      tokenizer: Its tokenizer.
      prompt_of: The prompt of a task, or None.
      sampling: How turns are sampled; temperature 0 is the greedy agent.
      seed: The run's seed.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt_of: Callable[[Task], Prompt | None],
        sampling: Sampling,
        seed: int,
    ) -> None:
        limit = engine.sizes.context - sampling.max_tokens
        if limit < 1:
            raise UserError(
                f"engine.context: {engine.sizes.context} tokens leave no room beside "
                f"max_tokens = {sampling.max_tokens}"
            )
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.renderer = Renderer(tokenizer, prompt_of, limit)
        self._seed = seed
        self.truncated_steps = 0  # that did not fit into the context, added up over the turns

    def request(self, trajectory: Trajectory, purpose: str) -> tuple[Request, int]:
        """The engine's request for a state, and how many of its steps did not fit."""
        pieces, dropped = self.renderer.pieces(trajectory)
        key = random_key(self._seed, trajectory.task.task_id, purpose)
        return Request(pieces=pieces, key=key), dropped

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

    def propose(self, requests: Sequence[tuple[Trajectory, str]], n: int) -> list[list[Proposal]]:
        rendered = [self.request(trajectory, purpose) for trajectory, purpose in requests]
        self.truncated_steps += sum(dropped for _, dropped in rendered)
        replies = self.engine.generate(
            [request for request, _ in rendered],
            n=n,
            sampling=self.sampling,
            stop=self.tokenizer.chat.stop,
        )
        return [
            [self.proposal(reply, dropped) for reply in group]
            for group, (_, dropped) in zip(replies, rendered, strict=True)
        ]


def random_key(seed: int, *names: str) -> np.ndarray:
    """[2] uint32 key data from the run's seed and names: the same wherever it is asked for."""
    text = "\0".join((str(seed), *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint32).copy()
