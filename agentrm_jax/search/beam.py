"""Step-level beam search (paper section 3.4) over many tasks at once.

W1 states are kept (`beam_width`), W2 turns are sampled from each (`expansion_width`). The first
step samples W1 x W2 first actions from the root.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from agentrm_jax.agent.function import PolicyFunction, as_policy
from agentrm_jax.core.beams import BeamStep, Candidate, InStepPolicy, Kept, SelectingScorer
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import admitted, scores_of
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.reward.function import ScoreFunction, as_scorer
from agentrm_jax.search.live_search import LiveStateSearch, Moved
from agentrm_jax.search.live_states import Request, State, TaskSearch, Turn
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.tasks import checked_tasks
from agentrm_jax.search.turns import run_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search.

    Attributes:
      beam_width: W1, states kept.
      expansion_width: W2, turns sampled from each.
      score_at: `observation`: every candidate acts and its successor state is scored (the paper);
        `action`: candidates are scored before they act, in the compiled decoding step itself, and
        only those that are kept act: W2 times fewer environment steps.
      concurrency: Tasks searched at the same time. It changes speed, never results.
    """

    beam_width: int = 5
    expansion_width: int = 5
    score_at: Literal["action", "observation"] = "observation"
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self, beam_width="[1, 10000]", expansion_width="[1, 10000]", concurrency="[1, 100000]"
        )
        check_choice("score_at", self.score_at, ("action", "observation"))


def beam_search(
    policy: Policy | PolicyFunction,
    scorer: Scorer | ScoreFunction,
    envs: EnvironmentPool,
    tasks: Sequence[Task],
    *,
    beam_width: int = 5,
    expansion_width: int = 5,
    seed: int = 0,
    concurrency: int = 16,
) -> Iterator[Rollout]:
    """Searches each task; yields the best-scored finished trajectory of each as it is found.

    A task's result does not depend on the other tasks.

    Args:
      policy: A policy, or a function `(state, n, seed) -> texts`.
      scorer: A reward model, or a function `(states) -> scores`. It scores successor states.
      envs: The environments.
      tasks: The tasks, each once.
      beam_width: States kept after each step.
      expansion_width: Turns sampled from each state.
      seed: Seed of a policy function.
      concurrency: Tasks searched at the same time. It changes speed, never results.

    Yields:
      The answer to each task, as it is found.

    Raises:
      UserError: A width or `concurrency` is out of range, a task is refused or there twice, or the
        policy or the scorer breaks its protocol.
    """
    config = BeamConfig(
        beam_width=beam_width, expansion_width=expansion_width, concurrency=concurrency
    )
    tasks = checked_tasks(tasks)
    return search_beams(as_policy(policy, seed), as_scorer(scorer), envs, tasks, config)


def search_beams(
    policy: Policy,
    scorer: Scorer,
    pool: EnvironmentPool,
    tasks: Sequence[Task],
    config: BeamConfig,
    in_step: InStepPolicy | None = None,
) -> Iterator[Rollout]:
    """Runs `beam_search` as a configuration describes it.

    Args:
      policy: Proposes turns for `score_at: observation`.
      scorer: Scores states.
      pool: The environments.
      tasks: The tasks.
      config: The search.
      in_step: Proposes and scores turns for `score_at: action`.

    Raises:
      UserError: `score_at: action` without `in_step`.
    """
    if config.score_at == "action" and in_step is None:
        raise UserError(
            "must be observation because this reward model does not score in-step",
            field="score_at",
        )
    if config.score_at == "observation":
        in_step = None
    search = BeamSearch(policy, scorer, pool, tasks, config, in_step)
    return run_steps(search, config.concurrency)


