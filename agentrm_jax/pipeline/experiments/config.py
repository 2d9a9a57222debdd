"""The keys of an experiment file that say what it shows; its runs are in `load`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.evaluation.gains import BASELINES

Measure = Literal["methods", "by_n", "log_fit", "trees", "manipulations", "cost"]
MEASURES: tuple[Measure, ...] = ("methods", "by_n", "log_fit", "trees", "manipulations", "cost")
Level = Literal["all", "macro", "environment", "kind"]
LEVELS: tuple[Level, ...] = ("all", "macro", "environment", "kind")
SPLITS = ("all", "held_in", "held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperNumber:
    """A number that the paper reports.

    Attributes:
      label: The setting in the paper's words.
      value: The number, in the paper's unit (scores in percent).
      source: Where the paper has it.
      row: The row of the first table that it is shown next to; empty if no row is the same setting.
      column: The column of that table; empty for the first one.
    """

    label: str
    value: float
    source: str = ""
    row: str = ""
    column: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig:
    """A table of an experiment.

    Attributes:
      title: Its title.
      measure: What is measured: `methods` (results of test-time methods), `by_n` (best-of-n for
        every number of trajectories), `log_fit` (the gain in score of each doubling of `over`),
        `trees` (the reward model against the values of search trees), `manipulations` (scores of
        stored trajectories before and after a manipulation) or `cost` (seconds and tokens of the
        reward models over the length of trajectories).
      rows: The keys of a result that name a row: `run`, `label`, `method`, `reward_model`, `n`,
        `task`, `split`, `name`, `manipulation`, `length`, or an axis of `grid`.
      columns: The key whose values are the columns; empty for a column of each of `values`.
      values: The keys that are shown, for example `score_mean`; one if `columns` is set.
      level: Of `methods` and `by_n`: all tasks (`all`, micro), the mean of the environments
        (`macro`), or a result for each environment or kind.
      splits: The splits that are shown.
      methods: The methods that are shown; empty for all.
      reward_models: The reward models that are shown; empty for all.
      ns: Of `by_n`: the numbers of trajectories that are shown; empty for all. Of `log_fit`: the
        ends of the ranges in which a line is fitted; empty for one range.
      over: Of `log_fit`: `n` (best-of-n), or an axis of `grid` whose values are numbers.
      trees: Of `trees`: the run or model whose search trees are compared with.
      score_at: Of `trees`: where states are scored, after the `observation`, or after the `action`
        that led there, before the environment has answered.
      baselines: Of `methods`: what each method is compared with on the same tasks, a method such as
        `random_of_n` or a control such as `likelihood`; each is a column `gain_over_BASELINE`. A
        run that lacks it is compared with that of another run with the same policy.
      lengths: Of `cost`: the numbers of steps.
      num_trajectories: Most stored trajectories of `cost` and `manipulations`.
      x: The key on the x axis of the figure; empty for no figure. The first value is drawn.
      heat: Whether cells are coloured by their value.
    """

    title: str
    measure: Measure = "methods"
    rows: tuple[str, ...] = ("run", "label")
    columns: str = ""
    values: tuple[str, ...] = ("score_mean",)
    level: Level = "all"
    splits: tuple[str, ...] = ("all",)
    methods: tuple[str, ...] = ()
    reward_models: tuple[str, ...] = ()
    ns: tuple[int, ...] = ()
    over: str = ""
    trees: str = ""
    score_at: Literal["observation", "action"] = "observation"
    baselines: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    num_trajectories: int = 64
    x: str = ""
    heat: bool = False

    def __post_init__(self) -> None:
        check_fields(self, num_trajectories="[1, 100000]")
        check_choice("measure", self.measure, MEASURES)
        check_choice("level", self.level, LEVELS)
        check_choice("score_at", self.score_at, ("observation", "action"))
        for split in self.splits:
            check_choice("splits", split, SPLITS)
        for baseline in self.baselines:
            check_choice("baselines", baseline, BASELINES)
        if self.baselines and (self.measure != "methods" or self.level != "all" or self.columns):
            raise UserError(
                field="baselines", expected="measure: methods, level: all and no columns"
            )
        if not self.rows:
            raise UserError(field="rows", expected="at least one key")
        if not self.values or (self.columns and len(self.values) != 1):
            raise UserError(field="values", expected="one key if columns is set, else at least one")
        if self.measure == "trees" and not self.trees:
            raise UserError(field="trees", expected="the run or model that has the search trees")
        if self.measure == "log_fit" and not self.over:
            raise UserError(field="over", expected="n, or an axis of grid")
        if not self.lengths or min(self.lengths) < 1:
            raise UserError(field="lengths", expected="numbers of steps, each at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """The question of an experiment, and its tables.

    Attributes:
      title: One line.
      question: What is measured, in one or two sentences.
      source: The section, table or figure of the paper, or what calls for the experiment.
      time: About how long the laptop size takes on two cores.
      paper: The paper's numbers.
      tables: What is shown.
    """

    title: str
    question: str
    source: str
    time: str = ""
    paper: tuple[PaperNumber, ...] = ()
    tables: tuple[TableConfig, ...] = ()

    def __post_init__(self) -> None:
        if not self.tables:
            raise UserError(field="tables", expected="at least one table")
