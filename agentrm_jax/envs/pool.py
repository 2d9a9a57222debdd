"""Many episodes at once (`core.protocols.EnvironmentPool`), in this process and in workers.

Each episode lives in one place, its forks with it. Its history is kept in this process, as a chain
of moments that forks share: when a worker is lost, or an environment raises, the episode is played
again from its task and must answer as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.records import Split, Task, Transition
from agentrm_jax.core.text import printable
from agentrm_jax.envs.contract import listed_tasks, missing_of
from agentrm_jax.envs.episodes import Act, Answer, Fault, Reset
from agentrm_jax.envs.given import Families, given_classes, location_of
from agentrm_jax.envs.perturbations import SEPARATOR
from agentrm_jax.envs.places import (
    EpisodeHistory,
    Here,
    Job,
    Moment,
    Place,
    Plan,
    exchange,
    extend_plan,
)
from agentrm_jax.envs.registry import action_key, key_of
from agentrm_jax.envs.worker_process import WorkerProcess

_ATTEMPTS = 2


class EnvPool:
    """Many episodes of environments at once, in worker processes or in this process.

    Used as a context manager (`with EnvPool({"guess": Guess}, workers=2) as envs:`), which ends the
    workers. One thread uses a pool at a time. See `core.protocols.EnvironmentPool` for what happens
    if an environment raises, hangs or dies.

    A class may be an environment (`reset`, `step`, `fork`; without `fork` an episode is copied by
    playing its actions again) or an environment family (`create` and the rest). It is created
    without arguments. Workers load it from its module or, if it is defined in the script that runs,
    from that file: of the script they execute the class and the statements that it needs, nothing
    else. A class that is defined in a notebook or inside a function runs in this process.

    Args:
      environments: Classes by name; or names of registered environments, which are loaded at once;
        None: registered environments are loaded when a task names them.
      workers: Worker processes, started when they are first needed. Environments with
        `pooled = False`, and with 0 all, run in this process, where nothing stops one that hangs.
      step_seconds: Seconds that a worker may take for one reset or action before it is killed.
      memory_gib: Address space of a worker in GiB; beyond it an environment gets a MemoryError.

    Raises:
      UserError: A number is out of range, or an environment is not registered or no environment
        class. Later, from the methods: an environment lacks a package or file, or a worker cannot
        start.
    """

    def __init__(
        self,
        environments: Mapping[str, type] | Sequence[str] | None = None,
        *,
        workers: int = 0,
        step_seconds: float = 30.0,
        memory_gib: float = 8.0,
    ) -> None:
        for name, value, least in (
            ("workers", workers, 0),
            ("step_seconds", step_seconds, 1e-3),
            ("memory_gib", memory_gib, 0.1),
        ):
            if not value >= least:
                raise UserError(f"{name} must be at least {least:g} (got {value})")
        given = given_classes(environments)
        located = {name: location_of(member) for name, member in given.items()}
        self._here_only = {name for name, location in located.items() if location is None}
        classes = {name: location for name, location in located.items() if location is not None}
        self._families = Families(given)
        self._here = Place(Here(self._families))
        memory = int(memory_gib * 2**30)
        self._workers = [
            Place(WorkerProcess(step_seconds, memory, classes)) for _ in range(workers)
        ]
        self._episodes: dict[int, EpisodeHistory] = {}
        self._next_handle = 0

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def tasks(
        self,
        environment: str,
        n: int,
        *,
        split: Split = "train",
        kinds: Sequence[str] | None = None,
        seed: int = 0,
    ) -> list[Task]:
        """Lists tasks of an environment that has lists, as all registered ones do.

        Args:
          environment: Its name.
          n: Most tasks, spread evenly over the kinds.
          split: `train`, `test` (other problems) or `paper`.
          kinds: Levels or domains; None takes all.
          seed: Seed of generated tasks.

        Returns:
          Tasks with distinct problems, the same each time.

        Raises:
          UserError: The environment is not registered, or lacks a package or file.
        """
        family = self._families.load(environment)
        if reason := missing_of(family):
            raise UserError(reason)
        return listed_tasks(family, split, n=n, kinds=kinds, seed=seed)

    def reset(self, tasks: Sequence[Task]) -> list[tuple[int, str] | EnvironmentFailure]:
        """Starts an episode for each task.

        Args:
          tasks: The tasks; their `environment` is a name that was given or is registered.

        Returns:
          For each task a handle and the first observation, or the failure of its environment.

        Raises:
          UserError: An environment is not registered, or lacks a package or file.
        """
        jobs = [Job(Reset(self._new_handle(), task)) for task in tasks]
        for job, task in zip(jobs, tasks, strict=True):
            place = self._place_for(task)
            place.episodes += 1
            self._episodes[job.request.handle] = EpisodeHistory(task, place)
        self._perform(jobs)
        self.release([j.request.handle for j in jobs if isinstance(j.answer, EnvironmentFailure)])
        return [
            (job.request.handle, job.answer) if isinstance(job.answer, str) else _failure(job)
            for job in jobs
        ]

    def branch(
        self, requests: Sequence[tuple[int, str]]
    ) -> list[tuple[int, Transition] | EnvironmentFailure]:
        """Copies episodes and acts in the copies.

        Args:
          requests: (handle, action) of each.

        Returns:
          For each request the handle of the copy and its transition, or a failure.
        """
        acts = [Act(handle, action, self._new_handle()) for handle, action in requests]
        jobs = [Job(act) for act in acts]
        self._perform(jobs)
        return [
            (act.into, job.answer) if isinstance(job.answer, Transition) else _failure(job)
            for act, job in zip(acts, jobs, strict=True)
        ]

    def step(self, requests: Sequence[tuple[int, str]]) -> list[Transition | EnvironmentFailure]:
        """Acts in episodes.

        Args:
          requests: (handle, action) of each.

        Returns:
          For each request its transition, or a failure.
        """
        jobs = [Job(Act(handle, action, handle)) for handle, action in requests]
        self._perform(jobs)
        return [job.answer if isinstance(job.answer, Transition) else _failure(job) for job in jobs]

    def release(self, handles: Sequence[int]) -> None:
        """Forgets episodes.

        Args:
          handles: Their handles; unknown ones are ignored.
        """
        for handle in handles:
            if episode := self._episodes.pop(handle, None):
                episode.place.episodes -= 1
                episode.place.released.append(handle)

    def close(self) -> None:
        """Forgets all episodes and ends the workers."""
        self.release(list(self._episodes))
        for place in (self._here, *self._workers):
            place.process.stop()

    def _new_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def action_key(self, task: Task, action: str) -> str:
        """Returns the form in which the task's environment compares actions.

        Args:
          task: The task.
          action: An action.

        Returns:
          The environment's own form; if it has none, the action without blanks at both ends.
        """
        if (family := self._families.find(task.environment)) is not None:
            return key_of(lambda: family, action)
        return action_key(task.environment, action)

    def elsewhere(self, task: Task) -> bool:
        """Returns whether the task's environment runs in a worker.

        Args:
          task: The task.

        Returns:
          False if it runs in this process.

        Raises:
          UserError: The environment is not registered.
        """
        name = task.environment
        if not self._workers or name.partition(SEPARATOR)[0] in self._here_only:
            return False
        return self._families.load(name).pooled

    def _place_for(self, task: Task) -> Place:
        if not self.elsewhere(task):
            return self._here
        return min(self._workers, key=lambda place: place.episodes)

    def _perform(self, jobs: Sequence[Job]) -> None:
        """Answers all jobs; a job whose environment or worker failed is tried again."""
        waiting = list(jobs)
        while waiting:
            plans: dict[Place, Plan] = {}
            for job in waiting:
                episode = self._episodes[job.request.handle]
                if episode.failure is not None:
                    job.answer = episode.failure
                else:
                    extend_plan(plans.setdefault(episode.place, []), job, episode)
            exchange(plans)
            for place, plan in plans.items():
                self._settle(place, plan)
            # Each round answers the first job of every place or uses up one of its attempts.
            waiting = [job for job in waiting if job.answer is None]

    def _settle(self, place: Place, plan: Plan) -> None:
        """Assigns the answers of a place to its jobs, in their order."""
        doubtful: set[int] = set()  # handles whose later answers are ignored
        answers = place.process.answers
        for (job, request, expected), answer in zip(plan, answers, strict=False):
            if job.request.handle in doubtful:
                continue
            if isinstance(answer, str) != isinstance(request, Reset):
                answer = _fault_of(answer)
            if isinstance(answer, Fault):
                self._blame(job, answer, in_replay=expected is not None)
            elif expected is None:
                self._record(job, answer)
                continue
            elif answer != expected:
                job.attempts = _ATTEMPTS  # it would differ again
                self._blame(job, Fault(_differing(expected, answer)), in_replay=True)
            else:
                continue
            doubtful.add(job.request.handle)
        if place.process.lost is not None:
            job, _, expected = plan[len(answers)]  # the job during which it was lost
            if job.request.handle not in doubtful:
                self._blame(job, Fault(place.process.lost), in_replay=expected is not None)

    def _record(self, job: Job, answer: str | Transition) -> None:
        request, episode = job.request, self._episodes[job.request.handle]
        job.answer = answer
        if isinstance(request, Reset):
            episode.last = Moment(None, "", answer)
            return
        moment = Moment(episode.last, request.action, answer)
        if request.into == request.handle:
            episode.last = moment
        else:
            self._episodes[request.into] = dataclasses.replace(episode, last=moment)
            episode.place.episodes += 1

    def _blame(self, job: Job, fault: Fault, *, in_replay: bool) -> None:
        """Counts a fault; the second ends the job, and the episode unless only a fork failed."""
        if fault.mendable:
            raise UserError(fault.reason)
        request, episode = job.request, self._episodes[job.request.handle]
        episode.incarnation = None
        job.attempts += 1
        if job.attempts >= _ATTEMPTS:
            where = f"environment {episode.task.environment!r}, task {episode.task.task_id!r}"
            job.answer = EnvironmentFailure(reason=f"{where}: {fault.reason}")
            if in_replay or isinstance(request, Reset) or request.into == request.handle:
                episode.failure = job.answer


def _fault_of(answer: Answer) -> Fault:
    """The fault in an answer that is not of the kind that its request asks for."""
    return answer if isinstance(answer, Fault) else Fault("the worker answered another request")


def _differing(expected: str | Transition, answer: Answer) -> str:
    """The reason of a replay that fails, with the beginnings of both answers."""
    texts = [each if isinstance(each, str) else str(each) for each in (expected, answer)]
    before, now = (printable(text)[:100] for text in texts)
    return f"the replay differs from what happened: before {before!r}, now {now!r}"


def _failure(job: Job) -> EnvironmentFailure:
    assert isinstance(job.answer, EnvironmentFailure)
    return job.answer
