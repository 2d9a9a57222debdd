"""WebShop: buy what is asked for in a shop of pages (paper, held-in environment).

Pages, search, goals and reward are those of WebShop's text mode, in code of our own; the
products come from the files of its repository, in the data directory.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import random
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, canonical_form
from agentrm_jax.envs.task_lists import check_kinds, in_turn
from agentrm_jax.envs.webshop.catalogue import (
    PAPER_FILE,
    Catalogue,
    catalogue_label,
    load_catalogue,
    missing_files,
    paper_numbers,
)
from agentrm_jax.envs.webshop.episode import WebShopEpisode, goal_from_spec, goal_to_spec
from agentrm_jax.envs.webshop.expert import demonstration
from agentrm_jax.envs.webshop.pages import action_key
from agentrm_jax.envs.webshop.prompt import PROMPT

_KINDS = ("beauty", "electronics", "fashion", "garden", "grocery")  # WebShop's categories
_TEST_GOALS = 500  # WebShop's own: goals 0 to 499 of its shuffled list
_MAX_STEPS = 10
_PAPER_NEEDS = (
    "webshop's split 'paper' is ETO's 200 goals of the full catalogue: put items_shuffle.json, "
    f"items_ins_v2.json, items_human_ins.json (WebShop's) and {PAPER_FILE} "
    "(https://github.com/Yifan-Song793/ETO, eval_agent/data/webshop/test_indices.json) into "
    "webshop/ in the data directory"
)


class WebShop:
    """The shop. A kind is the category of the product that is asked for.

    With the small catalogue its 1,000 products and synthetic goals are played; with the full one,
    and the goals that people wrote next to it, those.
    """

    name = "webshop"
    pooled = False

    @property
    def metric(self) -> str:
        return f"reward ({catalogue_label()})"

    def missing(self) -> str | None:
        if importlib.util.find_spec("rapidfuzz") is None:
            return "webshop needs rapidfuzz: pip install 'agentrm-jax[webshop]'"
        return missing_files()

    def counts(self) -> Mapping[Split, int | None]:
        """Raises a `UserError` where something is missing; `paper` only where it is there."""
        splits = _splits(self._catalogue())
        return {split: len(tasks) for split, tasks in splits.items()}

    def kinds(self) -> Sequence[str]:
        return _KINDS

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn, in WebShop's order or, by other seeds, shuffled.

        Raises:
          UserError: For an unknown kind, or where something is missing.
        """
        check_kinds(self.name, _KINDS, kinds)
        splits = _splits(self._catalogue())
        if split not in splits:
            raise UserError(_PAPER_NEEDS)
        tasks = list(splits[split])
        if seed != 0 and split != "paper":
            random.Random(f"webshop/{split}/{seed}").shuffle(tasks)
        streams = [[task for task in tasks if task.kind == kind] for kind in kinds]
        return list(itertools.islice(in_turn(streams), n))

    def prompt(self) -> Prompt:
        return PROMPT

    def action_key(self, action: str) -> str:
        return action_key(action)

    def create(self) -> WebShopEpisode:
        return WebShopEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """A purchase with the full reward; None if WebShop's formula allows none."""
        catalogue = self._catalogue()
        return demonstration(goal_from_spec(task, catalogue), catalogue, task.max_steps)

    def _catalogue(self) -> Catalogue:
        if line := self.missing():
            raise UserError(line)
        return load_catalogue()


@functools.lru_cache(maxsize=2)
def _splits(catalogue: Catalogue) -> dict[Split, tuple[Task, ...]]:
    """All tasks. Of goals that read alike the first is kept, and none of them is in two lists."""
    paper = paper_numbers() if catalogue.full else None
    order: list[tuple[Split, int]] = [("paper", number) for number in paper or ()]
    taken = set(paper or ())
    numbers = range(len(catalogue.goals))
    order.extend(("test", i) for i in numbers[:_TEST_GOALS] if i not in taken)
    order.extend(("train", i) for i in numbers[_TEST_GOALS:] if i not in taken)
    splits: dict[Split, list[Task]] = {"train": [], "test": []}
    if paper is not None:
        splits["paper"] = []
    seen = set()
    for split, number in order:
        task = _task(catalogue, number, split)
        if task.problem not in seen and task.kind in _KINDS:
            seen.add(task.problem)
            splits[split].append(task)
    return {split: tuple(tasks) for split, tasks in splits.items()}


def _task(catalogue: Catalogue, number: int, split: Split) -> Task:
    goal = catalogue.goals[number]
    kind = catalogue.by_asin[goal.asin].category
    return Task(
        environment=WebShop.name,
        task_id=f"{WebShop.name}/{kind}/{len(catalogue.products)}-{number}",
        kind=kind,
        split=split,
        problem=canonical_form(goal.instruction),  # all that the agent reads
        max_steps=_MAX_STEPS,
        spec=goal_to_spec(goal, catalogue),
    )
