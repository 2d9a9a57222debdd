"""Blocks that are freed stay with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from agentrm_jax.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(2**23)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator only")
def test_a_block_of_the_same_size_is_there_again():
    def faults(kept: str) -> int:
        command = [sys.executable, "-c", PROGRAM, kept]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    if not faults("default"):
        pytest.skip("another allocator keeps blocks already")
    assert faults("keep") < faults("default") / 100
