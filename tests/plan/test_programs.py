"""Collectives read from the text of compiled programs, against what was asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from agentrm_jax.plan.hlo import parse
from agentrm_jax.plan.programs import exchanges_of, memory_of
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh


def compiled(fn, data=1):
    """A function of rows, eight in all, that are split over `fsdp`."""
    mesh, spec = make_mesh(MeshConfig(data=data, fsdp=-1)), PartitionSpec("fsdp")
    on_each = jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(on_each).lower(x).compile()


def exchange(x, kind):
    if kind == "all-reduce":
        return x + jax.lax.psum(x, "fsdp")
    if kind == "all-gather":
        return x + jax.lax.all_gather(x, "fsdp").sum(axis=0)
    if kind == "reduce-scatter":
        return x + jax.lax.psum_scatter(jnp.tile(x, (8, 1)), "fsdp", tiled=True)
    return x + jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)])


ROW = 16 * 4  # bytes of what one of the eight devices holds
BYTES = {
    "all-reduce": 2 * ROW * 7 / 8,
    "all-gather": ROW * 7,
    "reduce-scatter": 8 * ROW * 7 / 8,
    "collective-permute": ROW,
}


@pytest.mark.parametrize("kind", BYTES)
def test_a_collective_in_nested_loops_counts_as_often_as_it_runs(kind):
    def body(x, _):
        x, _ = jax.lax.scan(lambda x, _: (exchange(x, kind), None), x, length=3)
        return jnp.sin(x), None

    found = exchanges_of(parse(compiled(lambda x: jax.lax.scan(body, x, length=5)[0]).as_text()))
    assert found.keys() == {kind}
    assert found[kind].count == 15
    assert found[kind].bytes == pytest.approx(15 * BYTES[kind])


def test_only_the_devices_of_an_axis_exchange():
    found = exchanges_of(parse(compiled(lambda x: x + jax.lax.psum(x, "fsdp"), data=2).as_text()))
    assert found["all-reduce"].bytes == pytest.approx(2 * 2 * ROW * 3 / 4)  # four of two rows


def test_a_loop_whose_end_the_data_decides_counts_once():
    def step(x):
        return exchange(x, "all-reduce")

    program = compiled(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, step, x))
    assert exchanges_of(parse(program.as_text()))["all-reduce"].count == 1


LOOP = """
HloModule tpu

%body (state: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %state = (u32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %step = u32[]{:T(128)} constant(STEP)
  %at = u32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %sent = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1
  %got = bf16[4,8]{1,0} collective-permute-done(%sent)
  %next = u32[]{:T(128)} add(%at, %step)
  ROOT %new = (u32[], bf16[4,8]{1,0}) tuple(%next, %got)
}

%condition (state.1: (u32[], bf16[4,8])) -> pred[] {
  %state.1 = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %end = u32[]{:T(128)} constant(8), metadata={op_name="jit(step)/lt"}
  %at.1 = u32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at.1, %end), direction=LT, metadata={op_name="lt"}
}

ENTRY %main (x.1: bf16[4,8]) -> bf16[4,8] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %begin = u32[] constant(BEGIN)
  %first = (u32[], bf16[4,8]{1,0}) tuple(%begin, %x.1)
  %while.1 = (u32[], bf16[4,8]{1,0}) while(%first), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%while.1), index=1
}
"""


@pytest.mark.parametrize(("begin", "step", "times"), [(0, 1, 8), (2, 1, 6), (0, 2, 4), (1, 3, 3)])
def test_loops_of_tpu_programs_are_counted_from_their_condition(begin, step, times):
    text = LOOP.replace("BEGIN", str(begin)).replace("STEP", str(step))
    found = exchanges_of(parse(text))["collective-permute"]
    assert found.count == times
    assert found.bytes == times * 4 * 8 * 2


def test_a_program_of_one_device_exchanges_nothing():
    program = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile()
    assert exchanges_of(parse(program.as_text())) == {}


def test_memory_leaves_out_what_takes_the_place_of_arguments():
    def both(x):
        return x + 1, jnp.tile(x, 2)

    x = jnp.ones(1024)
    memory = memory_of(jax.jit(both, donate_argnums=0).lower(x).compile())
    assert memory.arguments == 4096
    assert 8192 <= memory.outputs < 8192 + 64  # and a table of two addresses
    assert memory.total >= memory.peak >= 4096 + 8192
