"""The front door: fast to import, and without JAX until a name needs it."""

import subprocess
import sys

import pytest

import agentrm_jax as arm


def test_importing_the_package_imports_no_jax():
    program = (
        "import sys, time; began = time.monotonic(); import agentrm_jax as arm; "
        "seconds = time.monotonic() - began; arm.Task, arm.EnvPool, arm.FunctionPolicy; "
        "print(seconds < 0.3, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr


@pytest.mark.parametrize("name", arm.__all__)
def test_every_public_name_is_there(name):
    assert getattr(arm, name).__name__ == name
    assert name in dir(arm)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'best_of_m'"):
        arm.best_of_m  # noqa: B018
