import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from agentrm_jax.core.errors import UserError
from agentrm_jax.runtime.array_checksums import checksums
from agentrm_jax.runtime.checkpoints import (
    TrainingCheckpoints,
    _check_values,
    load_model,
    read_model_config,
    save_model,
)
from agentrm_jax.runtime.manifests import read_manifest
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh


def _tree(scale: float = 1.0) -> dict:
    return {
        "embed": scale * jnp.arange(32.0).reshape(8, 4),
        "layers": {"q": scale * jnp.arange(16.0).reshape(2, 8).astype(jnp.bfloat16)},
        "count": jnp.int32(7),
    }


def _target(tree, sharding=None):
    sharding = sharding or NamedSharding(make_mesh(MeshConfig()), P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _equal(a, b) -> bool:
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


def test_a_model_comes_back_as_it_was(tmp_path):
    save_model(tmp_path / "policy", "policy", {"d_model": 4}, _tree(2.0))
    save_model(tmp_path / "policy", "policy", {"d_model": 4}, _tree())  # replaces the first
    assert read_model_config(tmp_path / "policy", "policy") == {"d_model": 4}
    assert _equal(load_model(tmp_path / "policy", _target(_tree())), _tree())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"]


def test_a_relative_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(pathlib.Path("policy"), "policy", {}, _tree())
    assert _equal(load_model(pathlib.Path("policy"), _target(_tree())), _tree())


def test_arrays_are_read_to_where_the_target_says(tmp_path):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 simulated devices")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    source = jax.device_put(_tree()["embed"], NamedSharding(mesh, P("fsdp", "tensor")))
    save_model(tmp_path / "m", "policy", {}, {"embed": source})
    wanted = NamedSharding(mesh, P("tensor"))
    loaded = load_model(tmp_path / "m", _target({"embed": source}, wanted))["embed"]
    assert loaded.sharding.is_equivalent_to(wanted, 2)
    assert np.array_equal(loaded, source)


def test_a_trunk_is_read_from_a_larger_model(tmp_path):
    save_model(tmp_path / "policy", "policy", {}, _tree())
    trunk = {"layers": _tree()["layers"]}
    assert _equal(load_model(tmp_path / "policy", _target(trunk), partial=True), trunk)
    with pytest.raises(UserError, match=r"count has shape \(\), the config requires none"):
        load_model(tmp_path / "policy", _target(trunk))


def _with_shape(tree, shape):
    return {**tree, "layers": {"q": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}}


def test_another_shape_is_one_line_with_both(tmp_path):
    save_model(tmp_path / "policy", "policy", {}, _tree())
    message = r"params: parameter layers\.q has shape \(2, 8\), the config requires \(2, 9\)$"
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "policy", _target(_with_shape(_tree(), (2, 9))))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"parameter head has shape none \(it is missing\)"):
        load_model(tmp_path / "policy", _target({**_tree(), "head": jnp.ones(3)}), partial=True)


def test_what_is_not_there_or_of_another_kind_is_named(tmp_path):
    save_model(tmp_path / "policy", "policy", {}, _tree())
    with pytest.raises(UserError, match="holds a policy model, a reward model is wanted"):
        read_model_config(tmp_path / "policy", "reward")
    with pytest.raises(UserError, match="no model here"):
        read_model_config(tmp_path / "absent", "reward")
    with pytest.raises(UserError, match="there is no checkpoint here"):
        load_model(tmp_path / "absent", _target(_tree()))
    (tmp_path / "policy" / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json: damaged"):
        read_model_config(tmp_path / "policy", "policy")


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_damaged_files_are_one_line(tmp_path, damage):
    save_model(
        tmp_path / "policy", "policy", {}, {"x": jax.random.normal(jax.random.key(0), (5000,))}
    )
    for path in (tmp_path / "policy" / "params").rglob("d/*"):
        if damage == "lost":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)
    found = {
        "lost": "missing, manifest.json lists it",
        "cut": "checksum differs from manifest.json",
    }
    with pytest.raises(UserError, match=f"d/[0-9a-f]+: .*{found[damage]}"):
        load_model(tmp_path / "policy", _target({"x": jnp.zeros(5000)}))
    (tmp_path / "policy" / "manifest.json").unlink()  # a model of an older version has none
    message = "policy/params: not a checkpoint that can be read"
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path / "policy", _target({"x": jnp.zeros(5000)}))
    assert "\n" not in str(error.value)


def test_a_model_without_a_manifest_is_read(tmp_path):
    save_model(tmp_path / "policy", "policy", {"d_model": 4}, _tree())
    (tmp_path / "policy" / "manifest.json").unlink()
    assert read_model_config(tmp_path / "policy", "policy") == {"d_model": 4}
    assert _equal(load_model(tmp_path / "policy", _target(_tree())), _tree())


def test_a_model_folder_with_a_foreign_file_is_not_replaced(tmp_path):
    save_model(tmp_path / "policy", "policy", {}, _tree())
    (tmp_path / "policy" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"did not write.*\(notes\.txt\)"):
        save_model(tmp_path / "policy", "policy", {}, _tree(2.0))
    assert (tmp_path / "policy" / "notes.txt").read_text() == "mine"
    assert _equal(load_model(tmp_path / "policy", _target(_tree())), _tree())
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def _flips(files, number):
    """(file, place, bit): spread over the files' bytes."""
    random = np.random.default_rng(0)
    for _ in range(number):
        path = files[random.integers(len(files))]
        yield path, int(random.integers(path.stat().st_size)), int(random.integers(8))


