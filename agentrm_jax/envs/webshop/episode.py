"""One customer in the shop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.webshop.catalogue import Catalogue, Goal, load_catalogue
from agentrm_jax.envs.webshop.pages import BUY, DONE, View, clickable, following, parse, text_of
from agentrm_jax.envs.webshop.reward import reward_of


def goal_to_spec(goal: Goal, catalogue: Catalogue) -> dict[str, Any]:
    """The goal as JSON values, with the size of the catalogue that it is to be played in."""
    options = goal.options
    return {
        "products": len(catalogue.products),
        "asin": goal.asin,
        "instruction": goal.instruction,
        "attributes": list(goal.attributes),
        "options": dict(options) if isinstance(options, Mapping) else list(options),
        "price_limit": goal.price_limit,
    }


def goal_from_spec(task: Task, catalogue: Catalogue) -> Goal:
    """The goal of a task.

    Raises:
      UserError: The task belongs to another catalogue.
    """
    spec = task.spec
    if spec["products"] != len(catalogue.products) or spec["asin"] not in catalogue.by_asin:
        raise UserError(
            f"{task.task_id}: made with a WebShop catalogue of {spec['products']} products, but "
            f"the data directory holds one of {len(catalogue.products)}"
        )
    options = spec["options"]
    return Goal(
        asin=spec["asin"],
        instruction=spec["instruction"],
        attributes=tuple(spec["attributes"]),
        options=options if isinstance(options, Mapping) else tuple(options),
        price_limit=spec["price_limit"],
    )


class WebShopEpisode:
    """One episode. A purchase ends it and is paid by WebShop's formula; all else pays nothing."""

    _catalogue: Catalogue
    _goal: Goal
    _view: View
    _steps_left: int

    def reset(self, task: Task) -> str:
        self._catalogue = load_catalogue()
        self._goal = goal_from_spec(task, self._catalogue)
        self._view = View()
        self._steps_left = task.max_steps
        return self._text()

    def step(self, action: str) -> Transition:
        self._steps_left -= 1
        catalogue, view = self._catalogue, self._view
        parsed = parse(action.strip())
        if parsed == ("click", BUY) and BUY in clickable(view, catalogue):
            return self._bought()
        following_view = following(view, *parsed, catalogue) if parsed else None
        if following_view is not None:
            self._view = following_view
        return Transition(
            observation=self._text(),
            reward=0.0,
            done=self._steps_left <= 0,
            success=False,
            valid=following_view is not None,
        )

    def fork(self) -> WebShopEpisode:
        return copy.copy(self)  # nothing that it holds is ever changed

    def _text(self) -> str:
        return text_of(self._view, self._goal.instruction, self._catalogue)

    def _bought(self) -> Transition:
        product = self._view.product
        assert product is not None
        wanted = self._catalogue.by_asin[self._goal.asin]
        reward = reward_of(product, self._view.chosen, self._goal, wanted)
        return Transition(observation=DONE, reward=reward, done=True, success=reward == 1.0)
