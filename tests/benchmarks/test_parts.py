"""The parts of the benchmarks on which their statements rest."""

from __future__ import annotations

import numpy as np
import pytest

from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.plan.work import NumberBytes, head_weights, layer_weights, reading
from benchmarks import latency, measuring, models, search


def test_sides_are_called_in_turn_and_the_first_call_is_told_apart():
    calls: list[tuple[str, int]] = []
    sides = measuring.interleaved(
        {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}, 3
    )
    assert calls == [
        *(("a", 0), ("b", 0)),
        *(("a", 1), ("b", 1)),
        *(("b", 2), ("a", 2)),
        *(("a", 3), ("b", 3)),
    ]
    assert [len(side.rounds) for side in sides.values()] == [3, 3]


def test_the_model_has_as_many_weights_as_it_is_named_for():
    config = models.SHAPES["27m"]
    count = layer_weights(config) + head_weights(config)
    assert count == pytest.approx(27.8e6, rel=0.01)
    large = models.SHAPES["8b"]
    count = layer_weights(large) + 2 * head_weights(large)
    assert count == pytest.approx(8.03e9, rel=0.001)


def test_work_is_counted_alike_in_one_piece_and_in_two():
    config, number = models.SHAPES["27m"], NumberBytes.of("float32")
    whole = reading(config, 3, 200, 100, 1, number)
    parts = [
        reading(config, 3, 120, 100, 1, number),
        reading(config, 3, 80, 220, 1, number),
    ]
    # Each piece has a last token, of which the last layer is computed to its end.
    assert whole.flops == pytest.approx(sum(part.flops for part in parts), rel=1e-3)


def test_the_environment_that_waits_is_known_to_workers():
    with latency.registered():
        [task] = latency.Latency().tasks("train", kinds=("generated",), n=1)
        pool = EnvPool(workers=1)
        try:
            [(handle, first)] = pool.reset([task])
            clock = measuring.Clock()
            [transition] = pool.step([(handle, "move up")])
            assert clock.read().wall >= latency.SECONDS
        finally:
            pool.close()
    assert "goal" in first
    assert transition.observation


def test_sampled_tokens_are_the_best_by_the_logits_with_noise():
    """What shows that trees part at near-ties: it must know the policy's tokens."""
    model, sizes = search.tiny_policy(), search.tiny_sizes()
    tasks = search.tasks_of("pddl", sizes)[:1]
    pool = EnvPool(workers=0)
    explored = search.Bench(model, pool, tasks, sizes).one_at_a_time(5)
    pool.close()
    checked = 0
    for (_, purpose), (state, proposals) in list(explored.asked.items())[:3]:
        for branch, proposal in enumerate(proposals):
            at = len(proposal.token_ids) // 2
            reply = list(proposal.token_ids[:at])
            values = search.perturbed_logits(model, explored.agent, state, purpose, branch, reply)
            assert int(np.argmax(values)) == proposal.token_ids[at]
            checked += 1
    assert checked
