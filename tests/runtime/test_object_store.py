"""Leases in a bucket: each object is created once, whatever the network does."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from bucket_cases import DiskBucket
from lease_cases import Clock

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime import buckets
from agentrm_jax.runtime.buckets import Bucket, StoreAway, open_bucket
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import FileStore
from agentrm_jax.runtime.lease_workers import Heartbeat, Watch
from agentrm_jax.runtime.object_store import ObjectProcesses, ObjectStore, ObjectTasks
from agentrm_jax.runtime.process_groups import FOLDER
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.stored_stages import StoredStage
from agentrm_jax.runtime.task_files import join_records

CONFIG = LeasesConfig(enabled=True, expire_seconds=2.0)
KEYS = ["a", "b", "c", "d"]
SECRET = "AKIA-a-key"


class Answer(Exception):
    """An error of a client, with an HTTP status, and with a key in its text."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{SECRET}: status {code}")
        self.code = code


@pytest.fixture
def files() -> DiskBucket:
    return DiskBucket(skip_instance_cache=True)


@pytest.fixture
def bucket(tmp_path: pathlib.Path, files: DiskBucket) -> Bucket:
    return Bucket("diskbucket://b", files, str(tmp_path / "bucket"), sleep=lambda seconds: None)


@pytest.fixture
def group_of(bucket: Bucket) -> Iterator[Callable[[pathlib.Path], ObjectProcesses]]:
    """Joins the hosts of a stage; their heartbeats end with the test."""
    with contextlib.ExitStack() as groups:

        def group_of(folder: pathlib.Path) -> ObjectProcesses:
            store = ObjectStore(bucket, "explore", FileStore(folder / FOLDER))
            group = ObjectProcesses(store, CONFIG)
            groups.callback(group.close)
            return group

        yield group_of


def write_work(tasks: ObjectTasks, lease, count: int) -> None:
    with JsonLines(tasks.work_path(lease), make_folder=False) as lines:
        for number in range(count):
            lines.append({"task": lease.key, "number": number})


def test_an_object_is_created_once(bucket) -> None:
    assert bucket.create("list/a", b"mine")
    assert not bucket.create("list/a", b"mine")  # equal content of another call is not its own
    assert bucket.read("list/a") == b"mine"
    assert bucket.read("list/b") is None
    bucket.write("list/b", b"")
    bucket.write("list/b", b"new\n")
    assert bucket.read("list/b") == b"new\n"
    assert sorted(bucket.names("list")) == ["a", "b"]
    assert bucket.names("none") == []


@pytest.mark.parametrize("repeated", [1, 3])
def test_a_create_whose_answer_was_lost_counts_as_created(bucket, files, repeated) -> None:
    files.faults["pipe_file"] = [(ConnectionResetError(), "after")]
    files.faults["pipe_file"] += [TimeoutError()] * (repeated - 1)
    assert bucket.create("list/a", b"mine")
    assert files.faults["pipe_file"] == []
    assert not bucket.create("list/a", b"other")
    assert bucket.read("list/a") == b"mine"


def test_a_create_that_another_host_was_quicker_in_does_not_count(bucket, files) -> None:
    """The first attempt fails before it takes effect; meanwhile another host creates the object."""
    files.faults["pipe_file"] = [Answer(503)]
    bucket._sleep = lambda seconds: files.pipe_file(bucket._path("list/a"), b"other", mode="create")
    assert not bucket.create("list/a", b"mine")


def test_one_of_many_threads_creates_an_object(bucket) -> None:
    created: list[int] = []

    def create(number: int) -> None:
        created.extend(n for n in range(20) if bucket.create(f"list/{n}", b"same"))

    threads = [threading.Thread(target=create, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == list(range(20))


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([Answer(503)] * 7, r"the store did not write in 7 attempts \(Answer, HTTP 503\)"),
        ([ConnectionRefusedError(SECRET)] * 7, "did not write .*ConnectionRefusedError"),
        ([PermissionError(SECRET)], "no permission to write there .* check its credentials"),
        ([Answer(403)], r"no permission to write there \(Answer, HTTP 403\)"),
        ([OSError(f"Forbidden: {SECRET}")], "no permission to write there"),
        ([FileNotFoundError(SECRET)], "there is no such bucket; create it"),
        ([Answer(404)], "there is no such bucket"),
        ([ValueError(SECRET)], r"cannot write there \(ValueError\)"),
        ([Answer(400)], r"cannot write there \(Answer, HTTP 400\)"),
    ],
)
def test_errors_end_in_one_line_without_keys(bucket, files, errors, message) -> None:
    files.faults["pipe_file"] = list(errors)
    with pytest.raises(UserError, match=message) as found:
        bucket.create("list/a", b"mine")
    assert SECRET not in str(found.value)
    assert str(found.value).isprintable()
    assert found.value.__cause__ is None
    assert files.faults["pipe_file"] == []  # those that cannot pass are not retried


