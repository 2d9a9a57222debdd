"""The rows of `report.json` beyond results: the oracle gap, curves, equal tokens and the probe."""

from __future__ import annotations

from typing import TypedDict


class BestOfKRow(TypedDict):
    """Best-of-k on one task, for every k up to the number of its trajectories.

    Attributes:
      task_id: The task.
      reward_model: What scored; `oracle` for the best of the k trajectories.
      score_at: The place at which it scored.
      seed: The training seed.
      sampling_seed: The sampling seed.
      scores: The expected return for k = 1, 2, ..., over all ways to draw k of the trajectories.
      policy_tokens: Mean tokens of a trajectory; best-of-k costs k times as many.
    """

    task_id: str
    reward_model: str
    score_at: str
    seed: int
    sampling_seed: int
    scores: list[float]
    policy_tokens: float


class OracleGap(TypedDict):
    """The room for any reward model: the best of n trajectories against one drawn at random.

    Attributes:
      task: `all` or an environment.
      split: See `ResultRow`.
      n: Trajectories of each task.
      n_tasks: Number of tasks.
      random: Mean return of a trajectory drawn at random.
      oracle: Mean return of the best trajectory.
      gap: Their difference.
      ci95: Low and high end of its 95% interval.
    """

    task: str
    split: str
    n: int
    n_tasks: int
    random: float
    oracle: float
    gap: float
    ci95: list[float]


class CurveRow(TypedDict):
    """A point of score against policy tokens.

    Attributes:
      task: `all` or an environment.
      label: The method, for example `best-of-n, explicit`; points with one label are a curve.
      method: See `ResultRow`.
      reward_model: What scored; None without a reward model, `oracle` for the best of k.
      score_at: The place at which it scored.
      k: Trajectories that best-of-k chose from; None for methods that have one point.
      tokens: Mean policy tokens of a task.
      score_mean: Mean return, in [0, 1].
      score_ci95: Low and high end of its 95% interval.
      n_tasks: Number of tasks.
    """

    task: str
    label: str
    method: str
    reward_model: str | None
    score_at: str
    k: int | None
    tokens: float
    score_mean: float
    score_ci95: list[float]
    n_tasks: int


class _OptionalOfEqualTokens(TypedDict, total=False):
    p_holm: float


class EqualTokens(_OptionalOfEqualTokens):
    """A search against best-of-k with as many policy tokens, paired over tasks.

    Attributes:
      a: The search.
      a_label: Its name in tables.
      b_label: The best-of-k, for example `best-of-3.4, explicit`: a mixture of 3 and 4.
      reward_model: What scored for both.
      a_score_at: The place at which it scored for the search.
      b_score_at: The place at which it scored for best-of-k.
      split: See `ResultRow`.
      k: Trajectories that best-of-k chose from.
      a_tokens: Mean policy tokens of a task, of the search.
      b_tokens: Those of best-of-k.
      equal: Whether the two are equal; not if the search took more tokens than the n trajectories
        or fewer than one.
      difference: Mean return of the search minus that of best-of-k.
      ci95: Low and high end of its 95% interval.
      n_tasks: Number of common tasks.
      p_value: See `Comparison`.
      smallest_difference: See `Comparison`.
      p_holm: See `Comparison`; corrected for the rows of its split in this table.
    """

    a: str
    a_label: str
    b_label: str
    reward_model: str
    a_score_at: str
    b_score_at: str
    split: str
    k: float
    a_tokens: float
    b_tokens: float
    equal: bool
    difference: float
    ci95: list[float]
    n_tasks: int
    p_value: float
    smallest_difference: float | None


class _OptionalOfProbe(TypedDict, total=False):
    declared: bool | None


class ProbeRow(_OptionalOfProbe):
    """The success that the words of the last observation predict, in one environment.

    Attributes:
      source: The training trajectories that were read: `trees` or `samples`.
      n: Number of trajectories.
      n_tasks: Number of their tasks.
      success_rate: Fraction of the trajectories that solved their task.
      accuracy: Fraction that was predicted rightly, on tasks that were not learned from.
      majority: The accuracy of predicting the more frequent outcome.
      auc: How often a success is scored above a failure; None with too few of either.
      gives_away: Whether `auc` is at least `probe.GIVES_AWAY`.
      declared: Whether the environment says of itself that its last observation gives the outcome
        away (`core.protocols.DeclaresOutcome`); None if it says nothing.
    """

    source: str
    n: int
    n_tasks: int
    success_rate: float
    accuracy: float | None
    majority: float
    auc: float | None
    gives_away: bool


class DepthValues(TypedDict):
    """The visited states of exploration trees at one depth.

    Attributes:
      depth: Steps after the first observation.
      states: Number of states, over all trees.
      mean: Mean of their values, in [0, 1].
      low: First quartile of their values.
      high: Third quartile of their values.
    """

    depth: int
    states: int
    mean: float
    low: float
    high: float


class TransferCell(TypedDict):
    """A cell of a transfer matrix.

    Attributes:
      row: What was trained on.
      column: What was tested.
      value: The result, for example a difference of mean returns.
      ci95: Low and high end of its 95% interval; None if it is not known.
    """

    row: str
    column: str
    value: float
    ci95: list[float] | None


class OptionalParts(TypedDict, total=False):
    """The parts of `report.json` that files of earlier versions lack.

    Attributes:
      oracle_gap: The room for any reward model, by environment and split.
      notes: Sentences that belong above the table of results.
      probe: By environment, whether its last observation gives the outcome away.
      curves: Score against policy tokens.
      equal_tokens: Searches against best-of-k with as many tokens.
      value_by_depth: Values of the states of exploration trees by depth.
      transfer: The cells of a transfer matrix.
    """

    oracle_gap: list[OracleGap]
    notes: list[str]
    probe: dict[str, ProbeRow]
    curves: list[CurveRow]
    equal_tokens: list[EqualTokens]
    value_by_depth: list[DepthValues]
    transfer: list[TransferCell]
