"""The nouns of a product's title, which decide whether two products are of one type.

WebShop has them tagged by spaCy. Nearly all words of a title are names or nouns to it, so words are
taken that do not begin with a digit and are none of a short list. Who wants spaCy's own tags
runs `python -m agentrm_jax.envs.webshop.tagging MODEL FILE` once, with MODEL a spaCy model such as
`en_core_web_sm`, and puts FILE as `webshop/title_nouns.json` into the data directory.
"""

from __future__ import annotations

import re

_WORD = re.compile(
    r"(?:\d[\d.,]*(?=oz|ft|mm|cm|gb|tb|lb|ml\b))?(\||[^\W_](?:[^\W_]|[.'](?=[^\W_]))*)"
)
_FUNCTION_WORDS = (
    "a an the this that these those all any both each every some such no other another for "
    "with of in to on by from as at per into onto over under up out off through without "
    "within upon than about around between before after during against across and or nor but "
    "if while so yet i me my you your he his she her it its we our they their who which what "
    "is are was were be been being can could will would may might must do does did has have "
    "had not very only also just more most well even still too one two three four five six "
    "seven eight nine ten"
)
_DESCRIBING_WORDS = (  # adjectives and verbs that titles use as such
    "full fully made led tattoo compatible large based included includes designed original "
    "resealable pressed make comfortable breathable italian nordic oriental imported shaped "
    "virtual damaged floating hanging reduce removes vegetarian african japanese hawaiian "
    "french"
)
_OTHER_WORDS = frozenset([*_FUNCTION_WORDS.split(), *_DESCRIBING_WORDS.split()])


def title_nouns(title: str) -> tuple[str, ...]:
    """The title's nouns in lower case, in order; one that comes twice is there twice."""
    words = (
        word.removesuffix("'s") for word in _WORD.findall(title.lower().replace("\u2019", "'"))
    )
    return tuple(w for w in words if w and not w[0].isdigit() and w not in _OTHER_WORDS)
