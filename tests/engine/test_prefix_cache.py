"""The prefix cache's bookkeeping, and what the engine makes of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_cases import SMALL, request, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.cache.prefix_cache import Node, PrefixCache
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import score
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.model.value import readout
from agentrm_jax.testing.models import CONFIG, SIZES

PAGE, CHUNK = 4, 8


def make_cache(num_pages: int) -> PrefixCache:
    return PrefixCache(num_pages=num_pages, page_size=PAGE, chunk_tokens=CHUNK)


def segment(name: int) -> np.ndarray:
    """A segment that depends on its number: 1 to 11 tokens."""
    return np.full(1 + 5 * name % 11, name, np.int32)


def find(cache: PrefixCache, *segments: np.ndarray) -> Node:
    return cache.find(TokenSequence(segments=segments))


def read_all(cache: PrefixCache, leaves: list[Node]) -> None:
    """What the engine does, without a model."""
    cache.reserve(leaves)
    for node in cache.missing(leaves):  # parents come first
        assert all(before.chunks_read for before in node.path()[:-1])
        node.chunks_read = cache.num_chunks(node)


def test_sequences_with_a_common_prefix_share_nodes():
    cache = make_cache(32)
    a = find(cache, segment(1), segment(2), segment(3))
    b = find(cache, segment(1), segment(2), segment(4))
    assert a.parent is b.parent
    assert find(cache, segment(1), segment(2)) is a.parent
    assert find(cache, segment(1), segment(2), segment(3)) is a
    assert find(cache, segment(2)) is not a.parent  # the same tokens after another prefix
    assert (a.start, a.end) == (6 + 11, 6 + 11 + 5)
    read_all(cache, [a, b])
    assert a.path()[0].pages == b.path()[0].pages != []
    assert not set(a.pages) & set(b.pages)
    with pytest.raises(ValueError, match="at least one segment"):
        find(cache)


def test_the_least_recently_used_is_given_up():
    cache = make_cache(8)
    old, kept, new = (find(cache, np.full(12, i, np.int32)) for i in range(3))
    for leaf in (old, kept, old, kept):
        read_all(cache, [leaf])
    read_all(cache, [new])
    assert old.pages == []
    assert old.chunks_read == 0
    assert kept.pages
    assert new.pages
    assert find(cache, np.full(12, 1, np.int32)) is kept
    assert find(cache, np.full(12, 0, np.int32)) is not old  # nothing was left to remember


def test_a_pool_that_is_too_small_names_what_it_needs():
    cache = make_cache(6)
    read_all(cache, [find(cache, segment(8))])
    path = [segment(1), segment(2), segment(3)]  # 6, 11 and 5 tokens: 2 + 3 + 2 pages
    with pytest.raises(UserError, match=r"engine\.cache_tokens must be at least 28 .* \(got 24\)"):
        cache.reserve([find(cache, *path)])
    read_all(cache, [find(cache, *path[:2])])  # it is as it was


@settings(max_examples=60, deadline=None)
@given(
    num_pages=st.integers(12, 40),
    calls=st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3),
        max_size=25,
    ),
)
def test_pages_belong_to_one_node_each(num_pages, calls):
    """Whatever is asked: no page is lost or held twice, and every path reads back in order."""
    cache = make_cache(num_pages)
    for call in calls:
        leaves = [find(cache, *map(segment, names)) for names in call]
        try:
            read_all(cache, leaves)
        except UserError:
            nodes = {node for leaf in leaves for node in leaf.path()}
            assert sum(-(-len(node.tokens) // PAGE) for node in nodes) > num_pages
            continue
        for node in cache._resident:  # so that a segment whose parent is read can be read
            assert all(before.pages for before in node.path())
        held = [page for node in cache._resident for page in node.pages]
        assert sorted(held + cache._free) == list(range(num_pages))
        for names, leaf in zip(call, leaves, strict=True):
            tokens = np.concatenate(list(map(segment, names)))
            owner = {page: (node, i) for node in leaf.path() for i, page in enumerate(node.pages)}
            for end in range(len(tokens) + 1):
                read = []
                for page, fill in zip(*cache.pages_before(leaf, end), strict=True):
                    assert 0 < fill <= PAGE
                    node, i = owner[page]
                    read.extend(node.tokens[i * PAGE : i * PAGE + fill])
                np.testing.assert_array_equal(read, tokens[:end])


def test_read_again_to_the_bit():
    """Keys, values and scores are the same after their pages were given up."""

    head = {"kernel": np.linspace(-1, 1, CONFIG.d_model, dtype=np.float32), "bias": np.float32(0)}
    engine = Engine(weights(0), CONFIG, SMALL, readout=readout, head=head)
    sequence = request(1, 20, 7, 1)

    def snapshot():
        [value] = score(engine, [sequence])
        pages, fills = engine.cache.pages_before(engine.cache.find(sequence), 28)
        pool = engine.programs.model.pool
        layers = [np.asarray(x)[:, pages] for x in (*pool.k, *pool.v)]
        used = np.arange(SMALL.page_size) < np.asarray(fills)[:, None]
        return value, [layer[:, used] for layer in layers]

    before = snapshot()
    read = engine.usage.read
    for seed in range(2, 12):  # others push it out
        score(engine, [request(seed, 30, 9)])
    assert engine.cache.find(sequence).pages == []
    others = engine.usage.read
    after = snapshot()
    assert engine.usage.read - others == read == 28
    assert after[0] == before[0]
    for old, new in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_crowded_cache_changes_no_score():
    """Sequences of many segments, any of which may have been evicted."""
    head = {"kernel": np.linspace(-1, 1, CONFIG.d_model, dtype=np.float32), "bias": np.float32(0)}
    large, small = (
        Engine(weights(0), CONFIG, sizes, readout=readout, head=head) for sizes in (SIZES, SMALL)
    )
    rng = np.random.default_rng(0)
    stems = [request(seed, *rng.integers(1, 9, size=14)).segments for seed in range(4)]
    for _ in range(40):
        asked = [
            TokenSequence(segments=stems[i][: rng.integers(1, 15)])
            for i in rng.integers(0, 4, size=2)
        ]
        assert score(small, asked) == score(large, asked)
    assert small.usage.read > large.usage.read


def test_more_segments_than_fit_the_tables_is_one_clear_error():
    sizes = dataclasses.replace(SIZES, context=120, max_segments=1)
    engine = Engine(weights(0), CONFIG, sizes)
    with pytest.raises(UserError, match=r"engine\.max_segments"):
        engine.prefill.run([engine.cache.find(request(0, *[1] * 65))])
