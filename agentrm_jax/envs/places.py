"""Places in which episodes live: worker processes and this process.

A place gets a list of requests and answers them in order. An episode whose environment is lost is
played again from its history, in front of the next request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.episodes import Act, Answer, Episodes, Request, Reset
from agentrm_jax.envs.given import Families
from agentrm_jax.envs.worker_process import WorkerProcess, read_answers


class Here:
    """This process as a place for episodes: it answers while requests are sent."""

    lost = None

    def __init__(self, families: Families) -> None:
        self.answers: list[Answer] = []
        self.incarnation = 0
        self._families = families
        self._episodes = Episodes(families)

    def send(self, released: Sequence[int], requests: Sequence[Request]) -> None:
        self._episodes.release(released)
        self.answers = [self._episodes.perform(request) for request in requests]

    def stop(self) -> None:
        self._episodes = Episodes(self._families)
        self.incarnation += 1


@dataclasses.dataclass(eq=False, slots=True)
class Place:
    """A place, the number of its episodes, and the released ones that it may still hold."""

    process: Here | WorkerProcess
    episodes: int = 0
    released: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """An action and its answer, after those of `before`; the first is the reset."""

    before: Moment | None
    action: str
    answer: str | Transition


@dataclasses.dataclass(slots=True)
class EpisodeHistory:
    """The history of an episode and the state of its environment.

    Attributes:
      last: The end of its history; None until it was reset.
      incarnation: Of the process that has the environment; None if it must be played again.
      failure: Why the handle is dead, or None.
    """

    task: Task
    place: Place
    last: Moment | None = None
    incarnation: int | None = None
    failure: EnvironmentFailure | None = None

    def replay(self, handle: int) -> list[tuple[Request, str | Transition]]:
        """Returns the requests that build the episode again, with the answers they must get."""
        steps: list[tuple[Request, str | Transition]] = []
        moment = self.last
        while moment is not None:
            request = Act(handle, moment.action, handle) if moment.before else None
            steps.append((request or Reset(handle, self.task), moment.answer))
            moment = moment.before
        return steps[::-1]


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """One request of the caller's and, in the end, its answer."""

    request: Request
    attempts: int = 0
    answer: str | Transition | EnvironmentFailure | None = None


Plan = list[tuple[Job, Request, str | Transition | None]]
"""Requests to one place, each with its job and, if it is replayed, the answer it must get."""


def extend_plan(plan: Plan, job: Job, episode: EpisodeHistory) -> None:
    """Adds a job's request, and before it the replay if the environment is lost."""
    process, handle = episode.place.process, job.request.handle
    if episode.incarnation != process.incarnation:
        plan.extend((job, request, answer) for request, answer in episode.replay(handle))
        episode.incarnation = process.incarnation
    plan.append((job, job.request, None))


def exchange(plans: dict[Place, Plan]) -> None:
    """Sends each place its requests and awaits the answers; workers and this process in parallel.

    An interruption (Ctrl-C) leaves neither an answer that a later request could take for its own
    nor an environment in the middle of an action: episodes are played again if still needed.
    """
    workers = [p.process for p in plans if isinstance(p.process, WorkerProcess)]
    for worker in workers:
        worker.start()
    try:
        for place in sorted(plans, key=lambda place: isinstance(place.process, Here)):
            released, place.released = place.released, []
            place.process.send(released, [request for _, request, _ in plans[place]])
        read_answers(workers)
    except BaseException:
        for place in plans:
            place.process.stop()
        raise
