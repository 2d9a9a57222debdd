"""Eight simulated devices for all tests, and room for the programs that they compile."""

import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Every compiled program maps memory, and Linux ends a process with more than 65,530 maps."""


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped():
    """Drops compiled programs between test modules when there are many."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()
