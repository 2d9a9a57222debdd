"""Ctrl-C while modules are imported, in callbacks, and in libraries that raise something else."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from agentrm_jax.cli import main as command_line
from agentrm_jax.runtime.interrupts import handled_interrupts


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    """Python's own handler: a shell that starts the tests in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Swallows:
    """KeyboardInterrupt in its destructor reaches nobody."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def waits() -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        pass


def in_an_import(folder) -> None:
    (folder / "interrupted_module.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nvalue = 3\n"
    )
    module = importlib.import_module("interrupted_module")
    assert module.value == 3  # the import was not torn
    waits()


def in_a_callback(folder) -> None:
    held = Swallows()
    del held
    waits()


def as_another_error(folder) -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("an extension failed") from None


@pytest.mark.parametrize("moment", [in_an_import, in_a_callback, as_another_error])
def test_an_interrupted_command_says_so(moment, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command_line, "_main", lambda arguments: moment(tmp_path))
    began = time.monotonic()
    assert command_line.main(["run"]) == 130
    assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert said == "agentrm: interrupted; run the same command again to resume\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sys.modules.pop("interrupted_module", None)


def test_elsewhere_an_interrupt_is_raised_at_once() -> None:
    with handled_interrupts() as interrupts:
        assert not interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.asked


def test_a_handler_of_the_caller_stays() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with handled_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]
