"""The explicit reward model as a `Scorer`: one value for each state (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from agentrm_jax.core.beams import Kept, SelectingScorer
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.render import Renderer
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import score
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.engine.schedule.beams import select_states


class ExplicitScorer(SelectingScorer):
    """Scores a state by the value head at its last token.

    Args:
      engine: The reward model, with its readout.
      renderer: Renders states as the model was trained on them.
    """

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self.engine, self.renderer = engine, renderer

    @property
    def tokens_read(self) -> int:
        """Number of tokens that the model has read."""
        return self.engine.usage.read

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        flat = [self._sequence(state) for group in groups for state in group]
        with self.engine.usage.timed():
            scores = iter(score(self.engine, flat))
        return [[next(scores) for _ in group] for group in groups]

    def select(
        self,
        tasks: Sequence[tuple[Sequence[Trajectory], Sequence[float]]],
        expansion_width: int,
        beam_width: int,
    ) -> list[list[Kept]]:
        sequences = [
            ([self._sequence(state) for state in states], finished) for states, finished in tasks
        ]
        with self.engine.usage.timed():
            choices = select_states(
                self.engine, sequences, n=expansion_width, beam_width=beam_width
            )
        return [
            [
                Kept(score=score, finished=number)
                if number < beam_width
                else Kept(score=score, candidate=number - beam_width)
                for number, score in choice
            ]
            for choice in choices
        ]

    def _sequence(self, state: Trajectory) -> TokenSequence:
        rendered = self.renderer.state(state)
        return TokenSequence(segments=rendered.segments, shared_prefix=rendered.shared_prefix)

    def cost(self, group: Sequence[Trajectory]) -> int:
        read: dict[tuple[bytes, ...], int] = {}
        for trajectory in group:
            beginning: tuple[bytes, ...] = ()
            for segment in self.renderer.state(trajectory).segments:
                beginning = (*beginning, segment.tobytes())
                read[beginning] = len(segment)
        return sum(read.values())