def test_pauses_grow(bucket, files) -> None:
    pauses: list[float] = []
    bucket._sleep = pauses.append
    files.faults["pipe_file"] = [Answer(429)] * 5
    assert bucket.create("list/a", b"mine")
    for pause, least in zip(pauses, (0.5, 1, 2, 4, 8), strict=True):
        assert least <= pause <= 1.5 * least


def test_a_call_that_hangs_ends(monkeypatch, bucket, files) -> None:
    ends = threading.Event()
    monkeypatch.setattr(files, "cat_file", lambda *a, **k: ends.wait(60))
    monkeypatch.setattr(buckets, "_SECONDS", 0.02)
    monkeypatch.setattr(Bucket._call, "__defaults__", (0.02,))
    with pytest.raises(StoreAway, match=r"did not read .*TimeoutError"):
        bucket.read("list/a")
    ends.set()


def test_stores_that_do_not_create_once_are_refused(tmp_path) -> None:
    assert open_bucket(f"diskbucket://{str(tmp_path / 'b')[1:]}").names("probe") == []
    for url, message in (
        (f"overwriting://{str(tmp_path)[1:]}", "no conditional create .a second create"),
        (f"looksfirst://{str(tmp_path)[1:]}", "has no conditional create .LooksFirst.pipe_file"),
        ("memory://b/p", "is not an object store; leave leases.store out"),
        ("file://b/p", "is not an object store; leave leases.store out"),
        ("nothing://b/p", r"leases.store must be gs://BUCKET/PREFIX or s3://BUCKET/PREFIX \(got"),
    ):
        with pytest.raises(UserError, match=message):
            open_bucket(url)


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"leases.store s3://b/p: needs .*agentrm-jax\[objects\]"):
        open_bucket("s3://b/p")


@pytest.mark.parametrize(
    "url", ["bucket", "gs://", "gs:/b", "/tmp/x", "gs://b/../c", "gs://b p", "gs://b//p",
            f"s3://{SECRET}:x@b", f"gs://b?{SECRET}", f"gs://b#{SECRET}"],
)  # fmt: skip
def test_texts_that_are_no_urls_of_a_bucket_are_refused(url) -> None:
    with pytest.raises(UserError, match="store must be gs://BUCKET/PREFIX") as found:
        LeasesConfig(enabled=True, store=url)
    assert SECRET not in str(found.value)


def test_two_hosts_share_tasks_and_each_gets_all_records(group_of, tmp_path) -> None:
    groups = [group_of(tmp_path / name / "trees") for name in "xy"]
    lists = [group.tasks("all.jsonl", KEYS) for group in groups]
    taken: list[str] = []
    while not all(tasks.complete for tasks in lists):
        for tasks in lists:
            tasks.look()
            for lease in tasks.take(4):
                taken.append(lease.key)
                write_work(tasks, lease, 2)
                assert tasks.record_work(lease)
    assert sorted(taken) == KEYS
    found = []
    for name, tasks in zip("xy", lists, strict=True):
        path = tmp_path / name / "trees" / "all.jsonl"
        joined = join_records(path, tasks.collect(), tasks.name, lambda record: record["task"])
        assert (joined.joined, joined.missing) == (4, ())
        found.append(path.read_bytes())
    assert found[0] == found[1]
    for group in groups:
        group.remove()
        assert not group.files.directory.exists()


def test_a_host_that_comes_back_resumes_its_own_files_and_others_begin_again(
    group_of, tmp_path
) -> None:
    before = group_of(tmp_path / "x" / "trees")
    tasks = before.tasks("all.jsonl", KEYS)
    begun, *_ = tasks.take(4)
    write_work(tasks, begun, 3)
    before.close()
    other = group_of(tmp_path / "y" / "trees").tasks("all.jsonl", KEYS)
    assert other.earlier_work(next(x for x in other.take(9) if x.key == begun.key)) == []
    other.give_back()
    again = group_of(tmp_path / "x" / "trees").tasks("all.jsonl", KEYS)
    lease = again.take(1)[0]
    assert (lease.key, lease.epoch) == (begun.key, 4)  # its own files come first
    [left] = again.earlier_work(lease)
    assert len(list(read_json_lines(left))) == 3


