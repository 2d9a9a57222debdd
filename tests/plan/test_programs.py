"""Collectives read from the text of compiled programs, against what was asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from gpu_cases import gpus
from jax.sharding import NamedSharding, PartitionSpec
from tpu_cases import tpu_devices

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


OVERLAP = """
HloModule scheduled, is_scheduled=true

%shifted (p: bf16[8,4]) -> bf16[1,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %part = bf16[1,4]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (x: bf16[4], y: bf16[8,4]) -> bf16[8,4] {
  %x = bf16[4]{0} parameter(0)
  %y = bf16[8,4]{1,0} parameter(1)
  %gather = (bf16[4], bf16[32]) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}
  %flat = bf16[32]{0} bitcast(%y)
  %room = bf16[8]{0} custom-call(), custom_call_target="AllocateBuffer"
  BETWEEN
  %gathered = bf16[32]{0} all-gather-done(%gather)
  %sum = bf16[8,4]{1,0} all-reduce(%y), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %split = ((bf16[8,4]), bf16[1,4], s32[]) async-start(%sum), calls=%shifted
  %negative = bf16[8,4]{1,0} fusion(%sum), kind=kLoop, calls=%negate
  %got = bf16[1,4]{1,0} async-done(%split)
  ROOT %out = bf16[8,4]{1,0} fusion(%negative, %got), kind=kLoop, calls=%both
}
"""


@pytest.mark.parametrize(
    ("between", "overlapped"),
    [
        ("%z = bf16[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={1}", 1),
        ("%z = bf16[8,4]{1,0} fusion(%y), kind=kLoop, calls=%negate", 1),
        ("%z = bf16[8,4]{1,0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add", 0),
        ("%z = (bf16[32]) tuple(%flat)", 0),
    ],
)
def test_collectives_that_overlap_other_work(between, overlapped):
    """An asynchronous collective overlaps if work lies between its start and its end."""
    found = exchanges_of(parse(OVERLAP.replace("BETWEEN", between)))
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.count, gather.overlapped) == (1, overlapped)
    assert gather.overlapped_bytes == overlapped * gather.bytes == overlapped * 4 * 7 * 2
    assert (scatter.count, scatter.overlapped) == (1, 1)
    assert found["all-reduce"].overlapped == 0  # synchronous


FUSIONS = """
HloModule tpu, is_scheduled=true

%begun (p: bf16[4]) -> (bf16[4], bf16[32]) {
  %p = bf16[4]{0} parameter(0)
  %a = bf16[32]{0} all-gather(%p), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %call = (bf16[4]{0}, bf16[32]{0}) custom-call(%p, %a), custom_call_target="AsyncStart"
}

%next_to (p.1: bf16[4], x.1: bf16[8,8]) -> bf16[8,8] {
  %p.1 = bf16[4]{0} parameter(0)
  %x.1 = bf16[8,8]{1,0} parameter(1)
  %b = bf16[32]{0} all-gather(%p.1), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %product = bf16[8,8]{1,0} convolution(%x.1, %x.1), dim_labels=bf_io->bf
}

%ended (p.2: bf16[4]) -> bf16[32] {
  %p.2 = bf16[4]{0} parameter(0)
  %c = bf16[32]{0} all-gather(%p.2), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %call.2 = bf16[32]{0} custom-call(%p.2, %c), custom_call_target="AsyncDone"
}

ENTRY %main (x: bf16[8,8], y: bf16[4]) -> bf16[32] {
  %x = bf16[8,8]{1,0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %async-collective-start = (bf16[4]{0}, bf16[32]{0}) fusion(%y), kind=kCustom, calls=%begun
  %begun.0 = bf16[4]{0} get-tuple-element(%async-collective-start), index=0
  BETWEEN
  ROOT %async-collective-done = bf16[32]{0} fusion(%begun.0), kind=kCustom, calls=%ended
}
"""


@pytest.mark.parametrize(
    ("between", "overlapped"),
    [
        ("%fusion.1 = bf16[8,8]{1,0} fusion(%begun.0, %x), kind=kOutput, calls=%next_to", 1),
        ("%fusion.1 = bf16[8,8]{1,0} fusion(%x), kind=kOutput, calls=%another", 1),
        ("%async-collective-start.1 = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%another", 0),
    ],
)
def test_a_collective_in_several_fusions_counts_once(between, overlapped):
    """The compiler for TPUs writes it into its start, the products next to it, and its end."""
    gather = exchanges_of(parse(FUSIONS.replace("BETWEEN", between)))["all-gather"]
    assert (gather.count, gather.bytes) == (1, 4 * 7 * 2)
    assert gather.overlapped == overlapped


def test_collectives_of_loops_overlap_as_often_as_they_run():
    text = LOOP.replace("BEGIN", "0").replace("STEP", "1")
    assert exchanges_of(parse(text))["collective-permute"].overlapped == 0
    ending = "  %got = bf16"
    text = text.replace(ending, f"  %y = bf16[4,8] fusion(%x), calls=%negate\n{ending}")
    assert exchanges_of(parse(text))["collective-permute"].overlapped == 8


def layers(devices, compiler_options):
    """The collectives of four products whose weights lie on four chips, as compiled for them."""
    mesh = make_mesh(MeshConfig(fsdp=4), devices)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))

    def forward(x, weights):
        for w in weights:
            x = jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows)
        return x

    x, w = (jax.ShapeDtypeStruct((n, 2048), jnp.bfloat16, sharding=rows) for n in (8192, 2048))
    program = jax.jit(forward).lower(x, [w] * 4).compile(compiler_options)
    return exchanges_of(parse(program.as_text()))["all-gather"]


ASYNCHRONOUS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}
"""Options of the compiler for TPUs with which it gathers in the background."""

GATHERED = 4 * 2048 * 2048 * 2 * 3 / 4  # bytes of the weights on the other chips


@pytest.mark.gpu_compile
def test_gpu_compiler_gathers_weights_while_it_computes():
    gather = layers(gpus("h100", 4), {"xla_gpu_autotune_level": 0})
    assert gather.bytes == GATHERED
    assert 0 < gather.overlapped < gather.count  # nothing can run next to the first


@pytest.mark.tpu_compile
def test_tpu_compiler_gathers_weights_while_it_computes():
    gather = layers(tpu_devices("v5p"), ASYNCHRONOUS)
    assert (gather.count, gather.bytes) == (4, GATHERED)
    assert gather.overlapped == 3


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
