"""Held-out tasks: which they are, the loss on them, and the model that is kept."""

from __future__ import annotations

import dataclasses

import chex
import jax
import pytest
from train_cases import CONFIG, batch_of, mesh_of, policy_params, rows_of

from agentrm_jax.core.errors import UserError
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.runtime.checkpoints import TrainingCheckpoints
from agentrm_jax.runtime.metrics import MetricWriter, read_metrics
from agentrm_jax.train import held_out, sft
from agentrm_jax.train.fit import FitConfig, FitInputs, fit
from agentrm_jax.train.optimizer import OptimizerConfig
from agentrm_jax.train.trainable import Trainable

EXAMPLES = [(f"task {i % 7}", i) for i in range(20)]
LOOP = FitConfig(num_updates=30, batch_size=4, length=32, metrics_every=5, checkpoint_every=5)


def task_of(example: tuple[str, int]) -> str:
    return example[0]


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.3, 2), (0.8, 6)])
def test_whole_tasks_are_held_out(share: float, count: int) -> None:
    trained, held = held_out.split(EXAMPLES, task_of, share, seed=0)
    assert sorted(trained + held) == sorted(EXAMPLES)
    assert trained == sorted(trained, key=EXAMPLES.index)
    assert not {task for task, _ in trained} & {task for task, _ in held}
    assert len({task for task, _ in held}) == count


def test_the_seed_and_the_names_decide() -> None:
    held = held_out.split(EXAMPLES, task_of, 0.3, seed=0)[1]
    assert sorted(held_out.split(EXAMPLES[::-1], task_of, 0.3, seed=0)[1]) == sorted(held)
    others = [held_out.split(EXAMPLES, task_of, 0.3, seed=seed)[1] for seed in range(1, 6)]
    assert any(other != held for other in others)


def test_one_task_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"fit\.held_out: 1 tasks are too few"):
        held_out.split(EXAMPLES[::7], task_of, 0.5, seed=0)


@pytest.mark.parametrize(("batch_size", "mesh"), [(1, ()), (3, ()), (8, (2, 2, 2))])
def test_the_loss_is_that_of_all_rows_at_once(batch_size: int, mesh: tuple[int, ...]) -> None:
    rows, where = rows_of(11, seed=3), mesh_of(*mesh)
    assert len(rows) % 3  # the last batch is not full
    loss = sft.make_loss(CONFIG, ForwardOptions(mesh=mesh_of()))
    total, sums = loss(policy_params(), batch_of(rows))
    found = held_out.make_measure(
        sft.make_loss(CONFIG, ForwardOptions(mesh=where)), rows, batch_size, where
    )(policy_params(where))
    assert found["loss"] == pytest.approx(float(total / sums["weight"]), rel=1e-5)
    assert set(found) == {"loss", *sums} - {"weight"}


def trained(directory, on_update=lambda *_: None, loop=LOOP, rows=None):
    loss = sft.make_loss(CONFIG, ForwardOptions(mesh=mesh_of()))
    return fit(
        FitInputs(
            model=Trainable(params=policy_params(mesh_of()), loss_fn=loss),
            rows=rows or rows_of(20),
            config=loop,
            optimizer=OptimizerConfig(learning_rate=1e-2),
            directory=directory / "training",
            mesh=mesh_of(),
            seed=1,
            metrics=MetricWriter(directory / "metrics.jsonl", "sft"),
            held_out=rows_of(12, seed=5),
            on_update=on_update,
        )
    )


def test_the_best_checkpoint_is_the_model_also_where_training_was_killed(tmp_path) -> None:
    """Random tokens can only be learned by heart, so that others become less likely."""
    params, summary = trained(tmp_path / "whole")
    losses = {
        row["update"]: row["held_out_loss"]
        for row in read_metrics(tmp_path / "whole/metrics.jsonl")
    }
    assert list(losses) == [5, 10, 15, 20, 25, 30]
    best = min(losses, key=lambda update: losses[update])
    assert best < 25
    assert (summary["best_update"], summary["held_out_loss"]) == (best, losses[best])
    measure = held_out.make_measure(
        sft.make_loss(CONFIG, ForwardOptions(mesh=mesh_of())), rows_of(12, seed=5), 4, mesh_of()
    )
    assert measure(params)["loss"] == pytest.approx(losses[best], rel=1e-6)

    class Killed(Exception):
        pass

    def kill(update: int, total: int, row: dict[str, float]) -> None:
        if update == 27 - 27 % LOOP.metrics_every:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "parts", kill)
    again, _ = trained(tmp_path / "parts")
    chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(params))


def test_a_model_that_becomes_better_is_the_last(tmp_path) -> None:
    loop = dataclasses.replace(LOOP, num_updates=8, checkpoint_every=3)
    _, summary = trained(tmp_path, loop=loop, rows=rows_of(12, seed=5))  # what is held out itself
    assert summary["best_update"] == 8


def test_the_best_and_the_newest_checkpoints_stay(tmp_path) -> None:
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    assert checkpoints.best is None
    for update, loss in ((10, 0.5), (20, 0.1), (30, 0.3), (40, 0.1), (50, 0.4), (60, 0.2)):
        checkpoints.save(update, policy_params(), loss)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["40", "60"]
    again = TrainingCheckpoints(tmp_path, keep=1)
    assert again.best == (40, 0.1)
    assert again.latest == 60
    again.close()
