"""The cache of texts: equal to the function, and bounded by the size of what it keeps."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from agentrm_jax.data.sized_cache import SizedCache


def test_it_is_the_function_and_makes_what_was_used_lately_once():
    made: list[str] = []

    def make(text: str, number: int) -> str:
        made.append(text)
        return f"{text} {number}"

    cache = SizedCache(make, most=10 * (64 + 5))
    rng = random.Random(0)
    for _ in range(500):
        text = f"{rng.randrange(20):05}"
        assert cache(text, 3) == f"{text} 3"
        count = len(made)
        assert cache(text, 3) == f"{text} 3"
        assert len(made) == count
        assert len(cache) <= 10
    assert len(made) > 100
    assert cache("a", 1) != cache("a", 2)
    cache.clear()
    assert (len(cache), cache._size) == (0, 0)


def test_one_large_text_is_not_kept():
    cache = SizedCache(len, most=1000)
    assert cache("a") == 1
    assert cache("x" * 10_000) == 10_000
    assert len(cache) == 0
    assert cache("a") == 1
    assert len(cache) == 1


def test_threads_get_the_same_values():
    cache = SizedCache(lambda text: text * 2, most=2000)
    texts = [str(i % 40) for i in range(4000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cache, texts)) == [text * 2 for text in texts]
    assert cache._size == sum(64 + len(key[0]) for key in cache._values) <= 2000
