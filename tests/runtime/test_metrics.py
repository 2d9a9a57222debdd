import json

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.metrics import MetricWriter, read_metrics


def test_a_resumed_stage_replaces_its_rows_for_the_reader(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = MetricWriter(path, "sft")
    for update in (10, 20, 30):
        writer.write(update, {"loss": float(update)})
    MetricWriter(path, "reward").write(10, {"loss": 0.5})
    resumed = MetricWriter(path, "sft")
    resumed.write(30, {"loss": 3.0})
    resumed.write(40, {"loss": 4.0})
    assert len(path.read_text().splitlines()) == 6  # appended, nothing rewritten
    rows = read_metrics(path)
    assert [(row["stage"], row["update"], row["loss"]) for row in rows] == [
        ("sft", 10, 10.0),
        ("sft", 20, 20.0),
        ("sft", 30, 3.0),
        ("sft", 40, 4.0),
        ("reward", 10, 0.5),
    ]
    assert all(row["seconds"] >= 0 for row in rows)


def test_a_stage_begun_anew_leaves_nothing_of_the_old_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = MetricWriter(path, "sft")
    for update in (10, 20, 30):
        old.write(update, {"loss": 1.0})
    new = MetricWriter(path, "sft")
    for update in (10, 20):
        new.write(update, {"loss": 2.0})
    assert [(row["update"], row["loss"]) for row in read_metrics(path)] == [(10, 2.0), (20, 2.0)]


def test_every_cut_of_the_last_line_is_survived(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for update in (1, 2):
        MetricWriter(path, "sft").write(update, {"loss": 1.0})
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [row["update"] for row in read_metrics(path)] == [1]
        MetricWriter(path, "sft").write(3, {"loss": 2.0})
        assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path, "sft")
    writer.write(1, {"loss": 1.0})
    with path.open("a") as file:
        file.write("no row\n")
    writer.write(2, {"loss": 1.0})
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        b"[1]", b"3", b"null", b'{"stage": 1, "update": 1, "seconds": 0}',
        b'{"stage": "sft", "update": "1", "seconds": 0}', b'{"stage": "sft", "update": 1}',
        b'{"stage": "sft", "update": 1, "seconds": 0, "loss": []}', b"\xff", b"[" * 100_000,
        b'{"stage": "sft", "update": 1, "seconds": 0, "loss": NaN}', b"9" * 5000,
    ],
    ids=range(11),
)  # fmt: skip
def test_valid_json_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path, "sft")
    writer.write(1, {"loss": 1.0})
    path.write_bytes(path.read_bytes() + line + b"\n")
    for read in (lambda: read_metrics(path), lambda: MetricWriter(path, "sft")):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a row of metrics"):
            read()


def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("a diary\nwithout a last end of line")
    with pytest.raises(UserError, match=r"line 1: not a row of metrics"):
        MetricWriter(path, "sft")
    assert path.read_text() == "a diary\nwithout a last end of line"
