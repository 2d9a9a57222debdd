"""`agentrm eval-rm TREES`: a reward model beside what search trees say of their states."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrm_jax.cli.score import model_parser
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable
from agentrm_jax.data.trees import FILE, TreeRecord, TreeStore
from agentrm_jax.evaluate import meta_evaluation
from agentrm_jax.evaluate.meta_evaluation import TreeStates, tree_states
from agentrm_jax.evaluate.page import page
from agentrm_jax.pipeline.reward_model import (
    RewardModel,
    check_finite,
    open_reward_model,
    reward_directory,
)
from agentrm_jax.pipeline.trained_on import read_trained_on
from agentrm_jax.runtime.json_files import write_json_atomic, write_text_atomic
from agentrm_jax.runtime.output_folders import check_output_folder, new_folder
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.stage_files import stage_ended

_NOT_KNOWN = (
    "what this model was trained on is not known (it has no trained_on.json); tasks of these trees "
    "may be among it"
)
MEASURES = ("pairwise_accuracy", "pearson", "spearman", "calibration_error", "squared_error")
_DESCRIPTION = """\
Scores every visited state of search trees and compares the scores with the states' values, the mean
returns that were backed up through them. No environment is needed. Writes eval_rm.html (a page
to look at) and eval_rm.json, and prints:

  pairwise accuracy  how often the better one of two states that follow the same one is scored
                     higher; equal values are left out, equal scores count half
  pearson, spearman  correlation of score and value, of ranks
  calibration error  how far mean score and mean value of ten bins are apart
  squared error      the mean of (score - value) squared

each with a 95% interval over trees, beside the same of other scores: random numbers, the depth,
and how likely the policy was to take the step. Trees of tasks that the model was trained on
are left out (they say little), unless --seen is given. The model's trained_on.json lists these
tasks; for a model without it they are not known, and the console, the page and eval_rm.json say so.
Grow other trees with, for example,

  agentrm explore CONFIG --output OTHER --policy=RUN/sft/model --train_policy=false --seed=1
