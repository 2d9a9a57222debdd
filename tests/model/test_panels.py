"""Products with panels against products with matrices."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from agentrm_jax.model import llama
from agentrm_jax.model.panels import WIDTH, in_panels


@pytest.mark.parametrize("into", [(24,), (3, 8)])
@pytest.mark.parametrize("out", [(WIDTH,), (3, 50), (7,)])
def test_products_are_equal(out, into):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.standard_normal((*out, *into)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((5, 2, *into)), jnp.float32)
    panels, n = in_panels(matrix, len(into)), len(into)
    assert panels.values.shape == (-(-np.prod(out) // WIDTH), 24, WIDTH)
    np.testing.assert_allclose(
        llama.project(panels, x, shared=n), llama.project(matrix, x, shared=n),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
