"""Damage in every kind of file: refused, without effect, or read as something else.

    python -m benchmarks.bit_flips [--tiny] [--cut] [KIND ...]

Writes a small artefact of each kind, flips one bit at a seeded random place of its files, or with
--cut ends a file there, and reads it as the commands do. A damage is

  refused    one clear line (UserError)
  harmless   what is read equals what was written
  silent     what is read differs, and nothing is said
  traceback  any other exception
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.states import open_labels, write_labels
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trajectories import open_trajectories, write_trajectories
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeStore
from agentrm_jax.evaluation.episodes import Episode, read_episodes, write_episodes
from agentrm_jax.model import hugging_face, parameters
from agentrm_jax.model.value import init_reward
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.trained_on import write_trained_on
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.search.labels import label_trajectories
from benchmarks import measuring
from benchmarks.models import SHAPES

OUTCOMES = ("refused", "harmless", "silent", "traceback")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of file: how an artefact is written into a folder, and how it is read again.

    `read` returns a value that can be compared with `==`.
    """

    write: Callable[[pathlib.Path], object]
    read: Callable[[pathlib.Path], Any]


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _mesh() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def _model() -> models.Model:
    tokenizer = train_tokenizer(["go to the red key 1"], 300)
    config = dataclasses.replace(SHAPES["tiny"], vocab_size=tokenizer.vocab_size)
    params = init_reward(parameters.init(jax.random.key(0), config, mesh=_mesh()), 0.5)
    return models.Model(
        params=params,
        config=config,
        tokenizer=tokenizer,
        trained_on=frozenset({"0123456789abcdef"}),
    )


def _write_model(folder: pathlib.Path) -> None:
    models.save(folder / "model", "reward", _model())


def _write_export(folder: pathlib.Path) -> None:
    model = _model()

    def add_files(partial: pathlib.Path) -> None:
        model.tokenizer.export(partial)
        write_trained_on(partial, model.trained_on)

    hugging_face.save(folder / "model", model.config, model.params, add_files=add_files)


def _read_model(folder: pathlib.Path) -> Any:
    model = models.load_reward(folder / "model", "float32", _mesh())
    values = _digest(model.params), model.config, model.head
    return *values, model.tokenizer.fingerprint(), model.trained_on


def _state() -> Any:
    return {"params": {"w": jax.random.normal(jax.random.key(0), (64, 32))}, "update": jnp.int32(4)}


def _write_checkpoint(folder: pathlib.Path) -> None:
    checkpoints = TrainingCheckpoints(folder / "checkpoints", keep=2)
    checkpoints.save(4, _state(), held_out_loss=0.25)
    checkpoints.close()


def _read_checkpoint(folder: pathlib.Path) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _state()
    )
    checkpoints = TrainingCheckpoints(folder / "checkpoints", keep=2)
    try:
        return _digest(checkpoints.restore(target)), checkpoints.best, checkpoints.latest
    finally:
        checkpoints.close()


def _step(number: int) -> Step:
    last = number == 2
    transition = Transition(observation=f"room {number}, a red key", reward=0.5 * last, done=last,
                            success=False)  # fmt: skip
    return Step(reply=f"Thought: on\nAction: go {number}", action=f"go {number}",
                transition=transition)  # fmt: skip


def _task(number: int) -> Task:
    return Task(environment="maze", task_id=f"maze/train/{number}", split="train", kind="generated",
                spec={"seed": number}, problem=f"{number:016x}", max_steps=9)  # fmt: skip


def _trajectories() -> list[Trajectory]:
    steps = tuple(_step(number) for number in range(3))
    return [
        Trajectory(task=_task(i), first_observation="You are in a maze.", steps=steps[: 1 + i % 3])
        for i in range(20)
    ]


def _write_labels(folder: pathlib.Path) -> None:
    write_labels(folder / "states", label_trajectories(_trajectories()))


def _write_trees(folder: pathlib.Path) -> None:
    store = TreeStore(folder)
    for number in range(5):
        store.begin(_task(number), "You are in a maze.")
        nodes = tuple(
            NodeRecord(node=i + 1, parent=i, step=_step(i), multiplicity=1) for i in range(3)
        )
        path = (0, 1, 2, 3)
        store.append(
            IterationRecord(task_id=_task(number).task_id, iteration=0, nodes=nodes, path=path,
                            outcome=0.5)
        )  # fmt: skip
        store.finish(_task(number).task_id)
    store.close()


