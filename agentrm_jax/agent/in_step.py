"""A policy that scores its proposals while it decodes them."""

from __future__ import annotations

from collections.abc import Sequence

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.beams import BeamStep, Candidate, InStepPolicy, Kept, ScoredStep
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.engine.schedule.beams import Beams, step_beams
from agentrm_jax.engine.schedule.beams import Kept as KeptReply


class InStepAgent(InStepPolicy):
    """An agent with a scoring model that reads the agent's tokens.

    Args:
      agent: Proposes turns.
      scorer: The engine of the scoring model; it must use the agent's tokenizer and context.

    Raises:
      UserError: The models have vocabularies of different sizes.
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

    def propose_scored(
        self, steps: Sequence[BeamStep], n: int, beam_width: int
    ) -> list[ScoredStep]:
        beams, truncated = zip(*map(self._beams, steps), strict=True) if steps else ((), ())
        results = step_beams(
            self.agent.engine,
            self.scorer,
            beams,
            n=n,
            beam_width=beam_width,
            sampling=self.agent.sampling,
            stops=self.agent.tokenizer.stops,
        )
        return [
            self._scored(step, counts, kept, decoded)
            for step, counts, (kept, decoded) in zip(steps, truncated, results, strict=True)
        ]

    def _beams(self, step: BeamStep) -> tuple[Beams, list[int]]:
        """Returns the engine's form of a step, and the truncated steps of each request."""
        rendered = [self.agent.request(step.states[s], purpose) for s, purpose in step.requests]
        sequences = [self._sequence(state) for state in step.states]
        beams = Beams(
            requests=[request for request, _ in rendered],
            sequences=[sequences[s] for s, _ in step.requests],
            states=[s for s, _ in step.requests],
            finished=step.finished_scores,
        )
        return beams, [count for _, count in rendered]

    def _sequence(self, state: Trajectory) -> TokenSequence:
        """Returns a state as the scoring model reads it."""
        rendered = self.agent.renderer.state(state)
        return TokenSequence(segments=rendered.segments, shared_prefix=rendered.shared_prefix)

    def _scored(
        self, step: BeamStep, truncated: Sequence[int], beam: Sequence[KeptReply], decoded: int
    ) -> ScoredStep:
        candidates: list[Candidate] = []
        kept: list[Kept] = []
        for member in beam:
            if member.reply is None:
                kept.append(Kept(score=member.score, finished=member.number))
                continue
            kept.append(Kept(score=member.score, candidate=len(candidates)))
            proposal = self.agent.proposal(member.reply, truncated[member.number])
            parent, _ = step.requests[member.number]
            candidates.append(Candidate(parent=parent, proposal=proposal))
        return ScoredStep(candidates=tuple(candidates), kept=tuple(kept), tokens_decoded=decoded)
