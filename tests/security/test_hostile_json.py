"""JSON of any content in every place that reads some: refused in one line, or read as it is."""

from __future__ import annotations

import json
import math
import pathlib
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hostile_cases import (
    MANY,
    changed,
    damaged,
    harmless,
    is_visible,
    json_bytes,
    random_value,
    refusal,
)

from agentrm_jax.core.json_values import MAX_DEPTH, json_text, parse_json
from agentrm_jax.core.records import to_json
from agentrm_jax.data.trees import FILE, TreeStore
from agentrm_jax.evaluation.episodes import read_episodes
from agentrm_jax.evaluation.rollout_files import read_rollouts, rollout_to_json
from agentrm_jax.pipeline.run_status import run_status
from agentrm_jax.pipeline.run_table import view_table
from agentrm_jax.pipeline.run_view import RunWatcher
from agentrm_jax.pipeline.status_lines import status_lines
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.runtime.json_files import read_record
from agentrm_jax.runtime.run_directory import read_stage_record
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.testing import tiny_state
from benchmarks.bit_flips import _write_episodes, _write_trees


def one_line(path: pathlib.Path, read: Callable[[], Any]) -> bool:
    """Whether a file is refused; the refusal is one printable line with the file's name."""
    message = refusal(read)
    if message is None:
        return False
    assert str(path) in message
    assert is_visible(message)
    assert len(message) < 2000
    return True


def parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from parts(inner)


@MANY
def test_a_value_is_bounded_and_comes_back(cases):
    rng, read = random.Random(1), 0
    for _ in range(cases):
        content = json_bytes(rng, random_value(rng))
        message = refusal(lambda content=content: parse_json(content), ValueError)
        if message is not None:
            assert "\n" not in message
            continue
        value, read = parse_json(content), read + 1
        assert all(math.isfinite(x) for x in parts(value) if isinstance(x, float))
        assert parse_json(json_text(value)) == parse_json(json_text(parse_json(json_text(value))))
    assert cases > read > cases / 10
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2))


def lines_of(path: pathlib.Path) -> list[Any]:
    return [json.loads(line)["record"] for line in path.read_bytes().splitlines()]


def written(path: pathlib.Path, rng: random.Random, records: list[Any]) -> None:
    """Writes records with right checksums: what is wrong is their content."""
    texts = [json_bytes(rng, record).replace(b"\n", b" ") for record in records]
    path.write_bytes(
        b"".join(b'{"crc32":"%08x","record":%b}\n' % (zlib.crc32(text), text) for text in texts)
    )


def changed_list(rng: random.Random, records: list[Any]) -> list[Any]:
    """Records of which one is missing, doubled or changed."""
    at = rng.randrange(len(records))
    middle = rng.choice(([], [records[at]] * 2, *([[changed(rng, records[at])]] * 6)))
    return [*records[:at], *middle, *records[at + 1 :]]


def write_rollouts(folder: pathlib.Path) -> None:
    rollouts = [
        Rollout(trajectory=tiny_state(i, 2), sample=0, error=None, wall_seconds=0.5)
        for i in range(4)
    ]
    records = [rollout_to_json(rollout) for rollout in rollouts]
    written(folder / "rollouts.jsonl", random.Random(0), json.loads(json.dumps(records)))


STORES = {
    FILE: (_write_trees, lambda path: TreeStore.read(path.parent)),
    "episodes.jsonl": (_write_episodes, read_episodes),
    "rollouts.jsonl": (write_rollouts, lambda path: list(read_rollouts(path))),
}


