"""Arrays in files: whole, and no flipped bit is read as another number."""

import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.array_files import read_array, write_array


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def test_an_array_comes_back(values, tmp_path):
    write_array(tmp_path / "a.npz", values)
    found = read_array(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_no_flipped_bit_and_no_truncation_is_read_as_sound(values, tmp_path):
    path, refused = tmp_path / "a.npz", 0
    write_array(path, values)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    damaged = [whole[:size] for size in range(0, len(whole), 50)]
    for place in random.integers(0, len(whole), 200):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_array(path), values)
        except UserError:
            refused += 1
    assert refused > 150
