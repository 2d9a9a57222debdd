"""The reward of a purchase: WebShop's formula."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentrm_jax.envs.webshop.catalogue import Goal, Options, Product

# WebShop's names of colours. The first that is found in a value stands for the whole value.
_COLOUR_NAMES = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze "
    "brown burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate "
    "christmas coffee cognac copper coral cranberry cream crystal dark denim eggplant "
    "elephant espresso fuchsia gold granite grape graphite grass gray green grey heather "
    "indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve "
    "merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange "
    "peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver "
    "skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut "
    "wheat white wine yellow"
)
_COLOURS = tuple(_COLOUR_NAMES.split())
_LATIN_1 = dict.fromkeys(range(128, 256))  # WebShop's matcher drops these signs, and only these
_ALIKE = 85


def reward_of(product: Product, chosen: Mapping[str, str], goal: Goal, wanted: Product) -> float:
    """The reward of buying a product with the options chosen.

    Args:
      product: What is bought.
      chosen: The chosen options, value by name.
      goal: What was asked for.
      wanted: The product that the goal was made from.
    """
    hits = (
        _attributes_hit(product, goal.attributes)
        + _options_hit(chosen.values(), goal.options)
        + (product.price <= goal.price_limit)
    )
    asked = len(goal.attributes) + len(goal.options) + 1
    return type_factor(product, wanted) * (hits / asked)


def type_factor(product: Product, wanted: Product) -> float:
    """1 for a product of the same type, down to 0 for one of quite another."""
    if wanted.nouns:
        shared = len(set(product.nouns) & set(wanted.nouns)) / len(wanted.nouns)
    else:
        shared = 0.2
    if shared < 0.1:
        return 0.1 if shared else 0.0
    same = product.query == wanted.query or len(product.categories & wanted.categories) >= 2
    return 1.0 if same or shared > 0.2 else 0.5


def _attributes_hit(product: Product, wanted: Iterable[str]) -> int:
    return sum(
        any(_alike(attribute, each) for attribute in product.attributes)
        or any(each in text for text in product.lower_texts)
        for each in wanted
    )


def _options_hit(chosen: Iterable[str], wanted: Options) -> int:
    asked = wanted.items() if isinstance(wanted, Mapping) else wanted
    named = list(chosen)
    return sum(any(option_hit(value, each) for value in named) for each in asked)


def option_hit(value: str, asked: str | tuple[str, str]) -> bool:
    """Whether a chosen value is what is asked for: a value, or a pair of name and value.

    Of a pair WebShop matches both, and sees a colour only where one of them is its very name.
    """
    return _alike(_colour(value) or value, _colour(asked) or str(asked))


def _colour(text: str | tuple[str, str]) -> str | None:
    return next((colour for colour in _COLOURS if colour in text), None)


def _alike(one: str, other: str) -> bool:
    """Whether the sets of words are nearly the same, or one is part of the other."""
    from rapidfuzz import fuzz, utils

    one, other = (utils.default_process(text.translate(_LATIN_1)) for text in (one, other))
    return round(fuzz.token_set_ratio(one, other)) > _ALIKE
