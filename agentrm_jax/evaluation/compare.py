"""Comparison of test-time methods from Python: means with intervals, paired over tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from agentrm_jax.agent.function import PolicyFunction, as_policy
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.evaluation.episodes import AT_OBSERVATION
from agentrm_jax.evaluation.results import UNCORRECTED
from agentrm_jax.evaluation.significance import PairedDifference, holm, paired_difference
from agentrm_jax.evaluation.statistics import Estimate, bootstrap
from agentrm_jax.reward.function import ScoreFunction
from agentrm_jax.reward.places import placed
from agentrm_jax.search.best_of_n import BestOfN
from agentrm_jax.search.choose import BASELINES, NotAvailable
from agentrm_jax.search.methods import METHODS, Method
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.tasks import checked_tasks
from agentrm_jax.search.thresholds import check_thresholds

Answers = Sequence[BestOfN] | Sequence[Rollout]
"""One answer for each task, of best-of-n or of any method that gives trajectories."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MethodScore:
    """The score of one method.

    Attributes:
      name: Name of the method.
      score: Mean outcome over the tasks, in [0, 1], with its 95% interval.
      difference: Mean of the first method's outcome minus this one's on the same tasks, with its
        95% interval; None for the first method, and if the two have no task in common.
      p_value: Probability of a difference of this size between equally good methods, by McNemar's
        exact test if all outcomes are 0 or 1, else by sign flips. If the first method is compared
        with more than five others, it is corrected by Holm's rule. None without a difference.
      smallest_difference: The difference that this many tasks show with a probability of 80%; None
        without a difference, or if it is equal on all tasks.
    """

    name: str
    score: Estimate
    difference: Estimate | None
    p_value: float | None = None
    smallest_difference: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MethodComparison:
    """Scores of several methods; as text a table.

    Attributes:
      methods: The methods, in the order in which they were given, then the baselines.
      notes: What the means do not show: trajectories that ended by an error, and policies whose
        replies hold no action. They follow the table.
    """

    methods: tuple[MethodScore, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        gained = f"{self.methods[0].name} is better by"
        head = ("method", "tasks", "mean", "95% interval", gained, "p", "smallest")
        rows: list[tuple[str, ...]] = [head]
        for method in self.methods:
            score = method.score
            gain = "" if method.difference is None else _with_interval(method.difference)
            interval = f"[{score.low:.3f}, {score.high:.3f}]"
            p_value, smallest = (
                "" if value is None else f"{value:.3f}"
                for value in (method.p_value, method.smallest_difference)
            )
            mean = f"{score.mean:.3f}"
            rows.append((method.name, str(score.n), mean, interval, gain, p_value, smallest))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.notes])


def compare(
    results: Answers | Mapping[str, Answers], baselines: Sequence[str] = ()
) -> MethodComparison:
    """Compares methods with each other and with rules that choose without a reward model.

    Args:
      results: The answers of one method (of `best_of_n`, `beam_search` or `rollouts`), or those of
        several by name. A trajectory that ended by an error has outcome 0.
      baselines: Of `random`, `majority`, `shortest`, `likeliest`, `fewest_invalid` and `oracle`:
        rules that choose among the trajectories of the first best-of-n. `oracle` is the upper
        bound.

    Returns:
      A row for each method, in which the first method is compared with all others.

    Raises:
      UserError: There are no answers, a baseline is not known or needs log-probabilities that the
        policy does not give, or baselines are wanted and no result is of `best_of_n`.
    """
    if isinstance(results, Mapping):
        named = {name: list(answers) for name, answers in results.items()}
    else:
        named = {_name_of(answers): answers for answers in [list(results)]}
    if not named:
        raise UserError("results must hold the answers of at least one method (got none)")
    outcomes = {name: _outcomes(name, answers) for name, answers in named.items()}
    if baselines:
        sampled = [a for answers in named.values() for a in answers if isinstance(a, BestOfN)]
        first = {a.task.task_id: a for a in reversed(sampled)}
        if not first:
            raise UserError("baselines choose among the trajectories of best_of_n; none is given")
        for name in baselines:
            outcomes[f"{name} of {len(sampled[0].rollouts)}"] = _baseline(name, first)
    best, *_ = outcomes.values()
    found = [None if own is best else _difference(best, own) for own in outcomes.values()]
    p_values = [each.p_value for each in found if each is not None]
    corrected = iter(holm(p_values) if len(p_values) > UNCORRECTED else p_values)
    scores = [
        MethodScore(
            name=name,
            score=bootstrap(list(own.values()), bounds=(0.0, 1.0)),
            difference=None if paired is None else paired.gain,
            p_value=None if paired is None else next(corrected),
            smallest_difference=None if paired is None else paired.smallest,
        )
        for (name, own), paired in zip(outcomes.items(), found, strict=True)
    ]
    notes = [note for name, answers in named.items() for note in _notes(name, answers)]
    return MethodComparison(methods=tuple(scores), notes=tuple(notes))


