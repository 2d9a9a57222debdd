"""The searches that a report shows: chosen among the trees and rollouts that a run stored."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.evaluation.episodes import Episode, read_episodes
from agentrm_jax.evaluation.harness import by_task
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.evaluation.rows import ScoreRow, read_rows
from agentrm_jax.evaluation.searches import Search, rollout_search, samples_search, tree_search
from agentrm_jax.evaluation.tables import scored_by
from agentrm_jax.evaluation.viewer import (
    Answer,
    Viewer,
    episode_answer,
    labelled,
    make_viewer,
    tree_answer,
)
from agentrm_jax.pipeline.evaluate_reward_model import NodeScores, read_node_scores
from agentrm_jax.runtime.run_paths import MethodPaths, RunPaths

TASKS = 100
"""Tasks whose searches a report shows, unless it is asked for another number."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The choice of searches that the viewer of a report shows.

    Attributes:
      tasks: Most tasks whose searches are shown.
      scores: Folders that `agentrm eval-rm` wrote: the scores of their reward models are shown in
        the exploration trees.
    """

    tasks: int = TASKS
    scores: tuple[pathlib.Path, ...] = ()

    def __post_init__(self) -> None:
        if self.tasks < 0:
            raise UserError(field="tasks", value=self.tasks, expected="at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The files of a run that its viewer is made of.

    Attributes:
      paths: Its paths.
      episodes: Its episodes.
      trees: Its exploration trees with at least one iteration.
      name: Its name on the page, if several runs are compared; else empty.
    """

    paths: RunPaths
    episodes: Sequence[Episode]
    trees: Sequence[TreeRecord]
    name: str = ""


def run_viewer(runs: Sequence[RunRecord], shown: Shown) -> Viewer | None:
    """Returns the viewer of one or several runs, None if there is nothing to show.

    Tasks on which methods differ, and trees with mixed outcomes, come first.

    Args:
      runs: The runs.
      shown: What to show.

    Raises:
      UserError: A file is missing or damaged.
    """
    names = [folder.name for folder in shown.scores]
    scores = {
        folder.name if names.count(folder.name) == 1 else str(folder): read_node_scores(folder)
        for folder in shown.scores
    }
    answers: list[Answer] = []
    for run in runs:
        answers += [episode_answer(episode, run.name) for episode in run.episodes]
    for run in runs:
        answers += [tree_answer(_drawn(tree, run.name, {})) for tree in run.trees]
    if not answers:
        return None
    wanted = chosen_tasks(runs, shown.tasks)
    found: dict[str, list[Search]] = {task_id: [] for task_id in wanted}
    for run in runs:
        for tree in run.trees:
            if tree.task.task_id in found:
                found[tree.task.task_id].append(_drawn(tree, run.name, scores))
        for search in _method_searches(run, frozenset(wanted)):
            found[search.task.task_id].append(search)
    return make_viewer(answers, [search for own in found.values() for search in own])


def chosen_tasks(runs: Sequence[RunRecord], count: int) -> list[str]:
    """Returns the tasks whose searches are shown, the most telling first.

    Test tasks are ranked by the range of the methods' outcomes, trees by how evenly their outcomes
    are mixed. The two lists alternate.

    Args:
      runs: The runs.
      count: Most tasks.
    """
    outcomes: dict[str, list[float]] = {}
    for run in runs:
        for episode in run.episodes:
            outcomes.setdefault(episode.task.task_id, []).append(episode.outcome)
    tested = sorted(outcomes, key=lambda task_id: min(outcomes[task_id]) - max(outcomes[task_id]))

    def unevenness(tree: TreeRecord) -> float:
        returns = [backup.outcome for backup in tree.backups]
        return abs(sum(returns) / len(returns) - 0.5)

    trees = sorted((tree for run in runs for tree in run.trees), key=unevenness)
    explored = [tree.task.task_id for tree in trees]
    first = min(len(tested), len(explored))
    mixed = [each for pair in zip(tested, explored, strict=False) for each in pair]
    return list(dict.fromkeys([*mixed, *tested[first:], *explored[first:]]))[:count]


def _drawn(tree: TreeRecord, run: str, scores: Mapping[str, NodeScores]) -> Search:
    own = {name: found.get(tree.task.task_id, {}) for name, found in scores.items()}
    search = tree_search(tree, {name: nodes for name, nodes in own.items() if nodes})
    return dataclasses.replace(search, label=labelled(search.label, run))


def _method_searches(run: RunRecord, wanted: frozenset[str]) -> Iterator[Search]:
    """Yields the searches of all test-time methods of a run for some tasks."""
    root = run.paths.stage("evaluate")
    if not root.is_dir():
        return
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        paths = MethodPaths(folder)
        if not paths.rollouts.exists():
            continue
        stored = [
            rollout
            for rollout in read_rollouts(paths.rollouts)
            if rollout.trajectory.task.task_id in wanted
        ]
        label = labelled(_label(paths), run.name)
        scores = _sample_scores(paths, wanted)
        for task_id, samples in by_task(stored).items():
            samples = sorted(samples, key=lambda rollout: rollout.sample)
            if len(samples) == 1 and not paths.scores.exists():
                yield rollout_search(samples[0], label)
            else:
                # Scores that are not finite are not stored: those that are left have no number.
                whole = {
                    name: own
                    for name, own in scores.get(task_id, {}).items()
                    if len(own) == len(samples)
                }
                yield samples_search(samples, whole, label)


def _sample_scores(paths: MethodPaths, wanted: frozenset[str]) -> dict[str, dict[str, list[float]]]:
    """The scores of the samples by task and reward model, in the order of the samples."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in read_rows(paths.scores, ScoreRow):
        if row["task_id"] in wanted:
            by_model = scores.setdefault(row["task_id"], {})
            by_model.setdefault(scored_by(row), []).append(row["score"])
    return scores


def _label(paths: MethodPaths) -> str:
    """The name of a method's searches: that of its rows, or its folder's for samples."""
    name, _, seed = paths.folder.name.replace("_", " ").partition("+seed")
    if paths.scores.exists():
        name += ": samples"
    elif paths.episodes.exists():
        labels = {episode.variant.label for episode in read_episodes(paths.episodes)}
        name = labels.pop() if len(labels) == 1 else name
    return f"{name} (sampling seed {seed})" if seed else name
