"""Search over product texts as Lucene does it for WebShop: English words, stems, BM25.

The analysis is that of Anserini's default for English (Unicode word boundaries, no possessive 's,
lower case, Lucene's stop words, Porter stems); the score is Lucene's BM25 with k1 = 0.9, b = 0.4,
where a document's length is known to a few bits only.
"""

from __future__ import annotations

import collections
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from agentrm_jax.envs.webshop.stems import stem

_K1, _B = 0.9, 0.4
_STOP_WORDS_TEXT = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
# Letters and digits hold together; between two letters or two digits some marks do not part them.
# Ideographs, hiragana and pictures (❤, ★, ™) are words of one sign.
_SINGLE = (
    "\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u23cf\u23e9-\u23f3"
    "\u23f8-\u23fa\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705"
    "\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757"
    "\u2763-\u2767\u2795-\u2797\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
    "\U0001f000-\U0001faff"
)
_WORD = re.compile(
    rf"[{_SINGLE}]|"
    rf"[^\W{_SINGLE}]+"
    r"(?:(?:(?<=[^\W\d_])[.:\uff1a\u00b7'\u2018\u2019](?=[^\W\d_])|(?<=\d)[.,;'\u2018\u2019\u2044](?=\d))"
    rf"[^\W{_SINGLE}]+)*"
)
_NO_POSSESSIVE = re.compile(r"['\u2019\uff07][sS]$")


class _Cleaned(dict[int, int | None]):
    """For `str.translate`: marks that belong to the letter before them are dropped; numbers that
    are no digits, such as ² and ½, part words."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        kept = {"Mn": None, "Me": None, "Mc": None, "Cf": None, "No": 32}.get(category, code)
        self[code] = kept
        return kept


_CLEANED = _Cleaned()


def stems(text: str) -> list[str]:
    """The stems of a text's words in order, without stop words."""
    words = _WORD.findall(text.translate(_CLEANED))
    bare = (_NO_POSSESSIVE.sub("", word).lower() for word in words if word.strip("_"))
    return [stem(word) for word in bare if word not in _STOP_WORDS]


class SearchIndex:
    """Documents by their numbers; never changed, so any number of episodes may share it."""

    def __init__(self, names: Sequence[str], texts: Iterable[str]) -> None:
        """Reads all documents.

        Args:
          names: The documents' names; of equal scores the first name comes first.
          texts: Their texts, in the same order.
        """
        lengths, occurrences = (
            [],
            collections.defaultdict[str, tuple[list[int], list[int]]](lambda: ([], [])),
        )
        for number, text in enumerate(texts):
            found = stems(text)
            lengths.append(len(found))
            for word, count in collections.Counter(found).items():
                numbers, counts = occurrences[word]
                numbers.append(number)
                counts.append(count)
        self._place = np.empty(len(names), np.int64)
        self._place[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        self._postings = _weighted(lengths, occurrences)

    def search(self, query: str, n: int) -> tuple[int, ...]:
        """The numbers of the best documents, at most n, best first."""
        scores = np.zeros(len(self._place))
        for word, times in collections.Counter(stems(query)).items():
            if word in self._postings:
                numbers, weights = self._postings[word]
                scores[numbers] += weights if times == 1 else weights * times
        scores = scores.astype(np.float32)
        found = np.flatnonzero(scores)
        if len(found) > n:
            last = np.partition(scores[found], len(found) - n)[len(found) - n]
            found = found[scores[found] >= last]
        order = np.lexsort((self._place[found], -scores[found]))[:n]
        return tuple(found[order].tolist())


def _weighted(
    lengths: Sequence[int], occurrences: dict[str, tuple[list[int], list[int]]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each word the documents that hold it and what it adds to their scores.

    In 32 bits and in Lucene's order of operations: of nearly equal scores the same is higher.
    """
    one, total = np.float32(1), len(lengths)
    mean = np.float32(sum(lengths) / max(total, 1))
    known = np.array([_rough(length) for length in lengths], np.float32)
    k1, b = np.float32(_K1), np.float32(_B)
    inverse = one / (k1 * ((one - b) + b * known / mean))
    postings = {}
    for word, (numbers, counts) in occurrences.items():
        rarity = math.log(1 + (total - len(numbers) + 0.5) / (len(numbers) + 0.5))
        weight = np.float32(rarity)
        documents = np.array(numbers, np.int32)
        frequency = np.array(counts, np.float32)
        postings[word] = documents, weight - weight / (one + frequency * inverse[documents])
    return postings


def _rough(length: int) -> int:
    """Returns a length as Lucene stores it: exact to 40, else four significant bits of the rest."""
    above = length - 24
    if above < 16:
        return length
    shift = above.bit_length() - 4
    return 24 + (above >> shift << shift)
