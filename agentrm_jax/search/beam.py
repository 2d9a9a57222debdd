"""Step-level beam search (paper section 3.4) over many tasks at once.

W1 states are kept (`beam_width`), W2 turns are sampled from each (`expansion_width`). The first
step samples W1 x W2 first actions from the root.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.proposals import AdmittedPolicy, admitted, scores_of
from agentrm_jax.core.protocols import (
    EnvironmentFailure,
    EnvironmentPool,
    Policy,
    Proposal,
    Scorer,
    Selector,
    propose,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search.growing import as_step
from agentrm_jax.search.rollouts import ATTEMPTS, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search.

    Attributes:
      beam_width: W1, states kept.
      expansion_width: W2, turns sampled from each.
      score_at: `observation`: every candidate acts and its successor state is scored (the paper);
        `action`: candidates are scored before they act, in the compiled decoding step itself, and
        only those that are kept act: W2 times fewer environment steps.
      num_slots: Tasks searched at the same time. It decides speed, never results.
    """

    beam_width: int = 5
    expansion_width: int = 5
    score_at: Literal["action", "observation"] = "observation"
    num_slots: int = 16

    def __post_init__(self) -> None:
        check_fields(
            self, beam_width="[1, 10000]", expansion_width="[1, 10000]", num_slots="[1, 100000]"
        )
        check_choice("score_at", self.score_at, ("action", "observation"))


