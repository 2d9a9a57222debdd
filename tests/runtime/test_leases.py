"""Leases: each task is taken by one worker, taken over from dead ones, and recorded once."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading

import pytest
from lease_cases import Clock, Host, MemoryStore

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime import lease_files
from agentrm_jax.runtime.lease_config import LeasesConfig
from agentrm_jax.runtime.lease_files import FileStore, LeasesEnded
from agentrm_jax.runtime.lease_workers import Heartbeat, Watch
from agentrm_jax.runtime.process_groups import LeasedProcesses


def numbers(leases) -> list[int]:
    return sorted(lease.number for lease in leases)


def seconds_of_silence(hosts: list[Host], clocks: list[Clock], seconds: int, dead: Host) -> None:
    """Lets time pass in steps of a second; all hosts but one renew their records."""
    for step in range(seconds):
        for host, clock in zip(hosts, clocks, strict=True):
            clock.now += 1
            if host is not dead and step % 15 == 0:
                host.beat()
            host.tasks.look()


@pytest.fixture
def two() -> tuple[MemoryStore, list[Host], list[Clock]]:
    """Two hosts with ten tasks, whose clocks differ by an hour."""
    store, clocks = MemoryStore(), [Clock(0.0), Clock(3600.0)]
    hosts = [Host(store, name, 10, clock) for name, clock in zip("ab", clocks, strict=True)]
    return store, hosts, clocks


def test_tasks_are_taken_once_and_shared(two) -> None:
    _, (a, b), _ = two
    a.tasks.look()  # it sees b now, and takes no more than its half
    first, second = a.tasks.take(100), b.tasks.take(100)
    rest = [lease for host in (a, b) * 10 for lease in host.tasks.take(100)]
    assert numbers([*first, *second, *rest]) == list(range(10))
    assert len(first) == 5
    assert len(second) >= 1
    for host, leases in ((a, first), (b, second)):
        assert all(host.tasks.record(lease, b"result") for lease in leases)


def test_a_dead_host_is_taken_over_and_its_late_record_does_not_count(two) -> None:
    store, (a, b), clocks = two
    [lease] = a.tasks.take(1)
    others = []
    while len(others) < 9:
        b.tasks.look()
        others += b.tasks.take(10)
    assert lease.number not in numbers(others)
    seconds_of_silence([a, b], clocks, 55, dead=a)
    assert b.tasks.take(10) == []  # not yet
    seconds_of_silence([a, b], clocks, 20, dead=a)
    [again] = b.tasks.take(10)
    assert (again.number, again.epoch) == (lease.number, 2)
    assert not a.tasks.held(lease)
    assert b.tasks.record(again, b"by b")
    assert not a.tasks.record(lease, b"by a")  # it was frozen, and thawed too late
    assert store.read(f"list/{lease.number:06d}.record") == b"by b"


def test_a_thawed_host_that_is_first_counts(two) -> None:
    _, (a, b), clocks = two
    [lease] = a.tasks.take(1)
    seconds_of_silence([a, b], clocks, 75, dead=a)
    taken = []
    while not any(each.number == lease.number for each in taken):
        taken += b.tasks.take(10)
        b.tasks.look()
    assert a.tasks.record(lease, b"by a")
    [again] = [each for each in taken if each.number == lease.number]
    assert not b.tasks.record(again, b"by b")


def test_a_frozen_reader_does_not_take_others_for_dead(two) -> None:
    """Its clock went on while it was frozen, and one look is all that it has had since."""
    _, (a, b), clocks = two
    a.tasks.take(1)
    b.tasks.look()
    clocks[1].now += 3600
    b.tasks.look()
    assert all(lease.epoch == 1 for lease in b.tasks.take(10))


def test_a_host_that_ended_is_taken_over_at_once(two) -> None:
    _, (a, b), clocks = two
    [lease] = a.tasks.take(1)
    a.beat(ended=True)
    clocks[1].now += 5
    b.tasks.look()
    taken = b.tasks.take(10)
    assert (lease.number, 2) in [(each.number, each.epoch) for each in taken]


def test_what_is_given_back_is_free_for_all(two) -> None:
    _, (a, b), clocks = two
    lease, *_ = a.tasks.take(3)
    a.tasks.give_back()
    taken = []
    while len(taken) < 10:
        b.tasks.look()
        taken += b.tasks.take(10)
    assert {each.number: each.epoch for each in taken}[lease.number] == 3
    seconds_of_silence([a, b], clocks, 75, dead=b)
    a.tasks.look()
    assert a.tasks.take(1)[0].epoch > 1  # b died: what it had taken from a's gift is free again


def test_an_idle_host_repeats_the_oldest_task_of_a_slow_one_once(two) -> None:
    _, (a, b), clocks = two
    taken = []
    while len(taken) < 10:
        a.tasks.look()
        taken += a.tasks.take(10)
    assert b.tasks._take_again() == []
    for _ in range(65):
        for host, clock in zip((a, b), clocks, strict=True):
            clock.now += 1
            host.beat()
        b.tasks.look()
    [again] = b.tasks._take_again()
    assert again.epoch == 2
    assert b.tasks.record(again, b"by b")
    assert not a.tasks.record(next(x for x in taken if x.number == again.number), b"by a")


def test_hosts_with_other_tasks_are_refused(two) -> None:
    store, _, _ = two
    with pytest.raises(UserError, match="another process works on other tasks"):
        Host(store, "c", 11, Clock())


def test_one_of_many_threads_creates_a_file(tmp_path: pathlib.Path) -> None:
    stores = [FileStore(tmp_path / "leases") for _ in range(8)]
    stores[0].make("list")
    created: list[int] = []

    def create(number: int) -> None:
        content = str(number).encode()
        created.extend(n for n in range(50) if stores[number].create(f"list/{n}", content))

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == list(range(50))
    assert sorted(stores[0].names("list"), key=int) == [str(n) for n in range(50)]
    assert all(p.name.isdigit() for p in (tmp_path / "leases" / "list").iterdir())


def test_an_answer_that_a_server_lost_counts_as_created(tmp_path, monkeypatch) -> None:
    """NFS: the link was made, but its request is repeated and fails."""
    store, link = FileStore(tmp_path), os.link
    store.make("list")

    def twice(source, target) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(lease_files.os, "link", twice)
    assert store.create("list/a", b"mine")
    monkeypatch.setattr(lease_files.os, "link", link)
    assert not store.create("list/a", b"other")
    assert store.read("list/a") == b"mine"


def test_a_removed_store_ends_the_work_and_is_not_made_again(tmp_path) -> None:
    store = FileStore(tmp_path / "leases")
    store.make("list")
    store.remove_all()
    for use in (
        lambda: store.create("list/a", b""),
        lambda: store.write("list/a", b""),
        lambda: store.names("list"),
        lambda: store.add("other"),
    ):
        with pytest.raises(LeasesEnded):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_gone_is_dead_at_once_and_a_living_one_is_not(tmp_path) -> None:
    store = FileStore(tmp_path)
    store.make("workers")
    script = (
        "import pathlib, sys\n"
        "from agentrm_jax.runtime.lease_files import FileStore\n"
        "from agentrm_jax.runtime.lease_workers import Heartbeat\n"
        "print(Heartbeat(FileStore(pathlib.Path(sys.argv[1])), 60.0).worker)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    heartbeat = Heartbeat(store, 60.0, lambda: {"tokens_decoded": 5})
    watch = Watch(store, 60.0)
    assert watch.is_dead(ended.stdout.strip())
    assert not watch.is_dead(heartbeat.worker)
    assert watch.num_alive() == 1
    heartbeat.close()
    [record] = [r for r in Watch(store, 60.0).records() if r.worker == heartbeat.worker]
    assert record.ended
    assert record.counts == {"tokens_decoded": 5}


def test_work_is_done_once_in_a_group_and_all_get_its_result(tmp_path) -> None:
    config = LeasesConfig(enabled=True, expire_seconds=2.0)
    groups = [LeasedProcesses(tmp_path, config) for _ in range(3)]
    calls: list[int] = []
    results: dict[int, object] = {}

    def join(number: int) -> None:
        def work() -> list[int]:
            calls.append(number)
            return [number]

        results[number] = groups[number].once("work", work)

    threads = [threading.Thread(target=join, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert list(results.values()) == [calls] * 3
    assert groups[0].total({"tokens": 2})["tokens"] == 2
    assert groups[1].total({"tokens": 3})["tokens"] == 5
    for group in groups:
        group.close()
    groups[0].remove()
    with pytest.raises(LeasesEnded):
        groups[1].once("more", lambda: None)
    assert list(tmp_path.iterdir()) == []