def evaluate(
    methods: Mapping[str, Method] | Sequence[str],
    policy: Policy | PolicyFunction,
    scorer: Scorer | ScoreFunction,
    envs: EnvironmentPool,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    score_at: str = AT_OBSERVATION,
) -> MethodComparison:
    """Runs test-time methods on the same tasks and compares them.

    Args:
      methods: Registered names, or methods by the name of their row, for example
        `{"beam 3x3": Beam(beam_width=3, expansion_width=3)}`; `Greedy`, `BestOfN` and `Beam` are in
        `agentrm_jax.search.methods`. The policy is used as it is: `greedy` is greedy only with one
        that samples at temperature 0.
      policy: A policy, or a function `(state, n, seed) -> texts`.
      scorer: A reward model, or a function `(states) -> scores`.
      envs: The environments.
      tasks: The tasks, each once.
      seed: Seed of the run.
      score_at: The place at which the scorer scores: `observation`, `action` (blind: before the
        environment's last answer), or `mean`, `min`, `max` over the steps.

    Returns:
      A row for each method, in which the first method is compared with all others.

    Raises:
      UserError: A method is not registered or has a threshold without a value, a task is given
        twice, or the policy or the scorer breaks its protocol.
    """
    tasks = checked_tasks(tasks)
    if not isinstance(methods, Mapping):
        methods = {name: METHODS.load(name)() for name in methods}
    for method in methods.values():
        check_thresholds(method)
    answers = {
        name: list(method.run(as_policy(policy, seed), placed(scorer, score_at), envs, tasks, seed))
        for name, method in methods.items()
    }
    return compare(answers)


def _notes(name: str, answers: Sequence[BestOfN | Rollout]) -> Iterator[str]:
    runs = [r for a in answers for r in (a.rollouts if isinstance(a, BestOfN) else (a,))]
    failed = [run for run in runs if run.error is not None]
    if failed:
        yield (
            f"{name}: {len(failed)} of {len(runs)} trajectories ended by an error, outcome 0; the "
            f"first: {failed[0].error}"
        )
    steps = sum(len(run.trajectory.steps) for run in runs)
    silent = sum(run.replies_without_action for run in runs)
    if silent:
        yield (
            f"{name}: {silent} of {steps} replies hold no action; a reply has the form "
            '"Thought: ... Action: ..."'
        )


def _name_of(results: Sequence[BestOfN | Rollout]) -> str:
    if results and isinstance(results[0], BestOfN):
        return f"best of {len(results[0].rollouts)}"
    return "method"


def _outcomes(name: str, answers: Sequence[BestOfN | Rollout]) -> dict[str, float]:
    """The outcome of each task."""
    found: dict[str, float] = {}
    for answer in answers:
        rollout = answer.rollout if isinstance(answer, BestOfN) else answer
        task = answer.task if isinstance(answer, BestOfN) else answer.trajectory.task
        if task.task_id in found:
            raise UserError(f"{name}: must have one answer for task {task.task_id} (got two)")
        found[task.task_id] = 0.0 if rollout is None else _outcome(rollout)
    if not found:
        raise UserError(f"{name}: must have an answer for at least one task (got none)")
    return found


def _outcome(rollout: Rollout) -> float:
    return rollout.trajectory.outcome if rollout.error is None else 0.0


def _baseline(name: str, results: Mapping[str, BestOfN]) -> dict[str, float]:
    """The outcome that a rule is expected to have on each task."""
    rules = {rule.removesuffix("_of_n"): function for rule, function in BASELINES.items()}
    if name not in rules:
        raise UserError(field="baselines", value=name, expected=f"one of {', '.join(rules)}")
    found = {}
    for task_id, result in results.items():
        try:
            weights = rules[name]([rollout.trajectory for rollout in result.rollouts])
        except NotAvailable as error:
            raise UserError(
                f"must not hold {name}, which is {error} (a policy function gives them by "
                "returning Proposal records with log_probs)",
                field="baselines",
            ) from None
        found[task_id] = float(weights @ np.array([_outcome(r) for r in result.rollouts]))
    return found


def _difference(first: Mapping[str, float], other: Mapping[str, float]) -> PairedDifference | None:
    common = [task_id for task_id in first if task_id in other]
    if not common:
        return None
    return paired_difference([first[i] for i in common], [other[i] for i in common])


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