def _write_episodes(folder: pathlib.Path) -> None:
    write_episodes(
        folder / "episodes.jsonl",
        [
            Episode(
                task=_task(i),
                method="greedy",
                seed=0,
                outcome=0.5,
                success=0.0,
                policy_tokens=7,
                env_steps=3,
                wall_seconds=0.5,
                steps=3,
            )
            for i in range(20)
        ],
    )


def _write_archive(folder: pathlib.Path) -> None:
    (folder / "alfworld").mkdir()
    random = np.random.default_rng(0)
    with tarfile.open(folder / "alfworld" / "alfworld_games_474.tar.xz", "w:xz") as archive:
        for number in range(40):
            text = json.dumps({"pddl": random.integers(0, 99, 8000).tolist()}).encode()
            name = f"json_2.1.1/valid_seen/task-{number}/trial_{number}/game.tw-pddl"
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))


def _read_archive(folder: pathlib.Path) -> Any:
    from agentrm_jax.envs.alfworld.files import games_folder

    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    before = dict(os.environ)
    os.environ |= {"AGENTRM_DATA": str(folder), "XDG_CACHE_HOME": str(cache)}
    os.environ.pop("ALFWORLD_DATA", None)
    try:
        games = games_folder()
        files = sorted(path for path in games.rglob("*") if path.is_file())
        return {path.relative_to(games).as_posix(): path.read_bytes() for path in files}
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(cache, ignore_errors=True)


KINDS = {
    "model": Kind(write=_write_model, read=_read_model),
    "export": Kind(write=_write_export, read=_read_model),
    "checkpoint": Kind(write=_write_checkpoint, read=_read_checkpoint),
    "trajectories": Kind(
        write=lambda folder: write_trajectories(folder / "experts", _trajectories()),
        read=lambda folder: list(open_trajectories(folder / "experts")),
    ),
    "states": Kind(write=_write_labels, read=lambda folder: list(open_labels(folder / "states"))),
    "trees": Kind(write=_write_trees, read=lambda folder: TreeStore.read(folder, finished=True)),
    "episodes": Kind(
        write=_write_episodes, read=lambda folder: read_episodes(folder / "episodes.jsonl")
    ),
    "archive": Kind(write=_write_archive, read=_read_archive),
}


@contextlib.contextmanager
def damaged(path: pathlib.Path, place: int, bit: int | None) -> Iterator[None]:
    """In the block a bit of a file is another one, or the file ends there if that is None."""
    content = path.read_bytes()
    changed = bytearray(content)
    if bit is None:
        del changed[place:]
    else:
        changed[place] ^= 1 << bit
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


def outcome_of(read: Callable[[pathlib.Path], Any], folder: pathlib.Path, sound: Any) -> str:
    """Returns the outcome, of `OUTCOMES`, of reading a damaged folder."""
    try:
        return "harmless" if read(folder) == sound else "silent"
    except UserError:
        return "refused"
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0][:150], file=sys.stderr)
        return "traceback"


def measured(kind: Kind, times: int, seed: int = 0, *, cut: bool = False) -> dict[str, int]:
    """Counts of each outcome over damages at random places of an artefact's files."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        kind.write(folder)
        sound = kind.read(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        ends = np.cumsum([path.stat().st_size for path in files])
        counts = collections.Counter[str]()
        for at in random.integers(0, ends[-1], times):
            number = int(np.searchsorted(ends, at, side="right"))
            place = int(at - (ends[number - 1] if number else 0))
            bit = None if cut else int(random.integers(8))
            with damaged(files[number], place, bit):
                counts[outcome_of(kind.read, folder, sound)] += 1
    return {outcome: counts[outcome] for outcome in OUTCOMES}


def main() -> None:
    parser = measuring.parser("bit_flips", __doc__, rounds=1)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--cut", action="store_true", help="cut files instead of flipping bits")
    parser.add_argument("--flips", type=int, help="of each kind; default: 500, or 50 if tiny")
    given = parser.parse_args()
    threads = measuring.use_threads(given.threads)
    flips = given.flips or (50 if given.tiny else 500)
    print(f"{'kind':14}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    found = {}
    for name in given.kinds or KINDS:
        found[name] = measured(KINDS[name], flips, cut=given.cut)
        print(f"{name:14}" + "".join(f"{found[name][outcome]:11}" for outcome in OUTCOMES))
    total = {outcome: sum(each[outcome] for each in found.values()) for outcome in OUTCOMES}
    measuring.finish("bit_flips", {"flips_of_each": flips, **total, "kinds": found}, threads)


if __name__ == "__main__":
    main()