def test_a_record_that_is_late_does_not_count(group_of, tmp_path) -> None:
    x, y = (group_of(tmp_path / name / "trees").tasks("l", ["a"]) for name in "xy")
    [first] = x.take(1)
    y.look()
    clock = Clock(time.monotonic() + 1e6)
    y._clock, y._first_seen = clock, dict.fromkeys(y._first_seen, 0.0)
    [second] = y._take_again()
    for tasks, lease in ((x, first), (y, second)):
        write_work(tasks, lease, lease.epoch)
    assert y.record_work(second)
    assert not x.record_work(first)
    for tasks in (x, y):
        [record] = tasks.collect().path("l").glob("*.record")
        assert len(list(read_json_lines(record))) == 2


def test_listings_that_are_late_lose_and_double_nothing(group_of, files, tmp_path) -> None:
    x = group_of(tmp_path / "x" / "trees").tasks("l", KEYS)
    first = x.take(4)
    for lease in first:
        write_work(x, lease, 1)
        assert x.record_work(lease)
    files.hidden = ("1.lease", ".record")
    y = group_of(tmp_path / "y" / "trees").tasks("l", KEYS)
    taken = [lease for _ in range(4) for lease in y.take(4)]
    assert not {lease.key for lease in taken} & {lease.key for lease in first if lease.epoch == 1}
    files.hidden = ()
    y.look()
    assert y.num_done == len(first)


def test_heartbeats_go_on_after_a_store_was_away(bucket, files, tmp_path) -> None:
    store = ObjectStore(bucket, "explore", FileStore(tmp_path))
    heartbeat = Heartbeat(store, 0.5)
    before = heartbeat._record.beat
    files.faults["pipe_file"] = [Answer(503)] * 7 + [PermissionError()]
    deadline = time.monotonic() + 20
    while files.faults["pipe_file"] or heartbeat._record.beat < before + 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not Watch(store, 0.5).is_dead(heartbeat.worker)
    heartbeat.close()
    assert Watch(store, 0.5, machine="another").is_dead(heartbeat.worker)


def finished_stage(folder: pathlib.Path, text: str) -> None:
    with Stage("explore", folder, {"seed": 1}) as stage:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)
        (folder / ".leases").mkdir()
        (folder / ".leases" / "x").touch()
        stage.finish({"text": text})


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).as_posix().startswith(".")
    }


def test_the_stage_of_the_first_host_is_that_of_all(bucket, tmp_path) -> None:
    folders = [tmp_path / name / "trees" for name in "xyz"]
    stages = [StoredStage(bucket, "explore", folder) for folder in folders]
    stages[2].synchronize()  # nothing is there yet
    assert not folders[2].exists()
    assert not stages[2].published()
    for folder, text in zip(folders[:2], ("first", "second"), strict=True):
        finished_stage(folder, text)
    (folders[2] / "model").mkdir(parents=True)
    (folders[2] / "model" / "half").touch()  # it died here before
    for stage in stages:
        stage.synchronize()
    assert StoredStage(bucket, "explore", folders[2]).published()
    assert sorted(contents(folders[0])) == ["model/weights", "stage.json"]
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])
    assert (folders[2] / "model" / "weights").read_text() == "first"
    assert [path.name for path in folders[2].parent.iterdir()] == ["trees"]


def test_damaged_and_foreign_stages_are_refused(bucket, tmp_path) -> None:
    folder = tmp_path / "x" / "trees"
    stage, other = (StoredStage(bucket, "explore", f) for f in (folder, tmp_path / "y" / "trees"))
    stage.check_configuration({"seed": 1, "environments": ["maze"]})
    other.check_configuration({"environments": ["maze"], "seed": 1})
    with pytest.raises(UserError, match="holds explore of another configuration; choose another"):
        other.check_configuration({"seed": 2})
    finished_stage(folder, "first")
    stage.synchronize()
    root = tmp_path / "bucket" / "finished" / "explore"
    stored = [path for path in root.rglob("*") if path.is_file()]
    assert stored
    for path in stored:
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"differs from its sha256 \(model/weights of explore\)"):
        other.synchronize()
    assert list((tmp_path / "y").iterdir()) == []
    bucket.write(
        "finished/explore.json", b'{"files": {"../../out": {"object": "x", "sha256": ""}}}'
    )
    with pytest.raises(UserError, match="is not a list of agentrm; delete it"):
        other.synchronize()


def test_a_link_to_another_run_is_not_written(bucket, tmp_path) -> None:
    for name in "xy":
        finished_stage(tmp_path / name, name)
    StoredStage(bucket, "explore", tmp_path / "x").synchronize()
    os.symlink(tmp_path / "y", tmp_path / "link")
    with pytest.raises(UserError, match="is linked to another run"):
        StoredStage(bucket, "explore", tmp_path / "link").synchronize()
    assert (tmp_path / "y" / "model" / "weights").read_text() == "y"
