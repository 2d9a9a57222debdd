"""Protocols of policies and scorers that select the next beam by themselves. No JAX here."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

from agentrm_jax.core.protocols import Proposal
from agentrm_jax.core.records import Trajectory


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A member of the next beam: either a candidate or a finished beam that stays.

    Attributes:
      score: Its score.
      candidate: Index of the candidate, or None.
      finished: Index of the finished beam, or None.
    """

    score: float
    candidate: int | None = None
    finished: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A turn that was sampled for one of the live states of a beam.

    Attributes:
      parent: Index of the state.
      proposal: The turn.
    """

    parent: int
    proposal: Proposal


class SelectingScorer(abc.ABC):
    """A reward model that scores new states and selects the next beam in one compiled program.

    A base class: beam search calls `select` only on scorers that derive from it.
    """

    @abc.abstractmethod
    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        """Returns scores as `Scorer.score` does."""

    @abc.abstractmethod
    def cost(self, group: Sequence[Trajectory]) -> int:
        """Returns the number of tokens read as `Scorer.cost` does."""

    @abc.abstractmethod
    def select(
        self,
        tasks: Sequence[tuple[Sequence[Trajectory], Sequence[float]]],
        expansion_width: int,
        beam_width: int,
    ) -> list[list[Kept]]:
        """Selects the best `beam_width` of each task's new states and finished beams.

        Args:
          tasks: For each task its new states (the candidates) and the scores of its finished beams.
          expansion_width: Turns sampled from each live state; bounds the number of new states.
          beam_width: Number of beams to keep.

        Returns:
          For each task the next beam, best first. The new states that are not in it may follow:
          reports then show their scores.
        """


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BeamStep:
    """One step of one task's beam search: the input of an `InStepPolicy`.

    Attributes:
      states: Live states.
      requests: (index of the state, purpose) for each request of n turns. A state may be named
        several times; equal turns of one state count once.
      finished_scores: Scores of the finished beams.
    """

    states: tuple[Trajectory, ...]
    requests: tuple[tuple[int, str], ...]
    finished_scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoredStep:
    """The result of a `BeamStep`.

    Attributes:
      candidates: The sampled turns; those that are not kept may be absent.
      kept: The next beam, best first; `Kept.candidate` is an index of `candidates`.
      tokens_decoded: Tokens of all sampled turns, kept or not.
    """

    candidates: tuple[Candidate, ...]
    kept: tuple[Kept, ...]
    tokens_decoded: int


class InStepPolicy(abc.ABC):
    """A policy that scores and selects its proposals in the program that decodes them."""

    @abc.abstractmethod
    def propose_scored(
        self, steps: Sequence[BeamStep], n: int, beam_width: int
    ) -> list[ScoredStep]:
        """Samples n turns for each request and keeps the best `beam_width` of each task.

        Args:
          steps: One for each task.
          n: Turns for each request.
          beam_width: Number of candidates and finished beams to keep.

        Returns:
          A result for each task, in order.
        """
