"""Records of leased tasks joined into one file: checked, once each, in the order of the tasks."""

from __future__ import annotations

import pathlib

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import LeasesEnded
from agentrm_jax.runtime.process_groups import LeasedProcesses
from agentrm_jax.runtime.task_files import SharedTasks, join_records

KEYS = ["a", "b", "c", "d"]


def task_of(record: dict) -> str:
    return record["task"]


def work(tasks: SharedTasks, lease, count: int, task: str | None = None) -> None:
    """Writes some records of a task into the file of its lease."""
    with JsonLines(tasks.work_path(lease)) as lines:
        for number in range(count):
            lines.append({"task": task or lease.key, "number": number})


@pytest.fixture
def group(tmp_path: pathlib.Path):
    group = LeasedProcesses(tmp_path, LeasesConfig(enabled=True))
    yield group
    group.close()


def test_records_are_joined_in_the_order_of_the_tasks(group, tmp_path) -> None:
    path = tmp_path / "new" / "all.jsonl"
    with JsonLines(path) as lines:  # a process alone finished c, and began b
        for record in ({"task": "c", "number": 0}, {"task": "b", "number": 0}):
            lines.append(record)
    tasks = group.tasks("all.jsonl", KEYS, done=[2])
    leases = {lease.key: lease for lease in tasks.take(10)}
    assert sorted(leases) == ["a", "b", "d"]
    for key in ("d", "b"):
        work(tasks, leases[key], 2)
        assert tasks.record_work(leases[key])
    work(tasks, leases["a"], 3)
    found = join_records(path, tasks.store, tasks.name, task_of)
    assert (found.joined, found.before, found.missing) == (2, 1, ("a",))
    assert [(r["task"], r["number"]) for r in read_json_lines(path)] == [
        ("c", 0), ("b", 0), ("b", 1), ("d", 0), ("d", 1),
    ]  # fmt: skip
    before = path.read_bytes()
    join_records(path, tasks.store, tasks.name, task_of)
    assert sorted(path.read_bytes().splitlines()) == sorted(before.splitlines())
    found = join_records(path, tasks.store, tasks.name, task_of, unfinished=True)
    assert (found.resumed, found.missing) == (1, ())
    assert sum(record["task"] == "a" for record in read_json_lines(path)) == 3
    assert [each.name for each in path.parent.iterdir()] == ["all.jsonl"]


def test_the_work_of_a_dead_process_is_found_by_the_next(group, tmp_path) -> None:
    tasks = group.tasks("all.jsonl", KEYS)
    [lease, *_] = tasks.take(4)
    work(tasks, lease, 2)
    group.close()
    other = LeasedProcesses(tmp_path, LeasesConfig(enabled=True))
    again = other.tasks("all.jsonl", KEYS)
    taken = {each.key: each for each in again.take(10)}[lease.key]
    assert taken.epoch == 2
    [left] = again.earlier_work(taken)
    assert len(list(read_json_lines(left))) == 2
    other.close()


def test_a_record_in_the_file_of_another_task_is_refused(group, tmp_path) -> None:
    tasks = group.tasks("all.jsonl", KEYS)
    [lease, *_] = tasks.take(1)
    work(tasks, lease, 1, task="z")
    tasks.record_work(lease)
    with pytest.raises(UserError, match="line 1: a record of task z in the file of task"):
        join_records(tmp_path / "all.jsonl", tasks.store, tasks.name, task_of)
    assert not (tmp_path / "all.jsonl").exists()


def test_a_damaged_record_is_named(group, tmp_path) -> None:
    tasks = group.tasks("all.jsonl", KEYS)
    [lease, *_] = tasks.take(1)
    work(tasks, lease, 1)
    path = tasks.work_path(lease)
    path.write_bytes(path.read_bytes().replace(b"number", b"Number"))
    tasks.record_work(lease)
    with pytest.raises(UserError, match=r"\.record, line 1: corrupt record \(checksum differs\)"):
        join_records(tmp_path / "all.jsonl", tasks.store, tasks.name, task_of)


def test_records_of_a_stage_that_ended_are_not_joined_again(group, tmp_path) -> None:
    tasks = group.tasks("all.jsonl", KEYS)
    group.remove()
    with pytest.raises(LeasesEnded):
        join_records(tmp_path / "all.jsonl", tasks.store, tasks.name, task_of)