def _flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_no_flipped_bit_of_a_model_is_read_as_sound(tmp_path):
    model = tmp_path / "policy"
    save_model(model, "policy", {"d_model": 4}, _tree())
    names = read_manifest(model / "manifest.json")
    assert {"model.json", "params/state/manifest.ocdbt"} <= names.keys()
    files = [model / name for name in names if (model / name).stat().st_size]
    for path, place, bit in _flips(files, 60):
        _flip(path, place, bit)
        with pytest.raises(UserError) as error:
            load_model(model, _target(_tree()))
        assert "\n" not in str(error.value)
        _flip(path, place, bit)
    assert _equal(load_model(model, _target(_tree())), _tree())


def test_no_flipped_bit_of_a_checkpoint_is_read_as_sound(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "training", keep=2)
    checkpoints.save(3, _tree(), held_out_loss=0.5)
    checkpoints.close()

    def read():
        again = TrainingCheckpoints(tmp_path / "training", keep=2)
        try:
            return again.restore(_target(_tree())), again.best
        finally:
            again.close()

    state, best = read()
    assert _equal(state, _tree())
    assert best == (3, 0.5)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size)
    refused = 0
    for path, place, bit in _flips(files, 60):
        _flip(path, place, bit)
        try:
            state, best = read()
            assert _equal(state, _tree()), path
            assert best == (3, 0.5), path
        except UserError:
            refused += 1
        _flip(path, place, bit)
    assert refused > 20


def test_a_changed_value_of_a_checkpoint_is_named(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "training", keep=2)
    checkpoints.save(3, _tree())
    checkpoints.close()
    stored = checksums(_tree())
    with pytest.raises(UserError, match=r"training/3: damaged \(parameter embed differs"):
        _check_values(tmp_path / "training" / "3", stored, {**stored, "embed": "float32:00000000"})


def test_the_newest_training_checkpoints_stay(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "training", keep=2)
    assert checkpoints.latest is None
    with pytest.raises(UserError, match="there is no checkpoint here"):
        checkpoints.restore(_target(_tree()))
    for update in (10, 20, 30):
        checkpoints.save(update, _tree(update))
    checkpoints.save(30, _tree(31))  # a resumed run may come to the same update again
    checkpoints.close()
    again = TrainingCheckpoints(tmp_path / "training", keep=2)
    assert again.latest == 30
    assert _equal(again.restore(_target(_tree())), _tree(31))
    with pytest.raises(UserError, match=r"training/30: parameter layers\.q has shape"):
        again.restore(_target(_with_shape(_tree(), (3, 8))))
    again.close()
    assert sorted(p.name for p in (tmp_path / "training").iterdir()) == ["20", "30"]


def test_a_state_may_be_overwritten_as_soon_as_its_save_has_begun(tmp_path):
    """Each update frees the state before it, as training does, while that is being written."""
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.device_put(jnp.zeros((1024, 1024)), NamedSharding(make_mesh(MeshConfig()), P()))
    for number in range(3):
        checkpoints = TrainingCheckpoints(tmp_path / str(number), keep=1)
        expected = int(x[0, 0])
        checkpoints.save(1, {"x": x})
        for _ in range(5):
            x = update(x)
        checkpoints.close()
        again = TrainingCheckpoints(tmp_path / str(number), keep=1)
        stored = again.restore(_target({"x": x}))["x"]
        again.close()
        assert (np.asarray(stored) == expected).all()


_FULL = """
import pathlib, resource, signal, sys
import jax
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints, save_model
from agentrm_jax.core.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1])
params = {"w": jax.random.normal(jax.random.key(0), (64, 1024))}
jax.block_until_ready(params)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    if sys.argv[2] == "model":
        save_model(folder / "saved", "policy", {}, params)
    else:
        checkpoints = TrainingCheckpoints(folder / "saved", keep=2)
        checkpoints.save(1, params)
        checkpoints.close()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["model", "checkpoint"])
def test_what_cannot_be_written_is_one_line(what, tmp_path):
    """Files of limited size fail as on a full disk."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path), what],
        capture_output=True, text=True, check=True, env=environment, timeout=300,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    name = {"model": "saved", "checkpoint": "saved/1"}[what]
    assert line.startswith(f"{tmp_path / name}: cannot be written (")
    if what == "model":
        assert list(tmp_path.iterdir()) == []


_ENDLESS = """
import pathlib, sys
import jax.numpy as jnp
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints
checkpoints = TrainingCheckpoints(pathlib.Path(sys.argv[1]), keep=2)
update = checkpoints.latest or 0
while True:
    update += 1
    checkpoints.save(update, {"x": jnp.full((64, 1024), update, jnp.float32)})
    print(update, flush=True)
"""


def test_after_a_kill_the_newest_whole_checkpoint_counts(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    begun = 0
    for extra in (0.0, 0.013):  # two moments within a save
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        for _ in range(3):
            begun = int(process.stdout.readline())
        time.sleep(extra)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")[:-1]
        process.wait()
        begun = int(rest[-1]) if rest else begun
        checkpoints = TrainingCheckpoints(tmp_path, keep=2)
        latest = checkpoints.latest
        assert latest in (begun - 1, begun)  # a save begins when the one before it has ended
        x = checkpoints.restore(_target({"x": jnp.zeros((64, 1024))}))["x"]
        checkpoints.close()
        assert (np.asarray(x) == latest).all()
        assert all(path.name.isdigit() for path in tmp_path.iterdir())  # no leftovers