class InStepPolicy(Protocol):
    """A policy that scores its proposals while it decodes."""

    def propose_scored(
        self,
        requests: Sequence[Sequence[tuple[Trajectory, str]]],
        finished_scores: Sequence[Sequence[float]],
        n: int,
        beam_width: int,
    ) -> list[tuple[list[tuple[int, Proposal | None, float]], int]]:
        """For each task's beams, the best `beam_width` of its candidates and finished beams.

        Returns:
          For each task what is kept, best first, and the tokens decoded. Kept is (request number,
          proposal, score), or (number of the finished beam, None, its score).
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Beam:
    """A kept state; `handle` is its environment, None when it is finished."""

    trajectory: Trajectory
    handle: int | None
    score: float = -math.inf

    @property
    def environment(self) -> int:
        assert self.handle is not None
        return self.handle


@dataclasses.dataclass(slots=True)
class _Search:
    """The search of one task; `scored` holds what the reward model was shown."""

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

    def live(self) -> list[_Beam]:
        return [beam for beam in self.beams if beam.handle is not None]

    def finished(self) -> list[_Beam]:
        return [beam for beam in self.beams if beam.handle is None]

    def parents(self, beam_width: int) -> list[_Beam]:
        """Whose continuations to sample: the live beams; at first the root, `beam_width` times."""
        return self.live() * (beam_width if self.depth == 0 else 1)

    def requests(self, beam_width: int) -> list[tuple[Trajectory, str]]:
        """What to ask the policy, for each parent."""
        again = f"/again/{self.attempt}" if self.attempt else ""
        return [
            (beam.trajectory, f"beam/{self.depth}/{p}{again}")
            for p, beam in enumerate(self.parents(beam_width))
        ]

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


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    parent: _Beam
    proposal: Proposal
    score: float = -math.inf


def beam_search(
    policy: Policy,
    scorer: Scorer,
    pool: EnvironmentPool,
    tasks: Sequence[Task],
    config: BeamConfig,
    in_step: InStepPolicy | None = None,
) -> Iterator[Rollout]:
    """Searches each task; yields the best-scored finished trajectory of each as it is found.

    A task's answer does not depend on what is searched beside it.

    Args:
      in_step: Needed for `score_at: action`.
    """
    if config.score_at == "action" and in_step is None:
        raise UserError(
            "must be observation because this reward model does not score in-step",
            field="score_at",
        )
    policy = AdmittedPolicy(policy)
    waiting = list(reversed(tasks))
    searches: list[_Search] = []
    while waiting or searches:
        room = min(config.num_slots - len(searches), len(waiting))
        searches.extend(_begin(pool, [waiting.pop() for _ in range(room)]))
        going_on = [search for search in searches if search.live()]
        if in_step is not None and config.score_at == "action":
            _step_scored_first(in_step, pool, going_on, config)
        else:
            _step_scored_after(policy, scorer, pool, going_on, config)
        yield from (search.result(scorer) for search in searches if not search.live())
        searches = [search for search in searches if search.live()]


def _begin(pool: EnvironmentPool, tasks: Sequence[Task]) -> Iterator[_Search]:
    for task, answer in zip(tasks, pool.reset(tasks) if tasks else [], strict=True):
        failed = isinstance(answer, EnvironmentFailure)
        trajectory = Trajectory(task=task, first_observation="" if failed else answer[1])
        root = _Beam(trajectory, None if failed else answer[0])
        yield _Search(task, [root], time.monotonic(), error=answer.reason if failed else None)


def _step_scored_after(
    policy: Policy,
    scorer: Scorer,
    pool: EnvironmentPool,
    searches: Sequence[_Search],
    config: BeamConfig,
) -> None:
    """Every candidate acts, then the successor states are scored."""
    requests = [r for search in searches for r in search.requests(config.beam_width)]
    proposals = iter(propose(policy, requests, config.expansion_width))
    candidates: list[list[_Candidate]] = []
    for search in searches:
        found: dict[tuple[int, str], _Candidate] = {}
        for parent in search.parents(config.beam_width):
            for proposal in next(proposals):
                search.policy_tokens += len(proposal.log_probs)
                search.truncated_steps += proposal.dropped_steps
                key = (id(parent), pool.action_key(search.task, proposal.action))
                found.setdefault(key, _Candidate(parent, proposal))
        candidates.append(list(found.values()))
    successors = _act(pool, searches, candidates)
    acted = [i for i, search in enumerate(searches) if not search.attempt]
    searches, successors = [searches[i] for i in acted], [successors[i] for i in acted]
    chosen = _choose(scorer, searches, successors, config)
    for search, beams, kept in zip(searches, successors, chosen, strict=True):
        search.scored += [beam.trajectory for beam in beams]
        known = dict(enumerate(search.beams)) | dict(enumerate(beams, start=config.beam_width))
        search.beams = [dataclasses.replace(known.pop(k), score=score) for k, score in kept]
        pool.release([beam.handle for beam in known.values() if beam.handle is not None])


def _choose(
    scorer: Scorer,
    searches: Sequence[_Search],
    successors: Sequence[Sequence[_Beam]],
    config: BeamConfig,
) -> list[list[tuple[int, float]]]:
    """See `Selector.select`. Finished beams compete for places too; of equals the first is kept.

    States for which the reward model gives no number come last.
    """
    states = [[beam.trajectory for beam in beams] for beams in successors]
    finished = [[beam.score for beam in search.beams] for search in searches]
    if isinstance(scorer, Selector):
        return scorer.select(
            list(zip(states, finished, strict=True)), config.expansion_width, config.beam_width
        )
    found = [
        [*enumerate(done), *enumerate(map(_number, scores), start=config.beam_width)]
        for done, scores in zip(finished, scores_of(scorer, states), strict=True)
    ]
    return [sorted(own, key=lambda one: -one[1])[: config.beam_width] for own in found]


def _number(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _step_scored_first(
    in_step: InStepPolicy, pool: EnvironmentPool, searches: Sequence[_Search], config: BeamConfig
) -> None:
    """The candidates are decoded, scored and selected in one program; those kept act."""
    chosen = in_step.propose_scored(
        [search.requests(config.beam_width) for search in searches],
        [[beam.score for beam in search.finished()] for search in searches],
        config.expansion_width,
        config.beam_width,
    )
    candidates: list[list[_Candidate]] = []
    for search, (kept, decoded) in zip(searches, chosen, strict=True):
        search.policy_tokens += decoded
        search.scored_replies += decoded
        search.scored += [beam.trajectory for beam in search.live()]
        parents, finished = search.parents(config.beam_width), search.finished()
        fresh = [
            (parents[b], admitted(proposal, search.task.task_id), score)
            for b, proposal, score in kept
            if proposal is not None
        ]
        search.truncated_steps += sum(proposal.dropped_steps for _, proposal, _ in fresh)
        candidates.append([_Candidate(*candidate) for candidate in fresh])
        stay = [finished[b] for b, proposal, _ in kept if proposal is None]
        search.beams = search.live() + stay
    for search, beams in zip(searches, _act(pool, searches, candidates), strict=True):
        search.beams += beams


def _act(
    pool: EnvironmentPool, searches: Sequence[_Search], candidates: Sequence[Sequence[_Candidate]]
) -> list[list[_Beam]]:
    """Replaces the live beams by what the candidates lead to, which it returns for each search.

    If the environments of all candidates fail, the live beams stay and are asked again, `ATTEMPTS`
    times in all.
    """
    flat = [(s, c) for s, found in enumerate(candidates) for c in found]
    answers = pool.branch([(c.parent.environment, c.proposal.action) for _, c in flat])
    successors: list[list[_Beam]] = [[] for _ in searches]
    failures: dict[int, str] = {}
    for (s, candidate), answer in zip(flat, answers, strict=True):
        if isinstance(answer, EnvironmentFailure):
            failures[s] = answer.reason
            searches[s].failed_candidates += 1
            continue
        handle, transition = answer
        searches[s].env_steps += 1
        if transition.done:
            pool.release([handle])
        trajectory = candidate.parent.trajectory.extended(as_step(candidate.proposal, transition))
        beam = _Beam(trajectory, None if transition.done else handle, candidate.score)
        successors[s].append(beam)
    for s, search in enumerate(searches):
        left = bool(search.finished() or successors[s])
        if not left and search.attempt + 1 < ATTEMPTS and s in failures:
            search.attempt += 1  # the live beams are asked again
            continue
        pool.release([beam.environment for beam in search.live()])
        search.depth, search.attempt = search.depth + 1, 0
        if left:
            search.beams = search.finished()
        else:  # a failure costs a candidate; only when nothing is left, it costs the task
            search.beams = [dataclasses.replace(search.beams[0], handle=None)]
            search.error = failures.get(s, "no candidate could be scored")
    return successors
