"""The pages of the shop: what they show, what can be clicked on them, where a click leads."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from agentrm_jax.envs.webshop.catalogue import Catalogue, Product

Kind = Literal["start", "results", "item", "description", "features", "reviews"]
_PARTS: tuple[Kind, ...] = ("description", "features", "reviews")  # of an item
_ON_A_PAGE = 10
BUY = "buy now"
DONE = "Thank you for shopping with us!"
_BLANK = re.compile(r"[ \n\t\f\r]+")  # what HTML counts as blank


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The page that a customer sees. Nothing in it is ever changed.

    Attributes:
      kind: The page's kind.
      found: Numbers of the products of the latest search.
      page: Which ten of them are or were looked at, from 1.
      product: The one that is looked at.
      chosen: Its options chosen so far, value by name.
    """

    kind: Kind = "start"
    found: tuple[int, ...] = ()
    page: int = 1
    product: Product | None = None
    chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def listed(self) -> tuple[int, ...]:
        return self.found[(self.page - 1) * _ON_A_PAGE : self.page * _ON_A_PAGE]


def parse(action: str) -> tuple[str, str] | None:
    """`search` or `click` and what stands in the brackets, in lower case; None for other texts."""
    line = action.partition("\n")[0]
    end = line.rfind("]")
    begin = line.rfind("[", 0, max(0, end - 1))  # at least one character in the brackets
    if begin < 0 or line[:begin] not in ("search", "click"):
        return None
    return line[:begin], line[begin + 1 : end].lower()


def action_key(action: str) -> str:
    """Returns an action as the shop reads it: the verb exactly, what stands in the brackets in
    lower case, the blanks between words of a search folded."""
    parsed = parse(action.strip())
    if parsed is None:
        return action.strip()
    verb, words = parsed
    if verb == "search":
        words = " ".join(words.split()) or words  # `search[ ]` is a search, `search[]` is none
    return f"{verb}[{words}]"


def clickable(view: View, catalogue: Catalogue) -> list[str]:
    """All that can be clicked, in lower case."""
    if view.kind == "start":
        return []
    if view.kind == "results":
        back = ["< prev"] if view.page > 1 else []
        asins = [catalogue.products[number].asin.lower() for number in view.listed]
        return ["back to search", *back, "next >", *asins]
    if view.kind == "item":
        assert view.product is not None
        return ["back to search", "< prev", *_PARTS, BUY, *view.product.option_of]
    return ["back to search", "< prev"]


def following(view: View, verb: str, words: str, catalogue: Catalogue) -> View | None:
    """The view after an action other than a purchase; None if it is not possible."""
    if verb == "search":
        return View(kind="results", found=catalogue.search(words))
    if words not in clickable(view, catalogue):
        return None
    if words == "back to search":
        return View()
    if view.kind == "results":
        if words in ("next >", "< prev"):
            turned = 1 if words == "next >" else -1
            return dataclasses.replace(view, page=view.page + turned)
        product = catalogue.by_asin[words.upper()]
        return dataclasses.replace(view, kind="item", product=product)
    if words == "< prev":
        if view.kind == "item":
            return View(kind="results", found=view.found, page=view.page)
        return dataclasses.replace(view, kind="item")
    for part in _PARTS:
        if words == part:
            return dataclasses.replace(view, kind=part)
    assert view.product is not None
    chosen = {**view.chosen, view.product.option_of[words]: words}
    return dataclasses.replace(view, chosen=chosen)


def text_of(view: View, instruction: str, catalogue: Catalogue) -> str:
    """The page as WebShop's text mode shows it: its texts in order, parted by [SEP]."""
    asked = _joined(["Instruction:", *_shown(instruction)])
    if view.kind == "start":
        return _joined(["WebShop", asked, "Search"])
    if view.kind == "results":
        back = ["< Prev"] if view.page > 1 else []
        counted = f"Page {view.page} (Total results: {len(view.found)})"
        lines = [_line(catalogue.products[number]) for number in view.listed]
        return _joined([asked, "Back to Search", counted, *back, "Next >", *lines])
    assert view.product is not None
    pages = {
        "item": _item,
        "description": _description,
        "features": _features,
        "reviews": _reviews,
    }
    return _joined([asked, "Back to Search", "< Prev", *pages[view.kind](view.product)])


@functools.lru_cache(maxsize=4096)
def _line(product: Product) -> str:
    """A product in a list of results."""
    return _joined([*_shown(product.asin), *_shown(product.title), *_shown(product.price_text)])


@functools.lru_cache(maxsize=4096)
def _item(product: Product) -> tuple[str, ...]:
    parts = []
    for name, values in product.options.items():
        parts += _shown(name)
        for value in values:
            parts += _shown(value)
    parts += _shown(product.title)
    parts += [f"Price: {product.price_text}".strip(), f"Rating: {product.rating}".strip()]
    return (*parts, "Description", "Features", "Reviews", "Buy Now")


def _description(product: Product) -> Iterable[str]:
    return _shown(product.description)


def _features(product: Product) -> Iterable[str]:
    return [part for bullet in product.bullets for part in _shown(" " + bullet)]


def _reviews(product: Product) -> Iterable[str]:
    for review in product.reviews:
        yield f'"{review["title"]}"'
        yield from _shown(str(review["score"]))
        yield from _shown(str(review["body"]))


def _shown(text: str) -> list[str]:
    """A text as it comes through HTML: a blank one is seen unless it has a line break."""
    if not text or (_BLANK.fullmatch(text) and "\n" in text):
        return []
    return [text.strip()]


def _joined(parts: Iterable[str]) -> str:
    return " [SEP] ".join(parts)
