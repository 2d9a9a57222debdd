"""Proposals that are scored while they are decoded."""

from __future__ import annotations

from collections.abc import Sequence

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Proposal
from agentrm_jax.core.records import Trajectory
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.engine.schedule.beams import Beams, step_beams


class InStepAgent:
    """An agent and a scoring model that reads the agent's tokens.

    Args:
      agent: Proposes.
      scorer: The scoring model's engine; it must use the agent's tokenizer and context.
    """

    def __init__(self, agent: Agent, scorer: Engine) -> None:
        if scorer.config.vocab_size != agent.engine.config.vocab_size:
            raise UserError(
                "must be observation because the vocabulary of the reward model "
                f"({scorer.config.vocab_size}) is not that of the policy "
                f"({agent.engine.config.vocab_size})",
                field="score_at",
            )
        self.agent, self.scorer = agent, scorer

    def _sequence(self, state: Trajectory) -> TokenSequence:
        """A state as the scorer reads it."""
        renderer = self.agent.renderer
        shared_prefix = renderer.instruction(state.task) is not None
        return TokenSequence(segments=renderer.pieces(state)[0], shared_prefix=shared_prefix)

    def propose_scored(
        self,
        requests: Sequence[Sequence[tuple[Trajectory, str]]],
        finished_scores: Sequence[Sequence[float]],
        n: int,
        beam_width: int,
    ) -> list[tuple[list[tuple[int, Proposal | None, float]], int]]:
        """See `search.beam.InStepPolicy`."""
        tasks, dropped = [], []
        for states, finished in zip(requests, finished_scores, strict=True):
            rendered = [self.agent.request(state, purpose) for state, purpose in states]
            numbers = {id(state): i for i, (state, _) in enumerate(states)}
            tasks.append(
                Beams(
                    requests=[request for request, _ in rendered],
                    sequences=[self._sequence(state) for state, _ in states],
                    states=[numbers[id(state)] for state, _ in states],
                    finished=finished,
                )
            )
            dropped.append([count for _, count in rendered])
        steps = step_beams(
            self.agent.engine,
            self.scorer,
            tasks,
            n=n,
            beam_width=beam_width,
            sampling=self.agent.sampling,
            stops=self.agent.tokenizer.stops,
        )
        return [
            (
                [
                    (k.number, self.agent.proposal(k.reply, counts[k.number]), k.score)
                    if k.reply is not None
                    else (k.number, None, k.score)
                    for k in kept
                ],
                decoded,
            )
            for (kept, decoded), counts in zip(steps, dropped, strict=True)
        ]
