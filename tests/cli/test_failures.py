"""Whatever a command raises, and whatever its surroundings: one line, the traceback in a file."""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from agentrm_jax.cli import main as cli
from agentrm_jax.core.errors import Stopped, UserError
from agentrm_jax.runtime.compilation_cache import cache_folder


class JaxRuntimeError(RuntimeError):
    """As jax.errors.JaxRuntimeError is called."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("cannot be shown")


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")
NAMED = OSError(errno.ENOSPC, "No space left on device", "/data/x")
ORBAX = ValueError('RESOURCE_EXHAUSTED: Failed writing: "/a/b": to file 3: No space left on device')


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """The exit status and the lines of a command that raises something."""

    def run(error: BaseException, *arguments: str) -> tuple[int, list[str]]:
        def work(_: object) -> int:
            raise error

        monkeypatch.setattr(cli, "_main", work)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        status = cli.main(["run", *arguments])
        return status, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("seed must be at least 0"), 2, "agentrm: error: seed must be at least 0"),
        (UserError("bad \x1b[31mname\nx"), 2, "agentrm: error: bad \\x1b[31mname\\nx"),
        (KeyboardInterrupt(), 130, "agentrm: interrupted; run the same command again to resume"),
        (Stopped("stopped"), 0, "agentrm: stopped; run the same command again to resume"),
        (FileNotFoundError(2, "No such file", "/x/y"), 2, "agentrm: error: /x/y: No such file"),
        (NAMED, 2, "agentrm: error: /data/x: no space left on the disk; free some, then"),
        (FULL, 2, "agentrm: error: output: no space left on the disk; free some, then"),
        (ORBAX, 2, "agentrm: error: /a/b: no space left on the disk; free some, then"),
        (chained(RuntimeError("save failed"), NAMED), 2, "agentrm: error: /data/x: no space left"),
        (ExceptionGroup("threads", [ORBAX]), 2, "agentrm: error: /a/b: no space left"),
        (ValueError("first\nsecond"), 1, "agentrm: error: ValueError: first; the traceback is in "),
        (RecursionError("too deep"), 1, "agentrm: error: RecursionError: too deep; the traceback"),
        (KeyError("x"), 1, "agentrm: error: KeyError: 'x'; the traceback is in "),
        (Speechless(), 1, "agentrm: error: Speechless: no message; the traceback is in "),
        (AssertionError(), 1, "agentrm: error: AssertionError: no message; the traceback is in "),
        (ValueError("\ud83d\x1b"), 1, "agentrm: error: ValueError: \ufffd\\x1b; the traceback"),
        (BrokenPipeError(32, "Broken pipe"), 1, "agentrm: error: BrokenPipeError: [Errno 32]"),
        (OSError("no number"), 1, "agentrm: error: OSError: no number; the traceback is in "),
        (MemoryError(), 1, "agentrm: error: out of memory; smaller sizes need less (engine.cache"),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n more"),
            1,
            "agentrm: error: out of memory; smaller sizes need less (engine.cache_tokens, ",
        ),
        (JaxRuntimeError("INTERNAL: x\ny"), 1, "agentrm: error: JaxRuntimeError: INTERNAL: x; the"),
    ],
    ids=range(21),
)
def test_every_error_is_one_line(fails, error: BaseException, status: int, line: str) -> None:
    found, lines = fails(error)
    assert found == status
    assert len(lines) == 1
    assert lines[0].startswith(line)


@pytest.mark.parametrize("is_run", [True, False])
def test_the_traceback_is_in_the_run_or_in_a_temporary_file(fails, tmp_path, is_run: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if is_run:
        (run / "config.resolved.yaml").touch()
    for arguments in (("--output", str(run)), (f"--output={run}",)):
        _, lines = fails(ZeroDivisionError("x"), *arguments)
        path = pathlib.Path(re.search(r"the traceback is in (\S+); --debug shows it$", lines[0])[1])
        assert path.parent == (run / "errors" if is_run else tmp_path)
        text = path.read_text()
        assert text.startswith("Traceback (most recent call last):")
        assert text.endswith("ZeroDivisionError: x\n")
    assert (run / "errors").exists() == is_run


def test_a_traceback_that_cannot_be_written_takes_no_error_away(fails, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert fails(KeyError("x")) == (
        1, ["agentrm: error: KeyError: 'x'; --debug shows the traceback"],
    )  # fmt: skip


@pytest.mark.parametrize("at", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(fails, at: int) -> None:
    arguments = ["--output", "x"]
    arguments.insert(at, "--debug")
    for error in (ValueError("why"), UserError("why")):
        status, lines = fails(error, *arguments)
        assert status == (2 if isinstance(error, UserError) else 1)
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1].startswith("agentrm: error: ")


def test_threads_and_libraries_are_quiet_when_the_command_fails(
    monkeypatch, capsys, tmp_path
) -> None:
    def noisy() -> None:
        def work() -> None:
            raise ValueError("of a thread")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        try:
            work()
        except ValueError:
            logging.getLogger("absl").exception("of a library")

    def failing(_: object) -> int:
        noisy()
        raise KeyError("x")

    def ending(_: object) -> int:
        noisy()
        return 0

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "_main", failing)
    hook = threading.excepthook
    assert cli.main([]) == 1
    assert threading.excepthook is hook
    assert len(capsys.readouterr().err.splitlines()) == 1
    text = next(tmp_path.glob("agentrm-error-*")).read_text()
    assert text.count("ValueError: of a thread") == 2
    assert "ERROR:absl:of a library" in text

    monkeypatch.setattr(cli, "_main", ending)
    assert cli.main([]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(r"agentrm: warning: <Thread.*ValueError: of a thread$", lines[0])
    assert lines[1] == "agentrm: warning: ERROR:absl:of a library"


HELP = ("-m", "agentrm_jax.cli.main", "--help")


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line in which PROGRAM is `agentrm --help`."""
    program = " ".join([sys.executable, *HELP])
    given = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("PROGRAM", program)],
        env=given | variables, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [
        ("PROGRAM | true", 141, ""),
        ("PROGRAM > /dev/full", 2, "agentrm: error: standard output: no space left on the disk"),
        ("PROGRAM <&- >&- 2>&-", 0, ""),
        ("PROGRAM <&-", 0, ""),
        ("PROGRAM >&-", 0, ""),
    ],
)
def test_closed_and_full_streams(command: str, status: int, error: str) -> None:
    if "full" in command and not pathlib.Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = shell(command)
    assert done.returncode == status
    assert done.stderr.startswith(error)
    assert len(done.stderr.splitlines()) == bool(error)


def test_what_the_terminal_cannot_show_is_escaped(tmp_path) -> None:
    path = tmp_path / "ü.yaml"
    done = shell(
        f"PROGRAM | true; {sys.executable} -m agentrm_jax.cli.main run '{path}' --output x",
        LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"agentrm: error: \S*[^ -~]?\S*\.yaml: no such file\n", done.stderr)
    assert done.stderr.isascii()


def test_without_a_home_nothing_is_kept_between_runs(monkeypatch, tmp_path) -> None:
    def nobody(*_: object) -> pathlib.Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", nobody)
    assert cache_folder() is None
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "agentrm_jax" / "xla"
