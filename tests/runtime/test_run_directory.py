"""Files that are whole or absent, stages that are skipped, stopped or resumed."""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import time

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime import json_files, run_directory
from agentrm_jax.runtime.json_files import naming, read_json, write_json_atomic
from agentrm_jax.runtime.progress import LINE_SECONDS, Lines, progress, waiting
from agentrm_jax.runtime.run_directory import Stage, completed


def test_json_round_trip_leaves_no_other_file(tmp_path: pathlib.Path) -> None:
    value = {"a": [1, 2.5, None], "text": "naïve ±"}
    write_json_atomic(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"new": object()})
    assert read_json(path) == {"old": 1}


def test_unreadable_json_names_file_and_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{\n  "a": 1,\n  oops\n}')
    with pytest.raises(UserError, match=r"bad\.json, line 3"):
        read_json(path)
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read_json(tmp_path / "absent.json")


def test_a_finished_stage_is_recognised(tmp_path: pathlib.Path) -> None:
    depends_on = {"sft": {"fit": {"epochs": 3}, "kinds": ("a", "b")}, "seed": 0}
    assert completed(tmp_path, depends_on) is None
    with Stage("sft", tmp_path, depends_on) as stage:
        assert completed(tmp_path, depends_on) is None
        stage.finish({"loss": 0.5})
    assert completed(tmp_path, depends_on) == {"loss": 0.5}
    record = json.loads((tmp_path / "stage.json").read_text())
    assert set(record) == {"stage", "depends_on", "made_with", "seconds", "summary", "sha256"}
    assert record["made_with"] == [run_directory.versions()]
    assert record["stage"] == "sft"
    assert [path.name for path in tmp_path.iterdir()] == ["stage.json"]


@pytest.mark.parametrize("ended", [True, False])
def test_another_configuration_is_refused(tmp_path: pathlib.Path, ended: bool) -> None:
    directory = tmp_path / "run" / "sft"
    with Stage("sft", directory, {"fit": {"epochs": 3, "batch_size": 16}, "seed": 0}) as stage:
        if ended:
            stage.finish({})
    with pytest.raises(UserError) as error:
        completed(directory, {"fit": {"epochs": 3, "batch_size": 32}, "seed": 1})
    message = str(error.value)
    assert "fit.batch_size = 16, but it is now 32" in message
    assert str(directory) in message
    assert "--output" in message
    assert "\n" not in message


def test_a_key_that_appears_or_vanishes_counts_as_different(tmp_path: pathlib.Path) -> None:
    with Stage("x", tmp_path, {"a": 1}) as stage:
        stage.finish({})
    with pytest.raises(UserError, match="b = unset, but it is now 2"):
        completed(tmp_path, {"a": 1, "b": 2})
    with pytest.raises(UserError, match="a = 1, but it is now unset"):
        completed(tmp_path, {})


def test_a_key_that_a_record_lacks_counts_as_left_at_its_default(tmp_path: pathlib.Path) -> None:
    before = {"environments": [{"name": "maze"}, {"name": "pddl"}], "fit": {"epochs": 3}}
    with Stage("x", tmp_path, before) as stage:
        stage.finish({})
    defaults = {"environments.0.train": True, "environments.1.train": True, "fit.names": ("a",)}
    now = {
        "environments": [{"name": "maze", "train": True}, {"name": "pddl", "train": True}],
        "fit": {"epochs": 3, "names": ("a",)},
    }
    assert completed(tmp_path, now, defaults) == {}
    now["environments"][1]["train"] = False
    with pytest.raises(UserError, match=r"environments\.1\.train = true, but it is now false"):
        completed(tmp_path, now, defaults)


def test_a_mistake_before_anything_is_made_leaves_no_record(tmp_path: pathlib.Path) -> None:
    for made, kept in (((), []), (("some.jsonl",), ["seconds.json", "some.jsonl"])):
        with contextlib.suppress(UserError), Stage("x", tmp_path, {"a": 1}):
            for name in made:
                (tmp_path / name).touch()
            raise UserError("a: wrong")
        assert sorted(path.name for path in tmp_path.iterdir()) == kept
    with pytest.raises(UserError, match="a = 1, but it is now 2"):
        completed(tmp_path, {"a": 2})


