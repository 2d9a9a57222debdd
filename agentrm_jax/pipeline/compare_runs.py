"""One report of several runs: their results next to each other, and averaged over seeds."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.yaml_nodes import read_yaml
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.depths import value_by_depth
from agentrm_jax.evaluation.episodes import Episode, Variant, read_episodes
from agentrm_jax.evaluation.report import ReportPage, write_report
from agentrm_jax.evaluation.report_rows import BestOfKRow, ProbeRow
from agentrm_jax.evaluation.results import comparisons, default_pairs, merge_runs
from agentrm_jax.evaluation.rows import Comparison, read_rows
from agentrm_jax.evaluation.summary import report_parts
from agentrm_jax.evaluation.tables import comparison_sentences, console_table, environment_table
from agentrm_jax.evaluation.viewer import labelled
from agentrm_jax.pipeline.report import method_rank, read_probe
from agentrm_jax.pipeline.report_searches import RunRecord, Shown, run_viewer
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.output_folders import check_output_folder, new_folder
from agentrm_jax.runtime.run_directory import flat
from agentrm_jax.runtime.run_paths import MethodPaths, RunPaths
from agentrm_jax.runtime.stage_files import stage_ended

_SEED = "seed"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A run as it was stored.

    Attributes:
      record: Its files.
      methods: The folders of its methods.
      settings: Its settings by dotted key.
      best_of_k: Best-of-k of its samples.
      probe: See `report.read_probe`.
    """

    record: RunRecord
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    best_of_k: Sequence[BestOfKRow]
    probe: Mapping[str, ProbeRow]

    @property
    def name(self) -> str:
        return self.record.name


def compare_runs(
    directories: Sequence[pathlib.Path], output: pathlib.Path, shown: Shown
) -> pathlib.Path:
    """Writes the report of several runs and prints the tables.

    Runs whose settings differ in the seed alone are one group: seeds are averaged within each task.
    Groups have rows of their own, and every method is compared with the same method of the first
    group.

    Args:
      directories: The folders of the runs.
      output: The folder to write.
      shown: What the viewer shows.

    Returns:
      The path of report.html.

    Raises:
      UserError: A folder is no run that was evaluated, or a file is damaged.
    """
    check_output_folder(output, directories)
    names = _names(directories)
    runs = [_read(path, name) for path, name in zip(directories, names, strict=True)]
    groups = _groups(runs)
    parts = _parts(groups)
    parts["notes"] = [*missing_methods(runs), *_seed_notes(groups), *parts["notes"]]
    parts["value_by_depth"] = value_by_depth(tree for run in runs for tree in run.record.trees)
    settings = [run.settings for run in runs]
    page = ReportPage(
        title=output.resolve().name,
        metrics=[
            {**row, "stage": f"{run.name}: {row['stage']}"}
            for run in runs
            for row in read_metrics(run.record.paths.metrics)
        ],
        viewer=run_viewer([run.record for run in runs], shown),
        config=_common(settings),
        differing=_differing(settings),
        run_names=names,
    )
    with new_folder(output) as folder:
        write_report(folder, parts, page)
    path = RunPaths(output).report_page
    console = Console(width=None if Console().is_terminal else 120)
    for note in parts["notes"]:
        print(note)
    console.print(console_table(parts["results"]))
    if (by_environment := environment_table(parts["results"])) is not None:
        console.print(by_environment)
    for sentence in comparison_sentences(parts["comparisons"]):
        print(sentence)
    print(f"report: {path}")
    return path


_LISTS = ("results", "oracle_gap", "curves", "equal_tokens", "notes")


def _parts(groups: Mapping[str, Sequence[_Run]]) -> dict[str, Any]:
    """The parts of report.json; rows name their group if there are several."""
    merged = {
        name: merge_runs({run.name: run.record.episodes for run in own})
        for name, own in groups.items()
    }
    own_parts: dict[str, dict[str, Any]] = {}
    for name, own in groups.items():
        best_of_k = [row for run in own for row in run.best_of_k]
        own_parts[name] = {**report_parts(merged[name], best_of_k, own[0].probe)}
    if len(groups) == 1:
        return next(iter(own_parts.values()))
    found: dict[str, Any] = {key: [] for key in _LISTS}
    for name, parts in own_parts.items():
        for key in _LISTS:
            found[key] += [_named(row, name) for row in parts[key]]
    return {**found, "comparisons": between_groups(merged)}


