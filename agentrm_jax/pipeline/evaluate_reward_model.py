"""A reward model's scores of states next to the values that search trees give them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from rich.table import Table
from rich.text import Text

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice
from agentrm_jax.core.records import Trajectory
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import FILE, TreeRecord, TreeStore
from agentrm_jax.evaluation import meta_evaluation
from agentrm_jax.evaluation.meta_evaluation import TreeStates, tree_states
from agentrm_jax.evaluation.page import page
from agentrm_jax.evaluation.rows import read_rows
from agentrm_jax.pipeline.reward_model import (
    RewardModel,
    check_finite,
    open_reward_model,
    reward_directory,
)
from agentrm_jax.pipeline.trained_on import read_trained_on
from agentrm_jax.reward.controls import validity
from agentrm_jax.runtime.json_files import write_json_atomic, write_text_atomic
from agentrm_jax.runtime.output_folders import check_output_folder, new_folder
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.run_paths import NODE_SCORES, RunPaths
from agentrm_jax.runtime.stage_files import stage_ended

_NOT_KNOWN = (
    "what this model was trained on is not known (it has no trained_on.json); tasks of these trees "
    "may be among it"
)
MEASURES = (
    "pairwise_accuracy",
    "over_likelihood",
    "pearson",
    "spearman",
    "calibration_error",
    "squared_error",
)
PAGE, FIGURES = "eval_rm.html", "eval_rm.json"

ScoreAt = Literal["observation", "action"]
NodeScores = Mapping[str, Mapping[int, float]]
"""By task, the score of each scored node of its tree, by node number."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """The states that are compared, and where they are scored.

    Attributes:
      min_visits: Visits that a state needs to be compared.
      include_seen: Whether trees of tasks that the model was trained on are compared as well.
      score_at: Where states are scored: after the `observation`, or after the `action` that led
        there, before the environment has answered.
    """

    min_visits: int = 1
    include_seen: bool = False
    score_at: ScoreAt = "observation"

    def __post_init__(self) -> None:
        check_choice("score_at", self.score_at, get_args(ScoreAt))


EVERY_STATE = Compared()


class NodeScoreRow(TypedDict):
    """The scores of the states of one tree.

    Attributes:
      task_id: The task of the tree.
      nodes: Numbers of the scored nodes.
      scores: Their scores, in the same order.
    """

    task_id: str
    nodes: list[int]
    scores: list[float]


def evaluate_reward_model(
    source: pathlib.Path,
    model: pathlib.Path,
    output: pathlib.Path,
    *,
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    compared: Compared = EVERY_STATE,
    on_note: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Compares scores and values of visited states; writes a page and the figures.

    Args:
      source: A run that has explored, or its folder of trees.
      model: See `reward_model.open_reward_model`, as `config` and `overrides`.
      output: The folder to write.
      config: A configuration that says how states are rendered.
      overrides: `--KEY=VALUE` of that configuration.
      compared: The states, and where they are scored.
      on_note: Called with one line if trees are left out, or if the training tasks are not known.

    Returns:
      The figures, as in eval_rm.json.

    Raises:
      UserError: There is no model or no tree to compare, or the folder cannot be written.
    """
    check_output_folder(output, [source, model])
    trees = _read(source)
    problems, complete = _trained_on(reward_directory(model, config, overrides))
    if not complete:
        on_note(f"{model}: {_NOT_KNOWN}")
    seen = [tree for tree in trees if tree.task.problem in problems]
    if seen and not compared.include_seen:
        trees = [tree for tree in trees if tree.task.problem not in problems]
        on_note(f"{len(seen)} trees are of tasks that were trained on: left out")
        if not trees:
            raise UserError(
                f"{source}: the model was trained on all of these tasks; give --seen, or "
                "trees of other tasks (agentrm eval-rm --help says how to grow some)"
            )
    pairs = [(tree, tree_states(tree, compared.min_visits)) for tree in trees]
    pairs = [(tree, states) for tree, states in pairs if len(states.nodes)]
    if not pairs:
        raise UserError(f"{source}: no state was visited {compared.min_visits} times")
    scores = _scores(open_reward_model(model, config, overrides), pairs, compared.score_at)
    figures = {
        "model": str(model),
        "source": str(source),
        "min_visits": compared.min_visits,
        "score_at": compared.score_at,
        "trained_on": "known" if complete else "not known",
        "seen": len(seen) if compared.include_seen else 0,
        **_figures(pairs, scores, compared.score_at),
    }
    with new_folder(output) as folder:
        write_json_atomic(folder / FIGURES, figures)
        write_json_atomic(folder / NODE_SCORES, _node_scores(pairs, scores))
        write_text_atomic(folder / PAGE, _page(figures))
    return figures


def read_node_scores(folder: pathlib.Path) -> NodeScores:
    """Returns the scores that `evaluate_reward_model` wrote, by task and node.

    Args:
      folder: Its output folder.

    Raises:
      UserError: The folder holds no scores, or they are damaged.
    """
    path = folder / NODE_SCORES
    if not path.exists():
        raise UserError(f"{path}: no such file; `agentrm eval-rm` writes it")
    return {
        row["task_id"]: dict(zip(row["nodes"], row["scores"], strict=False))
        for row in read_rows(path, NodeScoreRow)
    }