"""


def main(arguments: Sequence[str]) -> int:
    """Compares, writes and prints; returns the exit status."""
    usage = "agentrm eval-rm TREES --model RUN --output DIR [--KEY=VALUE ...]"
    parser = model_parser(usage, _DESCRIPTION)
    parser.add_argument("trees", metavar="TREES", type=pathlib.Path, help="a run, or its trees/")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument(
        "--min-visits", type=int, default=1, metavar="N", help="of a state (default: 1)"
    )
    parser.add_argument("--seen", action="store_true", help="also tasks that were trained on")
    given, overrides = parser.parse_known_args(arguments)
    if given.min_visits < 1:
        raise UserError(f"--min-visits: must be at least 1 (got {given.min_visits})")
    check_output_folder(given.output, [given.trees, given.model])
    trees = _read(given.trees)
    problems, complete = _trained_on(reward_directory(given.model, given.config, overrides))
    if not complete:
        print(f"{given.model}: {_NOT_KNOWN}", file=sys.stderr)
    seen = [tree for tree in trees if tree.task.problem in problems]
    if seen and not given.seen:
        trees = [tree for tree in trees if tree.task.problem not in problems]
        print(f"{len(seen)} trees are of tasks that were trained on: left out", file=sys.stderr)
        if not trees:
            raise UserError(
                f"{given.trees}: the model was trained on all of these tasks; give --seen, or "
                "trees of other tasks (agentrm eval-rm --help says how to grow some)"
            )
    states = [tree_states(tree, given.min_visits) for tree in trees]
    known = [i for i, own in enumerate(states) if len(own.nodes)]
    if not known:
        raise UserError(f"{given.trees}: no state was visited {given.min_visits} times")
    trees, states = [trees[i] for i in known], [states[i] for i in known]
    model = open_reward_model(given.model, given.config, overrides)
    scores = _scores(model, trees, states)
    found = {
        "model": str(given.model),
        "source": str(given.trees),
        "min_visits": given.min_visits,
        "trained_on": "known" if complete else "not known",
        "seen": len(seen) if given.seen else 0,
        **_found(states, scores),
    }
    with new_folder(given.output) as folder:
        write_json_atomic(folder / "eval_rm.json", found)
        write_text_atomic(folder / "eval_rm.html", _page(found))
    Console(width=None if Console().is_terminal else 120).print(_table(found))
    print(f"report: {given.output / 'eval_rm.html'}")
    return 0


def _read(path: pathlib.Path) -> list[TreeRecord]:
    """The trees of a run, or of its folder of trees.

    Raises:
      UserError: There are none, or they are not as exploration left them.
    """
    folder = path if (path / FILE).exists() else path / "trees"
    if not (folder / FILE).exists():
        raise UserError(f"{path}: no {FILE} here; give a run that has explored, or its trees/")
    found = list(TreeStore.read(folder, finished=stage_ended(folder)).values())
    if not found:
        raise UserError(f"{folder / FILE}: holds no tree")
    return found


def _trained_on(model: pathlib.Path) -> tuple[frozenset[str], bool]:
    """The problems that a model was trained on, and whether these are all of them.

    Of a model of an older version, which lists none, they are those of the trees in its run.
    """
    listed = read_trained_on(model)
    if listed is not None:
        return listed, True
    for run in (model, *model.resolve().parents[:3]):
        if (run / "trees" / FILE).exists():
            finished = stage_ended(run / "trees")
            trees = TreeStore.read(run / "trees", finished=finished).values()
            return frozenset(tree.task.problem for tree in trees), False
    return frozenset(), False


def _scores(
    model: RewardModel, trees: Sequence[TreeRecord], states: Sequence[TreeStates]
) -> np.ndarray:
    """[M] scores of all states, tree after tree."""
    found: list[float] = []
    with progress("eval-rm", len(trees)) as bar:
        for tree, own in zip(trees, states, strict=True):
            every = tree.states()
            scores = model.score([[every[node] for node in own.nodes]])[0]
            for node, score in zip(own.nodes, scores, strict=True):
                check_finite(score, f"tree {tree.task.task_id}, node {node}")
            found += scores
            bar.advance()
    return np.asarray(found)


def _found(states: Sequence[TreeStates], scores: np.ndarray) -> dict[str, Any]:
    pairs = meta_evaluation.sibling_pairs(states)
    others = {
        "random numbers": np.random.default_rng(0).random(len(scores)),
        "depth": np.concatenate([own.depths for own in states]).astype(float),
        "likelihood": np.concatenate([own.likelihoods for own in states]),
    }
    rows = [{"name": "reward model", **meta_evaluation.measured(states, scores, calibrated=True)}]
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


def _page(found: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    from agentrm_jax.evaluate import plots  # matplotlib is slow to import

    plot = Markup(plots.reliability(found["reliability"], found["by_depth"]))
    not_known = _NOT_KNOWN if found["trained_on"] != "known" else ""
    return page(
        "eval_rm.html",
        title=printable(found["model"]),
        found=found,
        measures=MEASURES,
        plot=plot,
        not_known=not_known,
    )


def _table(found: Mapping[str, Any]) -> Table:
    title = (
        f"{found['states']:,} states of {found['trees']:,} trees, {found['pairs']:,} pairs of "
        f"siblings ({found['ties']:,} more are worth the same)"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for name in MEASURES:
        table.add_column(name.replace("_", " "), justify="right")
    for number, row in enumerate(found["rows"]):
        cells = [_cell(row[name]) for name in MEASURES]
        table.add_row(row["name"], *cells, style="dim" if number else "bold")
    return table


def _cell(estimate: Mapping[str, float] | None) -> Text:
    if estimate is None:
        return Text("-")
    return Text("{mean:.2f} [{low:.2f}, {high:.2f}]".format_map(estimate))