def _named(row: Any, group: str) -> Any:
    """A row, or a sentence, that names its group."""
    if isinstance(row, str):
        return f"{group}: {row}"
    labels = {key: labelled(row[key], group) for key in ("label", "a_label") if key in row}
    return {**row, **labels, "run": group}


def between_groups(groups: Mapping[str, Sequence[Episode]]) -> list[Comparison]:
    """Returns the differences of each method between the first group of runs and the others.

    Differences are paired over tasks; over training seeds as well if both groups have the same
    ones. The comparisons within each group come after them.

    Args:
      groups: The episodes of each group, by its name.
    """
    seeds = {frozenset(episode.seed for episode in own) for own in groups.values()}
    named = {
        name: [_of_group(episode, name, keeps_seed=len(seeds) == 1) for episode in own]
        for name, own in groups.items()
    }
    variants = {
        name: {_without(e.variant, name): e.variant for e in own} for name, own in named.items()
    }
    first, *others = variants
    pairs = [
        (variants[name][each], variants[first][each])
        for name in others
        for each in variants[name]
        if each in variants[first]
    ]
    for own in named.values():
        pairs += default_pairs(own)
    return comparisons([episode for own in named.values() for episode in own], pairs)


def _of_group(episode: Episode, name: str, *, keeps_seed: bool) -> Episode:
    """The episode with its group among the options, which tables show in brackets."""
    options = f"{episode.options}; {name}" if episode.options else name
    seed = episode.seed if keeps_seed else 0
    return dataclasses.replace(episode, options=options, seed=seed)


def _without(variant: Variant, name: str) -> Variant:
    return variant._replace(options=variant.options.removesuffix(name).removesuffix("; "))


def missing_methods(runs: Sequence[_Run]) -> list[str]:
    """Returns a sentence for each run that lacks the files of a method that another run has.

    Args:
      runs: The runs.
    """
    every = list(dict.fromkeys(name for run in runs for name in run.methods))
    return [
        f"{run.name} has no files of {', '.join(missing)}: compared without."
        for run in runs
        if (missing := [name for name in every if name not in run.methods])
    ]


def _seed_notes(groups: Mapping[str, Sequence[_Run]]) -> list[str]:
    return [
        f"{', '.join(run.name for run in own)} differ in the seed alone: their outcomes are "
        "averaged within each task."
        for own in groups.values()
        if len(own) > 1
    ]


def _groups(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
    """Returns the runs with equal settings except for the seed, by the names of a group's runs."""
    groups: list[list[_Run]] = []
    for run in runs:
        for group in groups:
            if _equal_but_seed(run, group[0]):
                group.append(run)
                break
        else:
            groups.append([run])
    return {" + ".join(run.name for run in group): group for group in groups}


def _equal_but_seed(a: _Run, b: _Run) -> bool:
    differing = _differing([a.settings, b.settings])
    return set(differing) == {_SEED}


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of the keys in which settings differ."""
    keys = dict.fromkeys(key for own in settings for key in own)
    values = {key: [own.get(key) for own in settings] for key in keys}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    differing = _differing(settings)
    return {key: value for key, value in settings[0].items() if key not in differing}


def _names(directories: Sequence[pathlib.Path]) -> list[str]:
    """The names of the folders; with the folders above them if two names are equal."""
    paths = [path.resolve() for path in directories]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{directories[0]}: is given twice; give each run once")


def _read(directory: pathlib.Path, name: str) -> _Run:
    """A run with its trees and the episodes of all methods whose files it has."""
    paths = RunPaths(directory)
    root = paths.stage("evaluate")
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    stage_ended(root)
    methods = [folder for folder in folders if MethodPaths(folder).episodes.exists()]
    methods.sort(key=lambda folder: method_rank(re.split("[@+]", folder.name)[0]))
    if not methods:
        raise UserError(f"{root}: nothing was evaluated yet; `agentrm evaluate` does it")
    episodes = [e for folder in methods for e in read_episodes(MethodPaths(folder).episodes)]
    trees = TreeStore.read(paths.trees, finished=stage_ended(paths.trees)).values()
    settings = flat(read_yaml(paths.config).plain) if paths.config.exists() else {}
    return _Run(
        record=RunRecord(
            paths=paths,
            episodes=episodes,
            trees=[tree for tree in trees if tree.iterations],
            name=name,
        ),
        methods=tuple(folder.name for folder in methods),
        settings=settings,
        best_of_k=[
            row
            for folder in methods
            for row in read_rows(MethodPaths(folder).best_of_k, BestOfKRow)
        ],
        probe=read_probe(paths),
    )
