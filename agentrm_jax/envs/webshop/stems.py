"""Porter's stemmer with the changes that its author made later, as Lucene has it."""

from __future__ import annotations

import functools
import re

_PAIRS_2 = (
    "ational ate,tional tion,enci ence,anci ance,izer ize,bli ble,alli al,entli ent,eli e,"
    "ousli ous,ization ize,ation ate,ator ate,alism al,iveness ive,fulness ful,ousness ous,"
    "aliti al,iviti ive,biliti ble,logi log"
)
_PAIRS_3 = "icate ic,ative ,alize al,iciti ic,ical ic,ful ,ness "
_ENDS_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"


def _endings(pairs: str) -> tuple[tuple[str, str], ...]:
    """The longest first: it alone is tried."""
    parts = [pair.split(" ") for pair in pairs.split(",")]
    return tuple(sorted(((old, new) for old, new in parts), key=lambda pair: -len(pair[0])))


_STEP_2 = _endings(_PAIRS_2)
_STEP_3 = _endings(_PAIRS_3)
_STEP_4 = _endings(",".join(f"{end} " for end in _ENDS_4.split()))


def _shape(word: str) -> str:
    """The word's letters as c (consonants) and v (vowels)."""
    shape = ""
    for i, letter in enumerate(word):
        vowel = letter in "aeiou" or (letter == "y" and i > 0 and shape[-1] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    """Returns the number of vowels before a consonant: about the number of syllables."""
    return len(re.findall("vc", _shape(word)))


def _short_end(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last not w, x or y: as in `hop`."""
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"


def _replaced(word: str, endings: tuple[tuple[str, str], ...]) -> str:
    for old, new in endings:
        if word.endswith(old):
            return word[: -len(old)] + new if _measure(word[: -len(old)]) > 0 else word
    return word


def _without_plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_ed_ing(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for end in ("ed", "ing"):
        if word.endswith(end) and "v" in _shape(word[: -len(end)]):
            return _mended(word[: -len(end)])
    return word


def _mended(word: str) -> str:
    """Returns the stem of a word without its -ed or -ing: hoping is hope, hopping is hop."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c":
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _short_end(word) else word


def _without_ending(word: str) -> str:
    for old, _ in _STEP_4:
        if word.endswith(old):
            rest = word[: -len(old)]
            allowed = _measure(rest) > 1 and (old != "ion" or rest.endswith(("s", "t")))
            return rest if allowed else word
    return word


def _without_e_and_double_l(word: str) -> str:
    if word.endswith("e"):
        rest = word[:-1]
        if (m := _measure(rest)) > 1 or (m == 1 and not _short_end(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


@functools.lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """The stem of a word in lower case; words of one or two letters are left as they are."""
    if len(word) <= 2:
        return word
    word = _without_ed_ing(_without_plural(word))
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    return _without_e_and_double_l(_without_ending(_replaced(_replaced(word, _STEP_2), _STEP_3)))
