import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from train_cases import CONFIG, mesh_of, policy_params, reward_params, rows_of

from agentrm_jax.core.errors import Stopped, UserError
from agentrm_jax.data.pipeline import batches
from agentrm_jax.model import parameters
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints
from agentrm_jax.runtime.metrics import MetricWriter, read_metrics
from agentrm_jax.train import explicit, sft
from agentrm_jax.train import fit as fit_module
from agentrm_jax.train.fit import FitConfig, FitInputs, fit
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import abstract_state, make_state
from agentrm_jax.train.trainable import Trainable

ROWS = rows_of(60)
LOOP = FitConfig(num_updates=12, batch_size=4, length=32, metrics_every=2, checkpoint_every=4)


def _fit(directory, *, on_update=lambda *_: None, loss=None, rows=ROWS, loop=LOOP, mesh=None):
    mesh = mesh or mesh_of()
    loss = loss or sft.make_loss(CONFIG, ForwardOptions(mesh=mesh))
    return fit(
        FitInputs(
            model=Trainable(params=policy_params(mesh), loss_fn=loss),
            rows=rows,
            config=loop,
            optimizer=OptimizerConfig(learning_rate=1e-2),
            directory=directory / "training",
            mesh=mesh,
            seed=1,
            metrics=MetricWriter(directory / "metrics.jsonl", "sft"),
            on_update=on_update,
        )
    )


def _rows(directory):
    rows = read_metrics(directory / "metrics.jsonl")
    return [{name: v for name, v in row.items() if name != "seconds"} for row in rows]


def _same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


class _Killed(Exception):
    pass


def _killer(at):
    def on_update(update, total, row):
        if update == at:
            raise _Killed

    return on_update


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    params, summary = _fit(directory)
    return params, summary, _rows(directory)


def test_the_loop_learns_and_reports(whole):
    _, summary, rows = whole
    assert [row["update"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert set(rows[0]) == {"stage", "update", "loss", "accuracy", "grad_norm"}
    assert summary["updates"] == 12
    assert summary["loss"] == rows[-1]["loss"]
    assert summary["tokens_per_second"] > 0
    assert summary["compile_seconds"] > 0


@pytest.mark.parametrize("at", [2, 6, 10])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, whole, at):
    """Killed before the first checkpoint, and between checkpoints: the same bits in the end."""
    with pytest.raises(_Killed):
        _fit(tmp_path, on_update=_killer(at))
    params, _ = _fit(tmp_path)
    assert _same(params, whole[0])
    assert _rows(tmp_path) == whole[2]


def test_sigterm_saves_and_ends(tmp_path, whole):
    seen = []

    def on_update(update, total, row):
        seen.append((update, total))
        if update == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Stopped, match=r"^stopped at update 7 of 12, which was saved \d+\.\d s after the signal$"
    ):
        _fit(tmp_path, on_update=on_update)
    assert signal.getsignal(signal.SIGTERM) is before
    assert seen == [(2, 12), (4, 12), (6, 12), (7, 12)]  # no work is lost
    again = []
    params, _ = _fit(tmp_path, on_update=lambda update, *_: again.append(update))
    assert again == [8, 10, 12]
    assert _same(params, whole[0])


def test_two_updates_are_in_flight_at_most(tmp_path, monkeypatch):
    """Neither more, which a stop would have to wait for, nor fewer, which would idle the device."""
    handed, in_flight = [], []

    def loss(params, batch):
        total, sums = sft.make_loss(CONFIG)(params, batch)
        slow = jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x @ x), jnp.full((256, 256), 0.1))
        return total + 0 * jax.lax.stop_gradient(slow.sum()), sums

    class Watched(fit_module._Clock):
        def updated(self, sums):
            super().updated(sums)
            handed.append(sums["loss"])
            in_flight.append(sum(not loss.is_ready() for loss in handed))

    monkeypatch.setattr(fit_module, "_Clock", Watched)
    loop = dataclasses.replace(LOOP, metrics_every=100, checkpoint_every=100)
    _fit(tmp_path, loss=loss, loop=loop)
    assert len(in_flight) == 12
    assert max(in_flight) == 2


def test_a_stop_does_not_wait_for_the_measure(tmp_path, monkeypatch):
    """Only checkpoints that are due are measured, so that a stop changes no result."""
    measured = []
    make = fit_module.make_measure

    def counting(*arguments):
        measure = make(*arguments)
        return lambda *given: (measured.append(1), measure(*given))[1]

    monkeypatch.setattr(fit_module, "make_measure", counting)

    def on_update(update, total, row):
        if update == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    def run(directory, on_update):
        mesh = mesh_of()
        loss = sft.make_loss(CONFIG, ForwardOptions(mesh=mesh))
        return fit(
            FitInputs(
                model=Trainable(params=policy_params(mesh), loss_fn=loss),
                rows=ROWS,
                config=LOOP,
                optimizer=OptimizerConfig(learning_rate=1e-2),
                directory=directory,
                mesh=mesh,
                seed=1,
                held_out=rows_of(8),
                on_update=on_update,
            )
        )

    with pytest.raises(Stopped):
        run(tmp_path / "stopped", on_update)
    assert len(measured) == 1  # at update 4
    _, resumed = run(tmp_path / "stopped", lambda *_: None)
    _, whole = run(tmp_path / "whole", lambda *_: None)
    keys = ("best_update", "held_out_loss")
    assert [resumed[key] for key in keys] == [whole[key] for key in keys]