def test_seconds_add_up_over_interruptions(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(run_directory.time, "monotonic", lambda: now[0])
    with Stage("x", tmp_path, {}):
        now[0] += 7  # ends without `finish`, as by control-C
    killed = Stage("x", tmp_path, {})
    now[0] += 6
    killed.tick()
    now[0] += 1  # lost: the process dies here, without leaving the `with` block
    now[0] += 1000
    with Stage("x", tmp_path, {}) as stage:
        now[0] += 2
        stage.finish({})
    assert read_json(tmp_path / "stage.json")["seconds"] == pytest.approx(7 + 6 + 2)
    assert [row["seconds"] for row in run_directory.stages({"x": tmp_path})] == [15]


def test_a_damaged_stage_record_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "stage.json"
    for text, message in (
        ("[]", "must hold JSON objects"),
        ("3", "must hold JSON objects"),
        ('{"depends_on": [], "seconds": 1, "summary": {}}', "depends_on is missing or has another"),
        ('{"depends_on": {}, "seconds": "1", "summary": {}}', "seconds is missing or has another"),
        ('{"depends_on": {}, "seconds": true, "summary": {}}', "seconds is missing or has another"),
        ('{"depends_on": {}, "seconds": 1}', "summary is missing or has another type"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 100 levels deep"),
        ("9" * 5000, "not JSON .Exceeds the limit"),
        ('{"seconds": NaN}', "NaN is not a finite number"),
        ('{"seconds": 1e999}', "1e999 is not a finite number"),
    ):
        path.write_text(text)
        for read in (
            lambda: completed(tmp_path, {}),
            lambda: list(run_directory.stages({"x": tmp_path})),
        ):
            with pytest.raises(UserError, match=rf"stage\.json: .*{message}") as error:
                read()
            assert str(error.value).isprintable()
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"stage\.json: not JSON .*utf-8"):
        read_json(path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)


@pytest.mark.parametrize("name", ["stage.json", "seconds.json"])
def test_a_record_that_was_changed_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    depends_on = {"rates": (0.1, 1e-20), "name": "\u00e9"}
    with contextlib.suppress(KeyboardInterrupt), Stage("x", tmp_path, depends_on) as stage:
        if name == "seconds.json":
            raise KeyboardInterrupt
        stage.finish({"loss": 0.5, "by_n": {1: 2}})
    path = tmp_path / name
    ended = {"loss": 0.5, "by_n": {"1": 2}} if name == "stage.json" else None
    assert completed(tmp_path, depends_on) == ended
    record = read_json(path)
    write_json_atomic(path, dict(reversed(record.items())))  # the order does not count
    assert completed(tmp_path, depends_on) == ended
    write_json_atomic(path, {**record, "seconds": record["seconds"] + 1})
    with pytest.raises(UserError, match=rf"{name}: differs from its sha256; restore it, or delete"):
        completed(tmp_path, depends_on)
    write_json_atomic(path, {**record, "sha256": None})  # of an earlier version
    assert completed(tmp_path, depends_on) == ended


def test_rows_are_objects_with_keys_of_their_types(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.json"
    assert json_files.read_rows(path, n=int) == []
    for text, message in (
        ("3", "must be a list of JSON objects"),
        ('{"n": 1}', "must be a list of JSON objects"),
        ("[[]]", "must hold JSON objects"),
        ('[{"n": 1}, {}]', "n is missing or has another type"),
        ('[{"n": "1"}]', "n is missing or has another type"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"rows\.json: {message}"):
            json_files.read_rows(path, n=int)
    path.write_text('[{"n": 1}]')
    assert json_files.read_rows(path, n=int) == [{"n": 1}]


def test_a_stage_resumed_elsewhere_records_both(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_with = {"python": "3.11"}
    monkeypatch.setattr(run_directory, "versions", lambda: dict(made_with))
    for version in ("3.11", "3.11", "3.12"):
        made_with["python"] = version
        with Stage("x", tmp_path, {}):
            pass
    with Stage("x", tmp_path, {}) as stage:
        stage.finish({})
    found = read_json(tmp_path / "stage.json")["made_with"]
    assert found == [{"python": "3.11"}, {"python": "3.12"}]


def test_values_that_could_not_be_read_again_are_not_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"x\.json: cannot be written \(.*not JSON compliant"):
        write_json_atomic(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json_atomic(tmp_path / "x.json", {"text": "\ud83d\ude00 \ud83d"})
    assert read_json(tmp_path / "x.json") == {"text": "\U0001f600 \ufffd"}


def test_a_full_disk_names_the_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="No space left") as error, naming(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "x.json")


def test_versions_are_plain_json() -> None:
    found = run_directory.versions()
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["jax"]
    assert found["device_count"] >= 1


def test_lines_come_seldom_and_say_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines("explore", 100, done=20, clock=lambda: now[0])
    for _ in range(20):
        now[0] += LINE_SECONDS / 5
        lines.advance(2, loss=0.51234567)
    lines.close()
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 4
    # After 10 s 10 of the remaining 80 are done: 70 are left at one a second.
    assert shown[0] == "explore: 30/100, 0:10, 1:10 left, loss 0.5123"
    assert shown[-1].startswith("explore: 60/100, 0:40")


def test_the_last_line_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("label", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err.splitlines() == ["label: 2/2, 0:00"]


def test_a_long_step_says_that_it_is_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("compile", seconds=0.01):
        time.sleep(0.1)
    assert "compile: 0:00" in capsys.readouterr().err.splitlines()
    with pytest.raises(ZeroDivisionError), waiting("compile"):
        _ = 1 / 0
    assert capsys.readouterr().err == ""  # it took less than ten seconds
    with waiting("compile", seconds=0.01, shown=False):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_progress_can_be_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTRM_PROGRESS", "0")
    with progress("label", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress("explore", 4) as bar:
        bar.advance(4, loss=0.25)
    shown = capsys.readouterr().err
    assert "explore" in shown
    assert "4/4" in shown
    with waiting("compile"):
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert "compile" in shown
    assert "0:00:00" in shown
