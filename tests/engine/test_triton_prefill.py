"""The kernel of prefill for NVIDIA GPUs against plain softmax; it is interpreted here."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.engine.attention import triton_prefill
from agentrm_jax.engine.cache.pages import Context, PageTable, Pool
from agentrm_jax.engine.rows import PrefillRows
from agentrm_jax.model.attention import Backend
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG

K, N, H, PAGE, T = 2, 4, 16, 8, 80
SHAPE = dataclasses.replace(CONFIG, num_heads=N, num_kv_heads=K, head_dim=H)
LENGTHS = (80, 1, 0, 33)  # of two rows for each of two sequences


def drawn(mesh=None):
    """A pool of one layer, rows after shared prefixes and own pages, and q, k, v of all tokens."""
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.standard_normal((K, 12, PAGE, H)), jnp.float32) for _ in range(2))
    backend = Backend(name="triton", interpret=True, mesh=mesh)
    pool = Pool(k=(k,), v=(v,), page_size=PAGE, backend=backend)

    def table(pages, fills):
        return PageTable(pages=np.asarray(pages, np.int32), fills=np.asarray(fills, np.int32))

    context = Context(
        # Two prefixes of two pages and of one; the second sequence has none.
        shared=table([[3, 4, 0, 5]], [[8, 6, 0, 7]]),
        shared_ids=np.asarray([2, 2, -1, 7], np.int32),
        prefix_ids=np.asarray([7, -1], np.int32),
        own=table([[6, 7, 8], [9, 0, 0]], [[8, 8, 2], [5, 0, 0]]),
    )
    rows = PrefillRows(
        tokens=np.zeros((4, T), np.int32),
        lengths=np.asarray(LENGTHS, np.int32),
        starts=np.asarray([25, 5], np.int32),
        context=context,
        pages=np.zeros((4, T // PAGE), np.int32),
    )
    new = [rng.standard_normal((4, T, heads, H)).astype(np.float32) for heads in (N, K, K)]
    return pool, rows, new


def plainly(pool, rows, new, r, query):
    """The output [N, H] of a query: the one with this index in row r."""
    g = r // 2
    k, v = (np.float64(x[0]) for x in (pool.k, pool.v))
    chosen = []
    context = rows.context
    for column, page in enumerate(context.shared.pages[0]):
        if context.shared_ids[column] == context.prefix_ids[g]:
            chosen += [(page, s) for s in range(context.shared.fills[0][column])]
    for page, fill in zip(context.own.pages[g], context.own.fills[g], strict=True):
        chosen += [(page, s) for s in range(fill)]
    out = []
    for n in range(N):
        own = n // (N // K)
        keys = [k[own][at] for at in chosen] + list(np.float64(new[1][r, : query + 1, own]))
        values = [v[own][at] for at in chosen] + list(np.float64(new[2][r, : query + 1, own]))
        weights = np.exp(np.asarray(keys) @ np.float64(new[0][r, query, n]) / np.sqrt(H))
        out.append(weights @ np.asarray(values) / weights.sum())
    return np.stack(out)


@pytest.mark.parametrize("sizes", [None, (2, 1, 2)])
def test_outputs_equal_plain_attention(sizes):
    """Also with a device for each half of the sequences and of the heads."""
    if sizes is not None and len(jax.devices()) < 4:
        pytest.skip("needs 4 simulated devices")
    mesh = sizes and make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    pool, rows, new = drawn(mesh)
    every = jnp.broadcast_to(jnp.arange(T), (4, T))
    last = jnp.maximum(jnp.asarray(rows.lengths) - 1, 0)[:, None]
    q, k, v = map(jnp.asarray, new)
    read = [triton_prefill.attention(SHAPE, pool, rows, queries) for queries in (every, last)]
    whole = np.asarray(jax.jit(lambda *new: read[0](0, *new))(q, k, v))
    ends = np.asarray(read[1](0, jnp.take_along_axis(q, last[..., None, None], axis=1), k, v))
    for r, length in enumerate(LENGTHS):
        for query in range(length):
            wanted = plainly(pool, rows, new, r, query)
            np.testing.assert_allclose(whole[r, query], wanted, atol=3e-6)
            if query == length - 1:
                np.testing.assert_allclose(ends[r, 0], wanted, atol=3e-6)
    assert np.isfinite(whole).all()