class BeamSearch(LiveStateSearch):
    """Beam search as the turn loop drives it.

    Args:
      policy: Proposes turns.
      scorer: Scores states.
      pool: The environments.
      tasks: The tasks.
      config: The widths.
      in_step: Proposes and scores turns before they act; None scores successor states.
    """

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        config: BeamConfig,
        in_step: InStepPolicy | None = None,
    ) -> None:
        super().__init__(policy, scorer, pool, tasks)
        self._config, self._in_step = config, in_step

    def advance(self) -> None:
        if self._in_step is None:
            self._step_scored_after()
        else:
            self._step_scored_first(self._in_step)

    def scored_states(self, moved: Moved) -> list[list[State]]:
        """Returns the states whose scores the new states get: these are their own.

        Args:
          moved: The searches, each with its new states.
        """
        return [states for _, states in moved]

    def _requests(self, search: TaskSearch) -> list[Request]:
        """Returns a request for each live state; for the root, one for each beam."""
        width = self._config.beam_width if search.depth == 0 else 1
        return search.requests("beam", search.live * width)

    def _step_scored_after(self) -> None:
        """Every candidate acts, then the successor states are scored."""
        requests = [self._requests(search) for search in self.running]
        moved = self.act(self.sample_merged(requests, self._config.expansion_width))
        scored = self.scored_states(moved)
        trajectories = [[state.trajectory for state in states] for states in scored]
        finished = [[state.score for state in search.finished] for search, _ in moved]
        rankings = _ranked(
            self.scorer, list(zip(trajectories, finished, strict=True)), self._config
        )
        for (search, states), read, ranking in zip(moved, scored, rankings, strict=True):
            search.scored += [state.trajectory for state in read]
            beams = []
            for member in ranking:
                if member.candidate is not None:
                    states[member.candidate].score = member.score
                    read[member.candidate].score = member.score
                beams.append(_state(member, search.finished, states))
            search.finished = []
            self.release(search.settle(states, beams[: self._config.beam_width]))

    def _step_scored_first(self, in_step: InStepPolicy) -> None:
        """Candidates are decoded, scored and selected in one program; those that are kept act."""
        steps = [
            BeamStep(
                states=tuple(state.trajectory for state in search.live),
                requests=tuple(
                    (search.live.index(state), purpose)
                    for _, state, purpose in self._requests(search)
                ),
                finished_scores=tuple(state.score for state in search.finished),
            )
            for search in self.running
        ]
        results = in_step.propose_scored(
            steps, self._config.expansion_width, self._config.beam_width
        )
        turns: list[list[Turn]] = []
        for search, result in zip(self.running, results, strict=True):
            search.policy_tokens += result.tokens_decoded
            search.scored_replies += result.tokens_decoded
            search.scored += [state.trajectory for state in search.live]
            own = [
                _turn(search, result.candidates[kept.candidate], kept.score)
                for kept in result.kept
                if kept.candidate is not None
            ]
            search.truncated_steps += sum(turn.proposal.truncated_steps for turn in own)
            turns.append(own)
            stay = [kept.finished for kept in result.kept if kept.finished is not None]
            search.finished = [search.finished[number] for number in stay]
        for search, states in self.act(turns):
            search.settle(states, states)


def _ranked(
    scorer: Scorer,
    tasks: Sequence[tuple[Sequence[Trajectory], Sequence[float]]],
    config: BeamConfig,
) -> list[list[Kept]]:
    """Ranks the new states and the finished beams of each task; the first ones are its next beam.

    Of equal scores the first is kept, finished beams before states. States for which the reward
    model returns no number come last.
    """
    if isinstance(scorer, SelectingScorer):
        return scorer.select(tasks, config.expansion_width, config.beam_width)
    rankings = []
    all_scores = scores_of(scorer, [states for states, _ in tasks])
    for (_, finished), scores in zip(tasks, all_scores, strict=True):
        members = [Kept(score=score, finished=b) for b, score in enumerate(finished)]
        members += [
            Kept(score=-math.inf if math.isnan(score) else score, candidate=c)
            for c, score in enumerate(scores)
        ]
        rankings.append(sorted(members, key=lambda member: -member.score))
    return rankings


def _turn(search: TaskSearch, candidate: Candidate, score: float) -> Turn:
    proposal = admitted(candidate.proposal, search.task.task_id)
    return Turn(parent=search.live[candidate.parent], proposal=proposal, score=score)


def _state(member: Kept, finished: Sequence[State], candidates: Sequence[State]) -> State:
    if member.candidate is not None:
        return candidates[member.candidate]
    assert member.finished is not None
    return finished[member.finished]