def _node_scores(
    compared: Sequence[tuple[TreeRecord, TreeStates]], scores: np.ndarray
) -> list[NodeScoreRow]:
    ends = np.cumsum([len(states.nodes) for _, states in compared])
    parts = np.split(scores, ends[:-1])
    return [
        {
            "task_id": tree.task.task_id,
            "nodes": states.nodes.tolist(),
            "scores": [float(score) for score in own],
        }
        for (tree, states), own in zip(compared, parts, strict=True)
    ]


def _read(path: pathlib.Path) -> list[TreeRecord]:
    """The trees of a run, or of its folder of trees."""
    folder = path if (path / FILE).exists() else RunPaths(path).trees
    if not (folder / FILE).exists():
        raise UserError(f"{path}: no {FILE} here; give a run that has explored, or its trees/")
    trees = list(TreeStore.read(folder, finished=stage_ended(folder)).values())
    if not trees:
        raise UserError(f"{folder / FILE}: holds no tree")
    return trees


def _trained_on(model: pathlib.Path) -> tuple[frozenset[str], bool]:
    """The problems that a model was trained on, and whether the list is complete.

    A model of an older version has no list; the problems of the trees in its run are taken.
    """
    listed = read_trained_on(model)
    if listed is not None:
        return listed, True
    for run in (model, *model.resolve().parents[:3]):
        folder = RunPaths(run).trees
        if (folder / FILE).exists():
            trees = TreeStore.read(folder, finished=stage_ended(folder)).values()
            return frozenset(tree.task.problem for tree in trees), False
    return frozenset(), False


def _scores(
    model: RewardModel, compared: Sequence[tuple[TreeRecord, TreeStates]], score_at: ScoreAt
) -> np.ndarray:
    """[M] scores of all states, tree after tree."""
    all_scores: list[float] = []
    with progress("eval-rm", len(compared)) as bar:
        for tree, states in compared:
            scores = model.score([_trajectories(tree, states, score_at)])[0]
            for node, score in zip(states.nodes, scores, strict=True):
                check_finite(score, f"tree {tree.task.task_id}, node {node}")
            all_scores += scores
            bar.advance()
    return np.asarray(all_scores)


def _trajectories(tree: TreeRecord, states: TreeStates, score_at: ScoreAt) -> list[Trajectory]:
    """The compared states of a tree as a model scores them."""
    trajectories = tree.states()
    chosen = [trajectories[node] for node in states.nodes]
    return [each.without_last_answer() for each in chosen] if score_at == "action" else chosen


def _figures(
    compared: Sequence[tuple[TreeRecord, TreeStates]], scores: np.ndarray, score_at: ScoreAt
) -> dict[str, Any]:
    states = [own for _, own in compared]
    pairs = meta_evaluation.sibling_pairs(states)
    scored = [each for tree, own in compared for each in _trajectories(tree, own, score_at)]
    others = {
        "random numbers": np.random.default_rng(0).random(len(scores)),
        "depth": np.concatenate([each.depths for each in states]).astype(float),
        "likelihood": np.concatenate([each.likelihoods for each in states]),
        "fewest invalid": np.array([validity(each) for each in scored]),
    }
    own = meta_evaluation.measured(states, scores, calibrated=True)
    difference = meta_evaluation.accuracy_difference(states, scores, others["likelihood"])
    rows = [{"name": "reward model", "over_likelihood": difference, **own}]
    for name, other in others.items():
        rows.append({"name": name, **meta_evaluation.measured(states, other, calibrated=False)})
    return {
        "trees": len(states),
        "states": len(scores),
        "pairs": len(pairs.better),
        "ties": pairs.ties,
        "rows": [{name: row.get(name) for name in ("name", *MEASURES)} for row in rows],
        "by_depth": meta_evaluation.by_depth(states, scores),
        "reliability": meta_evaluation.reliability(states, scores),
    }


def _page(figures: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    from agentrm_jax.evaluation import plots  # matplotlib is slow to import

    plot = Markup(plots.reliability(figures["reliability"], figures["by_depth"]))
    not_known = _NOT_KNOWN if figures["trained_on"] != "known" else ""
    return page(
        PAGE,
        title=printable(figures["model"]),
        found=figures,
        measures=MEASURES,
        plot=plot,
        not_known=not_known,
    )


def figures_table(figures: Mapping[str, Any]) -> Table:
    """Returns the table of the console, with a row for each score."""
    title = (
        "{states:,} states of {trees:,} trees, {pairs:,} pairs of siblings ({ties:,} more have the "
        "same value)"
    ).format_map(figures)
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for name in MEASURES:
        table.add_column(name.replace("_", " "), justify="right")
    for number, row in enumerate(figures["rows"]):
        cells = [_cell(row[name]) for name in MEASURES]
        table.add_row(row["name"], *cells, style="dim" if number else "bold")
    return table


def _cell(estimate: Mapping[str, float] | None) -> Text:
    if estimate is None:
        return Text("-")
    return Text("{mean:.2f} [{low:.2f}, {high:.2f}]".format_map(estimate))
