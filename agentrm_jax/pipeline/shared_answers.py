"""Answers of test-time methods: reward models score trajectories, in one or several processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluation.config import MethodRun
from agentrm_jax.evaluation.episodes import episode_from_json, episode_to_json
from agentrm_jax.evaluation.harness import Answers, PlacedScores, answers, by_task
from agentrm_jax.pipeline.acting import ActingPolicy
from agentrm_jax.pipeline.scorers import Scorers
from agentrm_jax.pipeline.shared_tasks import shared
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.search.rollouts import Rollout

_TRAJECTORIES = 64
"""Trajectories, about, that a process scores at a time if several share them."""

_Answer = Callable[[Sequence[Rollout], Callable[[int], None]], Answers]


def scored_answers(
    run: MethodRun,
    rollouts: Sequence[Rollout],
    policy: ActingPolicy,
    scorers: Scorers,
    stage: Stage,
    *,
    label: str = "",
) -> Answers:
    """Returns the answers of a method; shows how many trajectories are scored if it chooses by it.

    Args:
      run: The method.
      rollouts: Its rollouts, the same in all processes.
      policy: The policy that acts.
      scorers: The reward models.
      stage: The stage at work.
      label: Tells runs of one method apart, if it is run several times.
    """
    workspace = policy.workspace

    def answer(own: Sequence[Rollout], on_scored: Callable[[int], None]) -> Answers:
        return answers(
            run,
            own,
            scorers.of(run),
            seed=workspace.config.seed,
            action_key=workspace.pool.action_key,
            on_scored=on_scored,
        )

    if not run.samples or not run.reward_models:
        return answer(rollouts, lambda count: None)
    name = f"score {run.name.replace('_', ' ')}"
    total = len(rollouts) * len(run.score_at) * len(run.reward_models)
    with stage.progress(name, total) as bar:
        if stage.group.shared:
            return _shared_answers(f"{name} {label}".strip(), rollouts, answer, stage, bar.advance)
        return answer(rollouts, bar.advance)


def _shared_answers(
    name: str,
    rollouts: Sequence[Rollout],
    answer: _Answer,
    stage: Stage,
    on_scored: Callable[[int], None],
) -> Answers:
    """Returns the answers of all tasks, of which each process scores some."""
    parts = list(_parts(rollouts))
    keys = [f"tasks from {part[0].trajectory.task.task_id}" for part in parts]
    leased = stage.group.tasks(name, keys)
    with shared(leased, stage):
        while leased.wait():
            for lease in leased.take(1):
                found = _to_json(answer(parts[lease.number], on_scored))
                leased.record(lease, json.dumps(found).encode())  # scores may be infinite
    return _joined([_read(leased.result(number), name) for number in range(len(parts))])


def _parts(rollouts: Sequence[Rollout]) -> Iterator[list[Rollout]]:
    """Yields the rollouts of some tasks at a time, in their order."""
    part: list[Rollout] = []
    for group in by_task(rollouts).values():
        part += group
        if len(part) >= _TRAJECTORIES:
            yield part
            part = []
    if part:
        yield part


def _to_json(found: Answers) -> dict[str, Any]:
    return {
        "episodes": [episode_to_json(episode) for episode in found.episodes],
        "scores": found.scores,
        "not_available": found.not_available,
    }


def _read(content: bytes | None, name: str) -> Answers:
    try:
        record = json.loads(content or b"")
        return Answers(
            episodes=[episode_from_json(episode) for episode in record["episodes"]],
            scores=record["scores"],
            not_available=record["not_available"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: a record is damaged ({error}); run the command again") from None


def _joined(parts: Sequence[Answers]) -> Answers:
    """Returns the answers of all parts as one."""
    scores: PlacedScores = {}
    for part in parts:
        for place, by_name in part.scores.items():
            for reward_model, of_task in by_name.items():
                scores.setdefault(place, {}).setdefault(reward_model, {}).update(of_task)
    return Answers(
        episodes=[episode for part in parts for episode in part.episodes],
        scores=scores,
        not_available={name: why for part in parts for name, why in part.not_available.items()},
    )