def test_a_checkpoint_is_resumed_on_another_mesh(tmp_path):
    """Killed on 1 x 8 devices behind a checkpoint, resumed on 2 x 4: the losses of 1 x 8."""
    loop = dataclasses.replace(LOOP, num_updates=8, batch_size=8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _fit(whole, loop=loop, mesh=mesh_of(1, 8, 1))
    with pytest.raises(_Killed):
        _fit(parts, loop=loop, mesh=mesh_of(1, 8, 1), on_update=_killer(6))
    _fit(parts, loop=loop, mesh=mesh_of(2, 4, 1))
    assert [row["update"] for row in _rows(parts)] == [2, 4, 6, 8]
    for a, b in zip(_rows(whole), _rows(parts), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


def test_every_leaf_is_restored_to_its_place_on_another_mesh(tmp_path):
    """Adam's count as well: it would else be committed to one device."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 10)
    saved = make_state(policy_params(mesh_of(2, 4, 1)), optimizer, mesh_of(2, 4, 1))
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(1, saved)
    checkpoints.close()
    mesh = mesh_of(1, 4, 2)
    wanted = abstract_state(
        parameters.abstract_of(parameters.describe(CONFIG), jnp.float32, mesh), optimizer, mesh
    )
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    found = checkpoints.restore(wanted)
    checkpoints.close()
    assert _same(saved, found)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert isinstance(b.sharding, NamedSharding)
        assert b.sharding.is_equivalent_to(a.sharding, a.ndim)
        assert len(b.sharding.device_set) == 8


def test_a_finished_run_is_not_trained_again(tmp_path, whole):
    _fit(tmp_path)
    params, summary = _fit(tmp_path, on_update=_killer(12))
    assert _same(params, whole[0])
    assert summary == {"updates": 12}


def test_a_loss_that_is_not_finite_names_its_update(tmp_path):
    """The rows hold one mark, so that the update that comes upon it is known beforehand."""
    marked = dataclasses.replace(ROWS, targets=np.zeros_like(ROWS.targets))
    marked.targets[3] = 1.0
    source = batches(marked, 4, 1)
    found = next(u for u in range(1, 13) if next(source)["targets"].any())

    def loss(params, batch):
        value, sums = sft.make_loss(CONFIG)(params, batch)
        return jnp.where(batch["targets"].any(), jnp.inf, value), sums

    message = rf"not finite at update {found}: .*optimizer\.learning_rate"
    with pytest.raises(UserError, match=message):
        _fit(tmp_path, loss=loss, rows=marked)
    kept = [int(path.name) for path in (tmp_path / "training").iterdir()]
    assert all(update < found for update in kept)
    assert all(row["update"] < found for row in _rows(tmp_path))


def test_the_reward_model_learns_its_targets(tmp_path):
    mesh = mesh_of()
    loss = explicit.make_loss(CONFIG, ForwardOptions(mesh=mesh))
    _, summary = fit(
        FitInputs(
            model=Trainable(params=reward_params(mesh), loss_fn=loss),
            rows=rows_of(4),
            config=FitConfig(num_updates=60, batch_size=2, length=32, metrics_every=10),
            optimizer=OptimizerConfig(learning_rate=1e-2),
            directory=tmp_path / "training",
            mesh=mesh,
            seed=0,
            metrics=MetricWriter(tmp_path / "metrics.jsonl", "reward"),
            describe=explicit.describe,
        )
    )
    assert summary["loss"] < 0.01
    assert summary["correlation"] > 0.9


def test_epochs_become_updates():
    assert FitConfig(epochs=2, batch_size=4).total(10) == 5
    assert FitConfig(epochs=0.1, batch_size=4).total(2) == 1
    assert FitConfig(epochs=2, num_updates=7, batch_size=4).total(10) == 7


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4, "accumulation": 3}, "accumulation must divide batch_size, 4"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"keep": 0}, "keep must be at least 1"),
    ],
)
def test_bad_values_name_the_key(values, key):
    with pytest.raises(UserError, match=key):
        FitConfig(**values)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"^batch_size must be a multiple of 16.*\(got 8\)$"):
        FitConfig(batch_size=8, accumulation=4).check_mesh(mesh_of(2, 2, 2))
