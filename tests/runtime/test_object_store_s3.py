"""Leases in a bucket of an emulator of S3, with the client that users have."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.runtime.buckets import open_bucket

pytest.importorskip("s3fs", reason="needs the extra [objects]")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
pytestmark = pytest.mark.slow

CASES = pathlib.Path(__file__).parents[1] / "cli"


@pytest.fixture
def url(monkeypatch) -> str:
    """A bucket of a server of its own."""
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in (
        ("AWS_ACCESS_KEY_ID", "key-of-a-test"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-a-test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
    ):
        monkeypatch.setenv(key, value)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs/one"
    server.stop()


def test_objects_are_created_once(url: str, tmp_path: pathlib.Path) -> None:
    bucket = open_bucket(url)
    created: list[int] = []

    def create() -> None:
        created.extend(n for n in range(20) if bucket.create(f"best%2Fx.jsonl/{n}", b"same"))

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == list(range(20))
    assert sorted(bucket.names("best%2Fx.jsonl"), key=int) == [str(n) for n in range(20)]
    assert bucket.names("best%2Fy.jsonl") == []
    assert bucket.read("best%2Fx.jsonl/3") == b"same"
    assert bucket.read("best%2Fx.jsonl/20") is None
    assert abs(bucket.written("best%2Fx.jsonl/3") - time.time()) < 60
    (tmp_path / "a").write_bytes(content := os.urandom(1 << 20))
    bucket.upload("files/a", tmp_path / "a")
    bucket.download("files/a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_a_missing_bucket_is_named(url: str) -> None:
    with pytest.raises(UserError, match="s3://missing/x: there is no such bucket; create it"):
        open_bucket("s3://missing/x")


def test_two_hosts_explore_though_one_is_killed(url: str, tmp_path: pathlib.Path) -> None:
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(CASES)!r}); import walker_cases;"
        f"walker_cases.write_config(pathlib.Path({str(tmp_path)!r})).with_name('go').touch()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    config = tmp_path / "run.yaml"
    assert yaml.safe_load(config.read_text())["plugins"]

    def start(folder: str, *arguments: str, seconds: str = "0.1") -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "agentrm_jax.cli.main", "explore", str(config)]
        return subprocess.Popen(
            [*program, "--output", str(tmp_path / folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"SECONDS_OF_A_TURN": seconds},
        )

    leases = (f"--leases.store={url}", "--leases.enabled=true", "--leases.expire_seconds=4")
    killed, sound = start("x", *leases, seconds="0.3"), start("y", *leases)
    work = tmp_path / "x" / "trees" / ".leases" / "trees.jsonl"
    deadline = time.monotonic() + 200
    while not any(b'"iteration"' in path.read_bytes() for path in work.glob("*.work")):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    for process in (sound, start("x", *leases), start("alone")):
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, out
        assert "secret-of-a-test" not in out
    expected = TreeStore.read(tmp_path / "alone" / "trees", finished=True)
    for name in "xy":
        assert TreeStore.read(tmp_path / name / "trees", finished=True) == expected
    for name in ("trees.jsonl", "stage.json"):
        x, y = (tmp_path / folder / "trees" / name for folder in "xy")
        assert x.read_bytes() == y.read_bytes()
