"""Tiles against the page tables that they are cut from.

That attention over them is softmax over the tokens is in `test_paged_attention`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.engine.attention import tiles
from agentrm_jax.engine.attention.parts import output
from agentrm_jax.engine.cache.pages import PageTable, Pool

G, C, TILE, PAGE = 6, 8, 2, 4


def table() -> PageTable:
    """Sequences of 0 to 8 pages."""
    rng = np.random.default_rng(0)
    used = np.arange(C) < np.asarray([3, 0, 8, 1, 2, 5])[:, None]
    pages = rng.integers(0, 30, (G, C)).astype(np.int32) * used
    return PageTable(pages=pages, fills=rng.integers(1, PAGE + 1, (G, C)).astype(np.int32) * used)


@pytest.mark.parametrize(("divisions", "needed"), [(1, 11), (2, 2 * 6), (3, 3 * 5)])
def test_each_tile_is_there_once_and_its_sequence_has_its_index(divisions, needed):
    given = table()
    assert tiles.num_tiles(given.fills, TILE, divisions) == needed
    found = jax.device_get(tiles.cut_tiles(given, PAGE, TILE, needed, divisions))
    each = G // divisions
    used = 0
    for g in range(G):
        d, own = divmod(g, each)
        indices = found.indices[d].reshape(each, -1)[own]
        for c, index in enumerate(indices):
            at = slice(c * TILE, (c + 1) * TILE)
            if not given.fills[g, at].any():
                assert index == needed // divisions
                continue
            used += 1
            assert found.sequences[d, index] == own
            np.testing.assert_array_equal(found.pages[d, index], given.pages[g, at])
            fills = found.filled[d, index].reshape(TILE, PAGE).sum(axis=1)
            np.testing.assert_array_equal(fills, given.fills[g, at])
    assert found.filled.any(axis=-1).sum() == used == 11


@pytest.mark.parametrize(("together", "least"), [(1, 24), (2, 16), (8, 8)])
def test_more_room_than_needed_changes_nothing(monkeypatch, together, least):
    """To the bit; and however tiles are divided into runs and merged, it is softmax over all."""
    monkeypatch.setattr(tiles, "MERGED_TOGETHER", together)
    monkeypatch.setattr(tiles, "LEAST_RUN", least)
    rng = np.random.default_rng(1)
    k, v = (jnp.asarray(rng.standard_normal((2, 30, PAGE, 16)), jnp.float32) for _ in range(2))
    pool = Pool(k=(k,), v=(v,), page_size=PAGE)
    q = jnp.asarray(rng.standard_normal((2, G, 3, 16)), jnp.float32)

    def read(length: int):
        given = jax.tree.map(jnp.asarray, table())
        attention = tiles.own_tiles(pool, given, TILE, length)
        return jax.device_get(jax.jit(lambda q: attention(0, q))(q))

    found = read(11)
    for x, y in zip(found, read(G * C // TILE), strict=True):
        np.testing.assert_array_equal(x, y)
    given = table()
    keys, values = (
        x[:, given.pages].reshape(2, G, C * PAGE, 16) for x in (np.asarray(k), np.asarray(v))
    )
    seen = (np.arange(PAGE) < given.fills[..., None]).reshape(G, -1)
    scores = np.einsum("kgmh,kgsh->kgms", q, keys) / 4
    weights = np.exp(scores) * seen[:, None]
    total = weights.sum(axis=-1)
    expected = np.einsum("kgms,kgsh->kgmh", weights, values) / np.maximum(total, 1e-30)[..., None]
    np.testing.assert_allclose(output(found), expected, atol=1e-5)