@MANY
@pytest.mark.parametrize("name", STORES)
def test_records_of_another_content_are_refused_with_their_line(tmp_path, name, cases):
    write, read = STORES[name]
    write(tmp_path)
    path, rng = tmp_path / name, random.Random(2)
    records = lines_of(path)
    read(path)
    refused = 0
    with harmless(tmp_path):
        for _ in range(cases // 3):
            written(path, rng, changed_list(rng, records))
            refused += one_line(path, lambda: read(path))
    assert refused > cases / 12


@MANY
def test_files_of_others_are_imported_or_refused(tmp_path, cases):
    """Conversations, ATIF and lines of JSON, changed in one place."""
    rng = random.Random(3)
    turns = [{"from": ("human", "gpt")[i % 2], "value": f"Action: go {i}"} for i in range(6)]
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"Go {i}"} for i in range(5)]
    call = {"function_name": "go", "arguments": {"to": "n"}, "tool_call_id": "1"}
    steps = [
        {"step_id": 1, "source": "user", "message": "Leave."},
        {"step_id": 2, "source": "agent", "message": "x", "tool_calls": [call],
         "observation": {"results": [{"source_call_id": "1", "content": "A door."}]}},
    ]  # fmt: skip
    atif = {"schema_version": "ATIF-v1.4", "session_id": "s", "agent": {"name": "a"},
            "steps": steps, "extra": {"task": to_json(tiny_state(0, 1).task)}}  # fmt: skip
    kinds: list[Any] = [
        [{"id": "maze_1", "conversations": turns, "reward": 1.0}],
        [{"id": "maze_1", "messages": messages, "reward": 0.5}],
        atif,
    ]
    path, refused = tmp_path / "maze_items.json", 0
    with harmless(tmp_path):
        for number in range(cases):
            path.write_bytes(json_bytes(rng, changed(rng, kinds[number % len(kinds)])))
            refused += one_line(path, lambda: list(read_trajectories(path, "maze")))
    assert refused > cases / 3


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """The files of a run that views read, without a model."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.resolved.yaml").write_text("environments: [{name: maze}]\n")
    for name in ("trees", "samples", "experts"):
        (folder / name).mkdir()
    _write_trees(folder / "trees")
    write_rollouts(folder / "samples")
    record = {"stage": "experts", "depends_on": {}, "made_with": [], "seconds": 1.0, "tokens": 3}
    (folder / "experts" / "seconds.json").write_text(json.dumps(record))
    activity = {
        "stage": "explore", "host": "h", "pid": 1, "name": "explore", "total": 9, "done": 1,
        "done_before": 0, "began": 1.0, "updated": 2.0, "counts": {"env_steps": 3},
        "shown": {"loss": 0.5},
    }  # fmt: skip
    (folder / "trees" / ".activity.json").write_text(json.dumps(activity))
    row = {"stage": "sft", "update": 1, "seconds": 1.0, "loss": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    leases = folder / "trees" / ".leases"
    (leases / "workers").mkdir(parents=True)
    (leases / "trees.jsonl").mkdir()
    worker = {
        "worker": "h-1-0a", "host": "h", "pid": 1, "started": 1.0, "beat": 3, "expire_seconds": 60,
        "ended": False, "counts": {"tokens_decoded": 4}, "machine": "b", "began": 1.0,
    }  # fmt: skip
    (leases / "workers" / "h-1-0a").write_text(json.dumps(worker))
    (leases / "trees.jsonl" / "tasks").write_text(json.dumps(["a/1", "a/2"]))
    lease = {"task": "a/1", "worker": "h-1-0a", "repeats": False, "taken": 1.0}
    (leases / "trees.jsonl" / "000000.1.lease").write_text(json.dumps(lease))
    return folder


def shows(folder: pathlib.Path) -> str:
    """What `agentrm watch` and `agentrm status` show."""
    from rich.console import Console

    console = Console(width=200, record=True, file=(folder / "shown.txt").open("w"))
    console.print(view_table(folder, RunWatcher(folder).look()))
    return console.export_text() + "\n".join(status_lines(run_status(folder)))


def test_the_views_show_the_run(run, tmp_path):
    text = shows(shutil.copytree(run, tmp_path / "run"))
    assert "h-1-0a" in text
    assert "a/1" in text


@MANY
def test_views_of_a_hostile_run_show_no_control_characters(run, tmp_path, cases):
    folder, rng = shutil.copytree(run, tmp_path / "run"), random.Random(4)
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".yaml"
    ]
    contents = {path: path.read_bytes() for path in files}
    texts: list[str] = []
    shown = 0
    with harmless(tmp_path):
        for _ in range(cases // 3):
            path = rng.choice(files)
            if path.name in STORES:
                written(path, rng, changed_list(rng, lines_of(path)))
            elif rng.random() < 0.2:
                path.write_bytes(damaged(rng, contents[path]))
            else:
                text = json_bytes(rng, changed(rng, json.loads(contents[path])))
                path.write_bytes(text if text.strip() else b"0")
            message = refusal(lambda: texts.append(shows(folder)))
            assert message is None or is_visible(message)
            assert all(map(is_visible, texts)), texts
            shown += len(texts)
            texts.clear()
            path.write_bytes(contents[path])
    assert shown > cases / 12


@MANY
def test_records_of_a_stage_are_whole_or_refused(tmp_path, cases):
    rng, path = random.Random(5), tmp_path / "stage.json"
    record = {"stage": "sft", "depends_on": {"seed": 0}, "made_with": [{"python": "3"}],
              "seconds": 1.0, "tokens": 3, "summary": {"loss": 0.5}}  # fmt: skip
    with harmless(tmp_path):
        for _ in range(cases // 2):
            path.write_bytes(json_bytes(rng, changed(rng, record)))
            one_line(path, lambda: read_stage_record(path))
            one_line(path, lambda: read_record(path, stage=str))
