"""The rows of result files: what the objects of their JSON lists hold.

`results.json` is a list of `ResultRow`, `report.json` is a `Report`. Next to the episodes of
best-of-n, `scores.json`, `by_n.json` and `best_of_k.json` are lists of `ScoreRow`, `ByNRow` and
`report_rows.BestOfKRow`. Keys of an `_Optional...` class are absent in files of earlier versions,
or if they hold nothing.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, TypeVar

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.evaluation.report_rows import OptionalParts
from agentrm_jax.runtime import json_files
from agentrm_jax.runtime.run_directory import StageRow

Split = Literal["held_in", "held_out", "all"]


class _OptionalOfResults(TypedDict, total=False):
    options: str
    score_at: str
    replies_without_action: int
    failed_candidates: int
    n_seeds: int
    seeds: list[int]
    sampling_seeds: list[int]
    seed_deviation: float
    success_ci95: list[float]
    gap_closed: float | None
    gap_closed_ci95: list[float]


class ResultRow(_OptionalOfResults):
    """One method on the tasks of one kind, of one environment, or on all tasks.

    Attributes:
      task: `ENVIRONMENT/KIND`, `ENVIRONMENT`, or `all`.
      split: `held_in` (tasks of kinds that were trained on), `held_out`, or `all`.
      method: `greedy`, `best_of_n`, `beam`, ...
      reward_model: What scored; None without a reward model.
      n: Trajectories that the method chose from.
      beam_width: States that beam search keeps; None for other methods.
      expansion_width: Candidates of each of them; None for other methods.
      seed: The first training seed.
      options: Options of the method that differ from its defaults; absent without any.
      score_at: The place at which the reward model scored; absent for `observation`.
      n_tasks: Number of tasks.
      score_mean: Mean return over the tasks, in [0, 1].
      score_ci95: Low and high end of its 95% interval.
      success_rate: Fraction of the tasks that were solved fully.
      progress_rate: Equals `score_mean`.
      policy_tokens: Tokens that the policy decoded, over all tasks; with several seeds, as of the
        other costs, the mean over seeds.
      reward_tokens: Tokens that the reward model read, over all tasks.
      env_steps: Steps of the environment, over all tasks.
      wall_seconds: Seconds of all episodes; several run at the same time.
      errors: Answers that ended by an error, over all tasks and seeds.
      replies_without_action: Replies in which no action was found, over all tasks and seeds.
      failed_candidates: Turns whose environment failed, over all tasks and seeds.
      n_seeds: Number of pairs of a training seed and a sampling seed. The values of a task are
        averaged over them before anything else.
      seeds: The training seeds.
      sampling_seeds: The sampling seeds.
      seed_deviation: Standard deviation of the mean returns of the seeds; with several seeds only.
      success_ci95: Low and high end of the 95% interval of `success_rate`.
      gap_closed: (score - random) / (oracle - random) on the same tasks; None if the oracle is not
        better than random, absent without trajectories to choose from.
      gap_closed_ci95: Low and high end of its 95% interval over tasks; absent if the tasks are too
        few for one.
    """

    task: str
    split: str
    method: str
    reward_model: str | None
    n: int
    beam_width: int | None
    expansion_width: int | None
    seed: int
    n_tasks: int
    score_mean: float
    score_ci95: list[float]
    success_rate: float
    progress_rate: float
    policy_tokens: int
    reward_tokens: int
    env_steps: int
    wall_seconds: float
    errors: int


class _OptionalOfComparisons(TypedDict, total=False):
    p_value: float
    test: str
    p_holm: float
    smallest_difference: float | None
    success_difference: float
    success_p_value: float | None
    a_score_at: str
    b_score_at: str


class Comparison(_OptionalOfComparisons):
    """The difference of mean return between two methods, paired over the tasks that both ran.

    Attributes:
      a: A method.
      b: The method that it is compared with.
      split: See `ResultRow`.
      difference: Mean of a - b.
      ci95: Low and high end of its 95% interval.
      n_tasks: Number of common tasks.
      a_label: The name of a in tables, for example `best-of-5, explicit`.
      b_label: The name of b in tables.
      a_reward_model: What scored for a; None without a reward model.
      b_reward_model: What scored for b; None without a reward model.
      p_value: Of the difference; see `significance.paired_test`.
      test: The test that gave it: `mcnemar` or `sign_flip`.
      p_holm: The p-value corrected by Holm's rule for the comparisons of its split; if there are
        more than five.
      smallest_difference: The difference that this many tasks show with a probability of 80%; None
        if all differences are equal.
      success_difference: Mean difference of the success rates.
      success_p_value: Its p-value by McNemar's exact test; None if a success is not 0 or 1.
      a_score_at: The place of the scores of a; absent for `observation`.
      b_score_at: The place of the scores of b; absent for `observation`.
    """

    a: str
    b: str
    split: str
    difference: float
    ci95: list[float]
    n_tasks: int
    a_label: str
    b_label: str
    a_reward_model: str | None
    b_reward_model: str | None


class _OptionalOfScores(TypedDict, total=False):
    score_at: str


class _OptionalOfTrajectories(_OptionalOfScores, total=False):
    sampling_seed: int


class ScoreRow(_OptionalOfTrajectories):
    """A reward model's score of one test trajectory, and the return of the trajectory.

    Attributes:
      reward_model: What scored.
      task_id: The task.
      score: The score of the trajectory.
      outcome: Its return, in [0, 1].
      score_at: The place at which the reward model scored; absent for `observation`.
      sampling_seed: The sampling seed; absent for 0.
    """

    reward_model: str
    task_id: str
    score: float
    outcome: float


class ByNRow(_OptionalOfScores):
    """Mean return of best-of-n for one n, over all tasks or those of one environment.

    Attributes:
      task: `all` or an environment.
      reward_model: What scored; `oracle` for the best of the n trajectories.
      n: Trajectories that were chosen from.
      score_mean: Mean return, in [0, 1].
      score_ci95: Low and high end of its 95% interval.
      n_tasks: Number of tasks.
      score_at: The place at which the reward model scored; absent for `observation`.
    """

    task: str
    reward_model: str
    n: int
    score_mean: float
    score_ci95: list[float]
    n_tasks: int


class ScoreQuality(TypedDict):
    """Agreement of a reward model's scores with returns; None if it cannot be computed.

    Attributes:
      n: Number of trajectories.
      pairwise_accuracy: Fraction of the pairs of a task whose better trajectory has the higher
        score.
      pearson: Correlation of scores and returns.
      spearman: Correlation of their ranks.
    """

    n: int
    pairwise_accuracy: float | None
    pearson: float | None
    spearman: float | None


class ReportParts(OptionalParts):
    """The parts of `report.json` that follow from episodes.

    Attributes:
      results: The rows of `results.json`.
      comparisons: Paired differences between methods.
    """

    results: list[ResultRow]
    comparisons: list[Comparison]


class Report(ReportParts):
    """The content of `report.json`.

    Attributes:
      stages: The finished stages in order.
      trees: The summary of exploration; empty without exploration.
      reward_models: By reward model, the agreement of its scores with returns.
      by_n: Best-of-n for every n up to the number of trajectories.
    """

    stages: list[StageRow]
    trees: Mapping[str, Any]
    reward_models: dict[str, ScoreQuality]
    by_n: list[ByNRow]


T = TypeVar("T")


def read_rows(path: pathlib.Path, kind: type[T]) -> list[T]:
    """Returns the rows of a JSON file, none if it is absent.

    Args:
      path: A file with a list of objects.
      kind: The type of the rows, for example `ScoreRow`.

    Raises:
      UserError: It is damaged, or a row is of another form; names file and row.
    """
    rows = []
    for number, row in enumerate(json_files.read_rows(path)):
        try:
            rows.append(from_json(kind, row))
        except ValueError as error:
            raise UserError(f"{path}, row {number}: {error}; restore the file") from None
    return rows
