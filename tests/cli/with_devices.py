"""Runs `agentrm` with so many simulated devices.

python with_devices.py N COMMAND ...
"""

from __future__ import annotations

import sys

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    from agentrm_jax.cli.main import main

    sys.exit(main(sys.argv[2:]))
