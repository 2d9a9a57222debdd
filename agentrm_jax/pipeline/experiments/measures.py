"""The results in the tables of an experiment, from the files of its runs.

A result is a mapping: `run`, `seed` or `seeds`, the axes of the grid, and what the measure adds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluation.episodes import (
    AT_OBSERVATION,
    Episode,
    grouped,
    read_episodes,
    row_variant,
    scored_label,
)
from agentrm_jax.evaluation.gains import correct_gains, gains
from agentrm_jax.evaluation.log_fits import log_fits
from agentrm_jax.evaluation.report_rows import BestOfKRow
from agentrm_jax.evaluation.results import level, merge_runs, result_rows
from agentrm_jax.evaluation.rows import ByNRow, read_rows
from agentrm_jax.evaluation.statistics import RESAMPLES, bootstrap, percentile_interval
from agentrm_jax.pipeline.config_values import plain
from agentrm_jax.pipeline.evaluate_reward_model import FIGURES, Compared, evaluate_reward_model
from agentrm_jax.pipeline.experiments.config import Level, TableConfig
from agentrm_jax.pipeline.experiments.jobs import Plan, PlannedRun
from agentrm_jax.pipeline.experiments.load import Experiment
from agentrm_jax.pipeline.experiments.scoring import costs, manipulations
from agentrm_jax.runtime.json_files import read_json, write_json_atomic
from agentrm_jax.runtime.processes import from_first
from agentrm_jax.runtime.run_paths import EPISODES, MODEL, RunPaths

Result = dict[str, Any]
FOLDER = "measures"


class MeasuredTable(TypedDict):
    """A table with its results.

    Attributes:
      table: Its configuration.
      rows: The results.
      notes: What the results do not show.
    """

    table: Mapping[str, Any]
    rows: list[Result]
    notes: list[str]


def measured(experiment: Experiment, planned: Plan, table: TableConfig) -> MeasuredTable:
    """Returns a table with its results; measures what is not stored.

    Args:
      experiment: The experiment.
      planned: Its runs, which have ended.
      table: The table.

    Raises:
      UserError: A file of a run is missing or damaged.
    """
    notes: list[str] = []
    if table.measure == "methods":
        rows = list(_methods(planned, table))
    elif table.measure == "by_n":
        rows = [row for run in planned.evaluated for row in _by_n(planned, run, table)]
    elif table.measure == "log_fit":
        rows = list(_log_fits(planned, table))
    elif table.measure == "trees":
        rows = from_first(lambda: _trees(experiment, planned, table, notes))
    else:
        measure = {"manipulations": manipulations, "cost": costs}[table.measure]
        rows = [
            row
            for run in planned.evaluated
            for row in _stored(planned, run, table, lambda run=run: measure(planned, run, table))
        ]
    rows = [row for row in rows if _shown(row, table)]
    correct_gains(rows)
    return {"table": plain(table), "rows": rows, "notes": notes}


def _shown(row: Result, table: TableConfig) -> bool:
    methods, models = table.methods, table.reward_models
    return (not methods or row.get("method") in methods) and (
        not models or row.get("reward_model") in models
    )


def named(run: PlannedRun) -> Result:
    """Returns the keys of a result that name its run."""
    entry = run.entry
    return {"run": entry.name, "group": entry.group, "seed": run.config.seed, **entry.axes}


def _methods(planned: Plan, table: TableConfig) -> Iterator[Result]:
    """Results of test-time methods; seeds are averaged within a task."""
    by_name: dict[str, list[PlannedRun]] = {}
    for run in planned.evaluated:
        by_name.setdefault(run.entry.name, []).append(run)
    episodes = {
        name: merge_runs({run.entry.folder: episodes_of(planned, run) for run in runs})
        for name, runs in by_name.items()
    }
    shown: set[tuple[str, float]] = set()
    for name, runs in by_name.items():
        head = {**named(runs[0]), "seeds": [run.config.seed for run in runs]}
        others = [episodes[each] for each in by_name if _policies(by_name[each]) == _policies(runs)]
        for row in _rows_at(episodes[name], table.level):
            if row["split"] in table.splits or table.level == "kind":
                compared = _gains(row, table, [episodes[name], *others])
                # What runs of one policy share stands once, next to what is compared with it.
                same = (f"{row['label']} {row['split']}", row["score_mean"])
                if table.baselines and not compared and len(others) > 1 and same in shown:
                    continue
                shown.add(same)
                yield {**row, **compared, **head}


def _policies(runs: Sequence[PlannedRun]) -> set[str | None]:
    """The policies of runs that differ in their seed."""
    return {run.jobs.get("sft", run.config.policy) for run in runs}


def _gains(row: Result, table: TableConfig, candidates: Sequence[Sequence[Episode]]) -> Result:
    """The gains of a row over the baselines of a table; a baseline itself has none."""
    if not table.baselines:
        return {}
    parts = [
        [each for each in episodes if row["split"] in ("all", each.split)]
        for episodes in candidates
    ]
    own = [each for each in parts[0] if each.variant.label == row["label"]]
    return {} if own[0].variant.is_baseline else gains(own, table.baselines, parts)


def _rows_at(episodes: Sequence[Episode], at: Level) -> list[Result]:
    """Result rows of a level with their labels."""
    if at == "macro":
        return macro_rows(episodes)
    rows = [row for row in result_rows(episodes) if level(row) == at]
    return [{**row, "label": row_variant(row).label} for row in rows]


def episodes_of(planned: Plan, run: PlannedRun) -> list[Episode]:
    """Returns the episodes of a run, in the order of its methods.

    Raises:
      UserError: Nothing was evaluated, or a file is damaged.
    """
    directory, methods = planned.directory(run), run.config.evaluate.methods

    def number(file: pathlib.Path) -> tuple[int, str]:
        name = file.parent.name
        found = [i for i, method in enumerate(methods) if name.startswith(method)]
        return (found[-1] if found else len(methods)), name

    files = sorted(RunPaths(directory).stage("evaluate").glob(f"*/{EPISODES}"), key=number)
    if not files:
        raise UserError(f"{directory}: nothing was evaluated")
    return [episode for file in files for episode in read_episodes(file)]


def macro_rows(episodes: Sequence[Episode]) -> list[Result]:
    """Returns the mean of the environments' means, for each method and split.

    The seeds of a task are averaged first, and tasks are resampled within each environment.
    """
    rows: list[Result] = []
    for variant in dict.fromkeys(episode.variant for episode in episodes):
        own = [episode for episode in episodes if episode.variant == variant]
        for split in ("all", "held_in", "held_out"):
            part = [e for e in own if split in ("all", e.split)]
            if not part:
                continue
            groups: dict[str, list[float]] = {}
            for _, seeds in grouped(part, lambda episode: episode.task.task_id):
                mean = float(np.mean([episode.outcome for episode in seeds]))
                groups.setdefault(seeds[0].task.environment, []).append(mean)
            score = _macro(list(groups.values()))
            rows.append(
                {
                    "task": "macro",
                    "split": split,
                    "label": variant.label,
                    **variant._asdict(),
                    "n_tasks": sum(map(len, groups.values())),
                    "score_mean": score[0],
                    "score_ci95": list(score[1:]),
                }
            )
    return rows


def _macro(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    value = float(np.mean([np.mean(group) for group in groups]))
    n = min(map(len, groups))
    if n < 2 or all(np.ptp(group) == 0 for group in groups):  # resampling says nothing
        ends = [bootstrap(group, bounds=(0.0, 1.0)) for group in groups]
        return value, *(
            float(np.mean([e.low for e in ends])),
            float(np.mean([e.high for e in ends])),
        )
    generator = np.random.default_rng(0)
    resampled = np.mean(
        [generator.choice(group, (RESAMPLES, len(group))).mean(axis=1) for group in groups], axis=0
    )
    found = percentile_interval(value, resampled, n, (0.0, 1.0))
    return value, found.low, found.high


def _by_n(planned: Plan, run: PlannedRun, table: TableConfig) -> Iterator[Result]:
    folder = RunPaths(planned.directory(run)).method("best_of_n")
    for row in read_rows(folder.by_n, ByNRow):
        if (row["task"] == "all") == (table.level == "all") and row["n"] in (
            table.ns or (row["n"],)
        ):
            place = row.get("score_at", AT_OBSERVATION)
            label = scored_label("", row["reward_model"], place).removeprefix(", ")
            yield {**row, "label": label, **named(run)}


def _log_fits(planned: Plan, table: TableConfig) -> Iterator[Result]:
    """The gain of each doubling of `n` or of an axis; seeds are averaged within a task."""
    scores: dict[tuple[str, str], dict[float, dict[str, list[float]]]] = {}
    heads: dict[tuple[str, str], Result] = {}
    for run in planned.evaluated:
        for x, head, task_id, score in _points(planned, run, table):
            others = {key: value for key, value in run.entry.axes.items() if key != table.over}
            key = (head["label"], repr((run.entry.group, others)))
            heads.setdefault(key, {**named(run), **head, "run": run.entry.group})
            scores.setdefault(key, {}).setdefault(x, {}).setdefault(task_id, []).append(score)
    for key, of_x in scores.items():
        means = {
            x: {task: float(np.mean(each)) for task, each in of_task.items()}
            for x, of_task in of_x.items()
        }
        for fit in log_fits(means, table.ns):
            yield {
                **heads[key],
                "range": f"{fit.low:g} to {fit.high:g}",
                "per_doubling": fit.per_doubling.mean,
                "per_doubling_ci95": [fit.per_doubling.low, fit.per_doubling.high],
                "n_tasks": fit.per_doubling.n,
            }


def _points(
    planned: Plan, run: PlannedRun, table: TableConfig
) -> Iterator[tuple[float, Result, str, float]]:
    """A number, what was measured there, the task and its score; of `n` the powers of two."""
    if table.over == "n":
        folder = RunPaths(planned.directory(run)).method("best_of_n")
        for row in read_rows(folder.best_of_k, BestOfKRow):
            model = row["reward_model"]
            label = scored_label("", model, row["score_at"]).removeprefix(", ")
            head = {"label": label, "method": "best_of_n", "reward_model": model}
            for power in range(len(row["scores"]).bit_length()):
                yield 2**power, head, row["task_id"], row["scores"][2**power - 1]
        return
    x = float(run.entry.axes[table.over])
    for episode in episodes_of(planned, run):
        variant = episode.variant
        head = {"label": variant.label, "method": variant.method}
        head["reward_model"] = variant.reward_model or ""
        yield x, head, episode.task.task_id, episode.outcome


def _trees(
    experiment: Experiment, planned: Plan, table: TableConfig, notes: list[str]
) -> list[Result]:
    """The reward model of each run next to the values of stored search trees."""
    rows = []
    for run in planned.evaluated:
        if not _has_explicit(run):
            notes.append(f"run {run.entry.name} has no explicit reward model: left out")
            continue
        other = experiment.entry(table.trees, run.entry.seed, {})
        source = planned.jobs[planned.runs[other.folder].jobs["explore"]]
        model = reward_model_of(planned, run)
        digest = f"{table.score_at}-{source.name}-{run.jobs.get('train-rm', run.jobs['evaluate'])}"
        output = planned.output / FOLDER / f"trees-{digest}"
        if (output / FIGURES).exists():
            figures = read_json(output / FIGURES)
        else:
            figures = evaluate_reward_model(
                source.directory,
                model,
                output,
                compared=Compared(score_at=table.score_at),
                on_note=lambda note: notes.append(note),
            )
        for row in figures["rows"]:
            head = named(run)
            if row["name"] != "reward model":  # the same for all runs
                head |= {"run": "-", **dict.fromkeys(run.entry.axes, "-")}
                if row["name"] in {each["name"] for each in rows}:
                    continue
            values = {}
            for name, value in row.items():
                if isinstance(value, Mapping):
                    values |= {name: value["mean"], f"{name}_ci95": [value["low"], value["high"]]}
                else:
                    values[name] = value
            rows.append({**head, **values, "n_tasks": figures["trees"]})
    return rows


def _has_explicit(run: PlannedRun) -> bool:
    return run.config.reward_model is not None or "train-rm" in run.jobs


def reward_model_of(planned: Plan, run: PlannedRun) -> pathlib.Path:
    """Returns the folder of a run's explicit reward model, trained or given.

    Raises:
      UserError: The run has none.
    """
    if run.config.reward_model is not None:
        return pathlib.Path(run.config.reward_model)
    if "train-rm" not in run.jobs:
        raise UserError(f"run {run.entry.name} has no explicit reward model to compare")
    return planned.jobs[run.jobs["train-rm"]].folder / MODEL


def _stored(planned: Plan, run: PlannedRun, table: TableConfig, measure: Any) -> list[Result]:
    """The results of a measure that needs models, computed once."""
    name = f"{table.measure}-{run.jobs['evaluate']}"
    path = planned.output / FOLDER / f"{name}.json"
    settings = {"lengths": list(table.lengths), "num_trajectories": table.num_trajectories}
    if path.exists() and (stored := read_json(path))["settings"] == settings:
        rows = stored["rows"]
    else:
        rows = measure()
        from_first(lambda: write_json_atomic(path, {"settings": settings, "rows": rows}))
    return [{**named(run), **row} for row in rows]
