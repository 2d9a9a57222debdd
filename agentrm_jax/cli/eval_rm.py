"""`agentrm eval-rm TREES`: a reward model next to the values of search trees."""

from __future__ import annotations

import argparse
import pathlib
import sys

from rich.console import Console

from agentrm_jax.cli.commands import add_model_arguments
from agentrm_jax.cli.parser import Parser, choice, whole_number
from agentrm_jax.runtime.run_paths import POLICY_MODEL

_DESCRIPTION = f"""\
Scores every visited state of search trees and compares the scores with the states' values, the mean
returns that were backed up through them. No environment is needed. Writes eval_rm.html (a page
with plots) and eval_rm.json, and prints:

  pairwise accuracy  how often the better of two siblings (states that follow the same state)
                     has the higher score; siblings of equal value are left out, equal
                     scores count half
  over likelihood    the accuracy minus that of the policy's likelihood of the step
  pearson, spearman  correlation of score and value, and of their ranks
  calibration error  mean distance of mean score and mean value in ten bins
  squared error      the mean of (score - value) squared

each with a 95% interval over trees, and the same for other scores: random numbers, the depth, the
policy's likelihood of the step, and the fewest invalid actions. Trees of tasks that the model was
trained on are left out (they say little), unless --seen is given. The model's trained_on.json lists
these tasks; for a model without it they are not known, and the console, the page and eval_rm.json
say so.
Grow other trees with, for example,

  agentrm explore CONFIG --output OTHER --policy=RUN/{POLICY_MODEL} --train_policy=false --seed=1"""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    add = parser.add_argument
    add("trees", metavar="TREES", type=pathlib.Path, help="a run, or its trees/")
    add_model_arguments(parser)
    add("--output", metavar="DIR", type=pathlib.Path, required=True, help="folder to write")
    visits = whole_number(1, 2**31 - 1)
    visits_help = "visits that a state needs to be compared (default: 1)"
    add("--min-visits", metavar="N", type=visits, default=1, help=visits_help)
    add(
        "--score-at",
        **choice("observation", "action"),
        default="observation",
        help="score states after the observation, or after the action, before the environment has "
        "answered (default: observation)",
    )
    add("--seen", action="store_true", help="compare tasks that were trained on as well")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.evaluate_reward_model import (
        PAGE,
        Compared,
        evaluate_reward_model,
        figures_table,
    )

    figures = evaluate_reward_model(
        given.trees,
        given.model,
        given.output,
        config=given.config,
        overrides=given.overrides,
        compared=Compared(
            min_visits=given.min_visits, include_seen=given.seen, score_at=given.score_at
        ),
        on_note=lambda note: print(note, file=sys.stderr),
    )
    Console(width=None if Console().is_terminal else 120).print(figures_table(figures))
    print(f"report: {given.output / PAGE}")
    return 0
