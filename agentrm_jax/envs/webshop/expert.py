"""A scripted customer: searches with the words of the task, opens what fits, chooses, buys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agentrm_jax.core.protocols import Demonstration
from agentrm_jax.envs.webshop.catalogue import Catalogue, Goal, Product
from agentrm_jax.envs.webshop.pages import View, following
from agentrm_jax.envs.webshop.reward import option_hit, reward_of

_PRICE = re.compile(r",? and price lower than [\d.]+ dollars$")
_OPTIONS = re.compile(r" with [^:]{1,40}: .*$")
_POLITE = re.compile(
    r"^(?:find me|i(?: a|')?m looking for|i am looking for|i(?: would|'d) like|i need|i want)\b",
    re.IGNORECASE,
)
_TITLE_SHOWN = 80  # characters
_TITLE_WORDS = 8


def demonstration(goal: Goal, catalogue: Catalogue, max_steps: int) -> list[Demonstration] | None:
    """The way to a purchase with the full reward, or None if none was found.

    Of several searches the one is taken that leads there soonest. A listed product is opened
    if the purchase would earn the full reward, be it the one that the goal was made from or not.
    Only where no words of the task lead there, words of the product's title are searched for.
    """
    ways = [_way(query, why, goal, catalogue) for query, why in _queries(goal)]
    best = min(filter(None, ways), key=len, default=None)
    if best is None or len(best) > max_steps:
        title = _words(catalogue.by_asin[goal.asin].title).split()
        why = "I search for words that such a product may have in its title."
        best = _way(" ".join(title[:_TITLE_WORDS]), why, goal, catalogue)
    return best if best is not None and len(best) <= max_steps else None


def _queries(goal: Goal) -> Iterator[tuple[str, str]]:
    """Searches made of the task's own words, and the thoughts that lead to them."""
    asked = _words(_POLITE.sub("", _PRICE.sub("", goal.instruction)))
    yield asked, "I search for what is asked, without the price."
    if isinstance(goal.options, Mapping) and goal.options:
        kind = _words(_OPTIONS.sub("", _POLITE.sub("", _PRICE.sub("", goal.instruction))))
        values = " ".join(_words(value) for value in goal.options.values())
        yield kind, "I search for the kind of product; its options can be chosen later."
        yield f"{kind} {values}", "I search for the kind of product and its options."


def _words(text: str) -> str:
    """The text's words; brackets and commas would only disturb the action."""
    return " ".join(re.sub(r"[\[\],:]", " ", text.lower()).split())


def _way(query: str, why: str, goal: Goal, catalogue: Catalogue) -> list[Demonstration] | None:
    way = [Demonstration(thought=why, action=f"search[{query}]")]
    view = following(View(), "search", query, catalogue) if query else None
    while view is not None and view.listed:
        for number in view.listed:
            product = catalogue.products[number]
            chosen = _choice(product, goal)
            if reward_of(product, chosen, goal, catalogue.by_asin[goal.asin]) == 1.0:
                return [*way, *_purchase(product, chosen)]
        thought = "None of these is all that is asked for. I look at the next page."
        way.append(Demonstration(thought=thought, action="click[Next >]"))
        view = following(view, "click", "next >", catalogue)
    return None


def _choice(product: Product, goal: Goal) -> dict[str, str]:
    """The product's options that are asked for, value by name, in the order of its page."""
    chosen = {}
    for name, values in product.options.items():
        if isinstance(goal.options, Mapping):
            asked = [value for value in values if value == goal.options.get(name)]
        else:
            asked = [v for v in values if any(option_hit(v, each) for each in goal.options)]
        # A value that two options have stands for the later one when it is clicked.
        if asked and product.option_of[asked[0]] == name:
            chosen[name] = asked[0]
    return chosen


def _purchase(product: Product, chosen: Mapping[str, str]) -> Iterator[Demonstration]:
    title = product.title
    if len(title) > _TITLE_SHOWN:
        title = title[:_TITLE_SHOWN].rsplit(" ", 1)[0] + " ..."
    thought = f'"{title}" at {product.price_text} looks like what is asked for. I open it.'
    yield Demonstration(thought=thought, action=f"click[{product.asin}]")
    for name, value in chosen.items():
        thought = f"The {name} has to be {value}. I choose it."
        yield Demonstration(thought=thought, action=f"click[{value}]")
    done = "The options are chosen" if chosen else "There is no option to choose"
    thought = f"{done} and the price is {product.price_text}. I buy it."
    yield Demonstration(thought=thought, action="click[Buy Now]")
