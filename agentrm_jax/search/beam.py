"""Step-level beam search (paper section 3.4) over many tasks at once.

W1 states are kept (`beam_width`), W2 turns are sampled from each (`expansion_width`). The first
step samples W1 x W2 first actions from the root.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from agentrm_jax.agent.function import PolicyFunction, as_policy
from agentrm_jax.core.beams import BeamStep, Candidate, InStepPolicy, Kept, SelectingScorer
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import AdmittedPolicy, admitted, scores_of
from agentrm_jax.core.protocols import EnvironmentFailure, EnvironmentPool, Policy, Scorer, propose
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.reward.function import ScoreFunction, as_scorer
from agentrm_jax.search.environments import act
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.tasks import checked_tasks
from agentrm_jax.search.turns import ATTEMPTS, StepSearch, run_steps


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
    search = _BeamSearch(AdmittedPolicy(policy), scorer, pool, tasks, config, in_step)
    return run_steps(search, config.concurrency)


@dataclasses.dataclass(frozen=True, slots=True)
class _Beam:
    """A state of the beam; `handle` is its environment, None if the state is finished."""

    trajectory: Trajectory
    handle: int | None
    score: float = -math.inf

    @property
    def environment(self) -> int:
        assert self.handle is not None
        return self.handle


@dataclasses.dataclass(slots=True)
class _TaskBeams:
    """The beam of one task and the counts of its search.

    Attributes:
      scored: States that the reward model has read.
      scored_replies: Tokens of replies that the reward model has read while they were decoded.
    """

    task: Task
    beams: list[_Beam]
    began: float
    scored: list[Trajectory] = dataclasses.field(default_factory=list)
    scored_replies: int = 0
    depth: int = 0
    policy_tokens: int = 0
    truncated_steps: int = 0
    env_steps: int = 0
    attempt: int = 0
    failed_candidates: int = 0
    error: str | None = None

    @property
    def live(self) -> list[_Beam]:
        return [beam for beam in self.beams if beam.handle is not None]

    @property
    def finished(self) -> list[_Beam]:
        return [beam for beam in self.beams if beam.handle is None]

    def requests(self, beam_width: int) -> list[tuple[int, str]]:
        """Returns (index of a live state, purpose): each once, the root `beam_width` times."""
        parents = [0] * beam_width if self.depth == 0 else range(len(self.live))
        again = f"/again/{self.attempt}" if self.attempt else ""
        return [(parent, f"beam/{self.depth}/{p}{again}") for p, parent in enumerate(parents)]

    def result(self, scorer: Scorer) -> Rollout:
        best = max(self.beams, key=lambda beam: beam.score)
        return Rollout(
            trajectory=best.trajectory,
            sample=0,
            policy_tokens=self.policy_tokens,
            truncated_steps=self.truncated_steps,
            env_steps=self.env_steps,
            failed_candidates=self.failed_candidates,
            reward_tokens=scorer.cost(self.scored) + self.scored_replies,
            wall_seconds=time.monotonic() - self.began,
            error=self.error,
        )


class _BeamSearch(StepSearch[Rollout]):
    """Beam search as the turn loop drives it."""

    def __init__(
        self,
        policy: AdmittedPolicy,
        scorer: Scorer,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        config: BeamConfig,
        in_step: InStepPolicy | None,
    ) -> None:
        self._policy, self._in_step = policy, in_step
        self._scorer, self._pool, self._config = scorer, pool, config
        self._waiting = list(reversed(tasks))
        self._searches: list[_TaskBeams] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._searches)

    def begin(self, count: int) -> Iterator[Rollout]:
        tasks = [self._waiting.pop() for _ in range(count)]
        for task, answer in zip(tasks, self._pool.reset(tasks) if tasks else [], strict=True):
            failed = isinstance(answer, EnvironmentFailure)
            trajectory = Trajectory(task=task, first_observation="" if failed else answer[1])
            search = _TaskBeams(task, [_Beam(trajectory, None)], time.monotonic())
            if failed:
                search.error = answer.reason
                yield search.result(self._scorer)
            else:
                search.beams = [_Beam(trajectory, answer[0])]
                self._searches.append(search)

    def close(self) -> None:
        for search in self._searches:
            self._pool.release([beam.environment for beam in search.live])

    def step(self) -> Iterator[Rollout]:
        if self._in_step is None:
            self._step_scored_after()
        else:
            self._step_scored_first(self._in_step)
        ended = [search for search in self._searches if not search.live]
        self._searches = [search for search in self._searches if search.live]
        yield from (search.result(self._scorer) for search in ended)

    def _step_scored_after(self) -> None:
        """Every candidate acts, then the successor states are scored."""
        acted = [
            (search, [beam for beam in beams if beam is not None])
            for search, beams in zip(self._searches, self._act(self._sampled()), strict=True)
            if not search.attempt and search.error is None
        ]
        states = [[beam.trajectory for beam in beams] for _, beams in acted]
        finished = [search.beams for search, _ in acted]
        scores = [[beam.score for beam in done] for done in finished]
        for search, beams in acted:  # an error of the scorer releases them
            search.beams = [*search.beams, *beams]
        choices = _choose(self._scorer, list(zip(states, scores, strict=True)), self._config)
        for (search, beams), done, choice in zip(acted, finished, choices, strict=True):
            search.scored += [beam.trajectory for beam in beams]
            search.beams = [
                dataclasses.replace(_member(kept, done, beams), score=kept.score) for kept in choice
            ]
            stay = {kept.candidate for kept in choice}
            removed = [beam for c, beam in enumerate(beams) if c not in stay]
            self._pool.release([beam.handle for beam in removed if beam.handle is not None])

    def _sampled(self) -> list[list[Candidate]]:
        """Returns new candidates for each search, equal actions of a state once."""
        width = self._config.beam_width
        requests = [
            (search.live[parent].trajectory, purpose)
            for search in self._searches
            for parent, purpose in search.requests(width)
        ]
        proposals = iter(propose(self._policy, requests, self._config.expansion_width))
        candidates: list[list[Candidate]] = []
        for search in self._searches:
            distinct: dict[tuple[int, str], Candidate] = {}
            for parent, _ in search.requests(width):
                for proposal in next(proposals):
                    search.policy_tokens += len(proposal.log_probs)
                    search.truncated_steps += proposal.truncated_steps
                    key = (parent, self._pool.action_key(search.task, proposal.action))
                    distinct.setdefault(key, Candidate(parent=parent, proposal=proposal))
            candidates.append(list(distinct.values()))
        return candidates

    def _step_scored_first(self, in_step: InStepPolicy) -> None:
        """Candidates are decoded, scored and selected in one program; those that are kept act."""
        steps = [
            BeamStep(
                states=tuple(beam.trajectory for beam in search.live),
                requests=tuple(search.requests(self._config.beam_width)),
                finished_scores=tuple(beam.score for beam in search.finished),
            )
            for search in self._searches
        ]
        results = in_step.propose_scored(
            steps, self._config.expansion_width, self._config.beam_width
        )
        candidates: list[list[Candidate]] = []
        scores: list[list[float]] = []
        for search, result in zip(self._searches, results, strict=True):
            search.policy_tokens += result.tokens_decoded
            search.scored_replies += result.tokens_decoded
            search.scored += [beam.trajectory for beam in search.live]
            chosen = [
                (_admitted(result.candidates[kept.candidate], search.task), kept.score)
                for kept in result.kept
                if kept.candidate is not None
            ]
            search.truncated_steps += sum(c.proposal.truncated_steps for c, _ in chosen)
            candidates.append([candidate for candidate, _ in chosen])
            scores.append([score for _, score in chosen])
            stay = [kept.finished for kept in result.kept if kept.finished is not None]
            search.beams = search.live + [search.finished[number] for number in stay]
        for search, beams, own in zip(self._searches, self._act(candidates), scores, strict=True):
            search.beams += [
                dataclasses.replace(beam, score=score)
                for beam, score in zip(beams, own, strict=True)
                if beam is not None
            ]

    def _act(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[_Beam | None]]:
        """Removes the live beams and returns the successor of each candidate, None if it failed.

        If the environments of all candidates fail, the live beams stay and are asked again,
        `ATTEMPTS` times in all.
        """
        requests = [
            (search.live[c.parent].environment, c.proposal.action, True)
            for search, own in zip(self._searches, candidates, strict=True)
            for c in own
        ]
        answers = iter(act(self._pool, requests))
        successors: list[list[_Beam | None]] = []
        for search, own in zip(self._searches, candidates, strict=True):
            live, beams, failure = search.live, [], None
            for candidate in own:
                answer = next(answers)
                if isinstance(answer, EnvironmentFailure):
                    failure = answer.reason
                    search.failed_candidates += 1
                    beams.append(None)
                    continue
                handle, transition = answer
                search.env_steps += 1
                if transition.done:
                    self._pool.release([handle])
                step = candidate.proposal.as_step(transition)
                trajectory = live[candidate.parent].trajectory.extended(step)
                beams.append(_Beam(trajectory, None if transition.done else handle))
            successors.append(beams)
            self._leave(search, any(beams), failure)
        return successors

    def _leave(self, search: _TaskBeams, moved: bool, failure: str | None) -> None:
        """Removes the live beams, unless all their candidates failed and are sampled again."""
        left = bool(search.finished) or moved
        if not left and search.attempt + 1 < ATTEMPTS and failure is not None:
            search.attempt += 1
            return
        self._pool.release([beam.environment for beam in search.live])
        search.depth, search.attempt = search.depth + 1, 0
        if left:
            search.beams = search.finished
        else:  # a failure costs a candidate; only if nothing is left, it costs the task
            search.beams = [dataclasses.replace(search.beams[0], handle=None)]
            search.error = failure or "no candidate could be scored"


def _choose(
    scorer: Scorer,
    tasks: Sequence[tuple[Sequence[Trajectory], Sequence[float]]],
    config: BeamConfig,
) -> list[list[Kept]]:
    """Selects the next beam of each task from its new states and the scores of finished beams.

    Of equal scores the first is kept, finished beams before states. States for which the reward
    model returns no number come last.
    """
    if isinstance(scorer, SelectingScorer):
        return scorer.select(tasks, config.expansion_width, config.beam_width)
    choices = []
    all_scores = scores_of(scorer, [states for states, _ in tasks])
    for (_, finished), scores in zip(tasks, all_scores, strict=True):
        members = [Kept(score=score, finished=b) for b, score in enumerate(finished)]
        members += [
            Kept(score=-math.inf if math.isnan(score) else score, candidate=c)
            for c, score in enumerate(scores)
        ]
        choices.append(sorted(members, key=lambda kept: -kept.score)[: config.beam_width])
    return choices


def _admitted(candidate: Candidate, task: Task) -> Candidate:
    return dataclasses.replace(candidate, proposal=admitted(candidate.proposal, task.task_id))


def _member(kept: Kept, finished: Sequence[_Beam], candidates: Sequence[_Beam]) -> _Beam:
    if kept.candidate is not None:
        return candidates[kept.candidate]
    assert kept.finished is not None
    return finished[kept.finished]
