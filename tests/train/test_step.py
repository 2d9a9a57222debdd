import jax
import numpy as np
import optax
import pytest
from train_cases import CONFIG, batch_of, mesh_of, policy_params, reward_params, rows_of

from agentrm_jax.core.errors import UserError
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.train import explicit, sft
from agentrm_jax.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from agentrm_jax.train.step import make_state, make_train_step, state_shardings

BATCH = {name: value[:8] for name, value in batch_of(rows_of(24)).items()}

# Adam turns rounding into steps of full size where a gradient is near zero; this keeps it small.
PLAIN = optax.sgd(0.3, momentum=0.9)


def _trained(mesh, accumulation=1, optimizer=PLAIN):
    """The state after three updates on one batch, and the sums of the last."""
    params = policy_params(mesh)
    placed = state_shardings(params, optimizer, mesh)
    state = make_state(params, optimizer, mesh)
    step = make_train_step(
        sft.make_loss(CONFIG, ForwardOptions(mesh=mesh)), optimizer, placed, mesh, accumulation
    )
    sums = {}
    for _ in range(3):
        state, sums = step(state, BATCH, None)
    assert jax.tree.map(lambda x: x.sharding, state) == placed
    return state, sums


@pytest.fixture(scope="module")
def one_device():
    return _trained(mesh_of())


def _assert_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_an_update_is_optax_on_the_mean_gradient(one_device):
    params = policy_params()
    opt_state = PLAIN.init(params)

    def mean_loss(params):
        loss, sums = sft.make_loss(CONFIG)(params, BATCH)
        return loss / sums["weight"]

    gradient = jax.jit(jax.grad(mean_loss))
    for _ in range(3):
        updates, opt_state = PLAIN.update(gradient(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    state, _ = one_device
    _assert_close(state.params, params, 1e-5)
    assert int(state.update) == 3


def test_micro_batches_give_the_same_update(one_device):
    _assert_close(_trained(mesh_of(), accumulation=4), one_device, 1e-5)


@pytest.mark.parametrize(("sizes", "accumulation"), [((2, 2, 2), 2), ((1, 8, 1), 1)])
def test_eight_devices_give_the_same_update(one_device, sizes, accumulation):
    _assert_close(_trained(mesh_of(*sizes), accumulation), one_device, 2e-5)


def test_moments_lie_beside_their_parameters():
    mesh = mesh_of(2, 2, 2)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 10)
    adam = make_state(policy_params(mesh), optimizer, mesh).opt_state[1][0]
    gate = adam.mu["layers"]["gate"]
    assert gate.addressable_shards[0].data.size == gate.size // 4
    assert len(adam.count.sharding.device_set) == 8


def test_parameters_off_the_mesh_are_brought_to_it():
    """A new value head is made on one device while its trunk is split over all."""
    mesh = mesh_of(2, 2, 2)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 10)
    params = reward_params(mesh)
    placed = state_shardings(params, optimizer, mesh)
    state = make_state(params, optimizer, mesh)
    step = make_train_step(
        explicit.make_loss(CONFIG, ForwardOptions(mesh=mesh)), optimizer, placed, mesh
    )
    losses = []
    for _ in range(8):
        state, sums = step(state, BATCH, None)
        losses.append(float(sums["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert len(state.params["value_head"]["bias"].sharding.device_set) == 8


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)],
)
def test_the_rate_rises_then_decays(schedule, middle, end):
    config = OptimizerConfig(
        learning_rate=2.0, schedule=schedule, warmup_fraction=0.1, final_fraction=0.1
    )
    rate = learning_rate(config, 1000)
    assert [float(rate(u)) for u in (0, 50, 100)] == pytest.approx([0.0, 1.0, 2.0])
    assert float(rate(550)) == pytest.approx(2.0 * middle)
    assert float(rate(1000)) == pytest.approx(2.0 * end)


def test_no_warm_up_begins_at_the_peak():
    config = OptimizerConfig(learning_rate=2.0, warmup_fraction=0.0)
    assert float(learning_rate(config, 10)(0)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"schedule": "cosin"}, r"schedule must be one of cosine, linear, constant .*'cosin'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"warmup_fraction": 1.0}, "warmup_fraction must be below 1"),
    ],
)
def test_bad_values_name_the_key(values, key):
    with pytest.raises(UserError, match=key):
        OptimizerConfig(**values)
