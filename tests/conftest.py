"""Eight simulated devices for all tests, and room for the programs that they compile."""

import os
import pathlib
import tempfile

import jax
import pytest

from agentrm_jax.model.heads import HEADS
from agentrm_jax.pipeline.config import REWARD_KINDS
from agentrm_jax.pipeline.policy_kinds import POLICIES
from agentrm_jax.search.methods import METHODS
from agentrm_jax.search.selection import SELECTION_RULES

# The compiler of the CUDA plugin is used without a driver.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
jax.config.update("jax_num_cpu_devices", 8)

# The tests compile few programs, but often. A process keeps the first cache folder that JAX opens.
# All tests name it here, because the command line would name another one.
_CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "agentrm_jax_test_cache")
)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Every compiled program maps memory, and Linux ends a process with more than 65,530 maps."""


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped():
    """Drops compiled programs between test modules when there are many."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _registrations_are_forgotten():
    """What a module registers, an example of the documentation for one, is not seen by the next."""
    lists = (HEADS, REWARD_KINDS, POLICIES, METHODS, SELECTION_RULES)
    before = [dict(each._registered) for each in lists]
    yield
    for each, registered in zip(lists, before, strict=True):
        each._registered = registered
