"""Bytes of compiled programs against those that one counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_cases import compile_for_gpu, on_gpu

from agentrm_jax.engine.attention.parts import declared_bytes
from agentrm_jax.plan.hlo import parse
from agentrm_jax.plan.traffic import Assumed, traffic_of

X, ROW = 64 * 128 * 4, 128 * 4  # bytes of the array below and of a row of it

HEAD = """HloModule jit_step, is_scheduled=true

FileNames
1 "/anywhere/agentrm_jax/model/llama.py"
2 "/anywhere/jax/lax.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=2 end_column=38}
2 {file_name_id=2 function_name_id=1 line=99 end_line=99 column=2 end_column=38}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%add_of (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%last_of (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  ROOT %b.1 = f32[] parameter(1)
}

%fused (p.0: f32[64,128], p.1: s32[], p.2: f32[128]) -> f32[1,128] {
  %p.0 = f32[64,128]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[128]{0} parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[64,128]{1,0} add(%p.0, %p.0)
  %one = f32[1,128]{1,0} dynamic-slice(%twice, %p.1, %zero), dynamic_slice_sizes={1,128}
  %wide = f32[1,128]{1,0} broadcast(%p.2), dimensions={1}
  ROOT %out = f32[1,128]{1,0} multiply(%one, %wide)
}

%updated (p.3: f32[64,128], p.4: f32[1,128], p.5: s32[]) -> f32[64,128] {
  %p.3 = f32[64,128]{1,0} parameter(0)
  %p.4 = f32[1,128]{1,0} parameter(1)
  %p.5 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %doubled = f32[1,128]{1,0} add(%p.4, %p.4)
  ROOT %put = f32[64,128]{1,0} dynamic-update-slice(%p.3, %doubled, %p.5, %zero.1)
}

%both (p.6: f32[64,128]) -> (f32[64,128], f32[64]) {
  %p.6 = f32[64,128]{1,0} parameter(0)
  %negative = f32[64,128]{1,0} negate(%p.6)
  %nothing = f32[] constant(0)
  %sums = f32[64]{0} reduce(%p.6, %nothing), dimensions={1}, to_apply=%add_of
  ROOT %pair = (f32[64,128]{1,0}, f32[64]{0}) tuple(%negative, %sums)
}

%body (s: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %s = (s32[], f32[64,128]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%s), index=0
  %held = f32[64,128]{1,0} get-tuple-element(%s), index=1
  %turned = f32[64,128]{1,0} copy(%held)
  ROOT %next = (s32[], f32[64,128]{1,0}) tuple(%at, %turned)
}

%ends (s.1: (s32[], f32[64,128])) -> pred[] {
  %s.1 = (s32[], f32[64,128]{1,0}) parameter(0)
  %at.1 = s32[] get-tuple-element(%s.1), index=0
  ROOT %done = pred[] custom-call(%at.1), custom_call_target="Sharding"
}

%cheap (c: f32[64,128]) -> f32[64,128] {
  ROOT %c = f32[64,128]{1,0} parameter(0)
}

%dear (d: f32[64,128]) -> f32[64,128] {
  %d = f32[64,128]{1,0} parameter(0)
  ROOT %d.1 = f32[64,128]{1,0} copy(%d)
}

ENTRY %main (x: f32[64,128], i: s32[], w: f32[128], rows: s32[3,1], y: f32[3,128]) -> f32[] {
  %x = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %w = f32[128]{0} parameter(2)
  %rows = s32[3,1]{1,0} parameter(3)
  %y = f32[3,128]{1,0} parameter(4)
  %zero.2 = s32[] constant(0)
  %near = f32[64,128]{1,0:T(8,128)S(1)} bitcast(%x)
  LINE
}
"""

INSTRUCTIONS = {
    # A fusion reads one row of its operand, whatever it computes of it, and the row of weights.
    "%f = f32[1,128]{1,0} fusion(%x, %i, %w), kind=kLoop, calls=%fused": 3 * ROW + 4,
    "%f = f32[64,128]{1,0} fusion(%x, %near, %i), kind=kLoop, calls=%updated": ROW + 4,
    "%f = (f32[64,128]{1,0}, f32[64]{0}) fusion(%x), kind=kInput, calls=%both": 2 * X + 64 * 4,
    "%f = (f32[64,128]{1,0:S(1)}, f32[64]{0}) fusion(%near), kind=kInput, calls=%both": 64 * 4,
    "%f = f32[5,128]{1,0} slice(%x), slice={[3:8], [0:128]}": 2 * 5 * ROW,
    "%f = f32[1,128]{1,0} dynamic-slice(%x, %i, %zero.2), dynamic_slice_sizes={1,128}": 2 * ROW + 8,
    "%f = f32[64,128]{1,0} dynamic-update-slice(%x, %y, %i, %zero.2)": 2 * 3 * ROW + 8,
    "%f = f32[3,128]{1,0} gather(%x, %rows), slice_sizes={1,128}": 2 * 3 * ROW + 12,
    "%f = f32[64,128]{1,0} scatter(%x, %rows, %y), to_apply=%last_of": 2 * 3 * ROW + 12,
    "%f = f32[64,128]{1,0} scatter(%x, %rows, %y), to_apply=%add_of": 3 * 3 * ROW + 12,
    "%f = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}": X + 64 * 64 * 4,
    "%f = f32[64,128]{1,0} add(%x, %near)": 2 * X,
    "%f = f32[64,128]{1,0} bitcast(%x)": 0,
    "%f = f32[128,64]{1,0} transpose(%x), dimensions={1,0}": 2 * X,
    "%f = f32[64,128]{1,0} iota(), iota_dimension=0": X,
    "%f = f32[64,128]{1,0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}": 2 * X,
    "%f = f32[128,128]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}": 3 * X,
    # The kernel sees all of %x, and says that it reads 100 bytes and a quarter of 4,000.
    '%f = f32[128]{0} custom-call(%x), custom_call_target="k", frontend_attributes='
    '{bytes_fixed="100",bytes_paged="4000"}, metadata={op_name="jit(f)/own_pages/k"}': 1100,
    '%f = f32[128]{0} custom-call(%x), custom_call_target="tpu_custom_call", '
    'backend_config={"cost_estimate":{"flops":"7","bytes_accessed":"77"}}': 77,
    '%f = (f32[64,64]{1,0}, s8[999]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm"':
        X + 64 * 64 * 4,
}  # fmt: skip


def counted(line, **assumed):
    return traffic_of(parse(HEAD.replace("LINE", line)), Assumed(**assumed))


@pytest.mark.parametrize(("line", "size"), INSTRUCTIONS.items())
def test_an_instruction_moves_what_it_needs(line, size):
    assert counted(f"ROOT {line}", filled={"own_pages": 0.25}).bytes == size


def test_what_is_asynchronous_counts_once():
    started = (
        "%f = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]) copy-start(%x)\n"
        "  ROOT %g = f32[64,128]{1,0:S(1)} copy-done(%f)"
    )
    assert counted(started).by_kind == {"prefetches": X}
    assert counted(started.replace(":S(1)", "")).bytes == 2 * X


@pytest.mark.parametrize(
    ("attributes", "scope", "times"),
    [
        ('backend_config={"known_trip_count":{"n":"7"}}', "tokens", 7),
        ("", "tokens", 5),
        ("", "others", 1),
        ("", "tokens/while/body/others", 1),
    ],
)
def test_loops_count_as_often_as_they_run(attributes, scope, times):
    """Those of unknown length as often as their own scope says, and not that of an outer loop."""
    line = (
        "%t = (s32[], f32[64,128]{1,0}) tuple(%i, %x)\n  ROOT %f = (s32[], f32[64,128]{1,0}) "
        f'while(%t), condition=%ends, body=%body, metadata={{op_name="jit(f)/{scope}/while"}}, '
        f"{attributes}"
    )
    found = counted(line, trips={"tokens": 5.0})
    assert found.bytes == times * 2 * X
    assert [(move.times, move.kind) for move in found.largest] == [(times, "copies")]


def test_the_largest_come_first_with_their_line():
    """Equal ones of one line are one; frames of libraries are not ours."""
    place = 'metadata={op_name="jit(f)/attention/dot" stack_frame_id=2}'
    lines = "\n".join(
        f"  %d{i} = f32[64,64]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, {place}"
        for i in range(3)
    )
    found = counted(lines.strip() + "\n  ROOT %f = f32[3,128]{1,0} negate(%y)")
    first, second = found.largest
    assert (first.source, first.times, first.kind) == ("model/llama.py:12", 3, "products")
    assert first.bytes == 3 * (X + 64 * 64 * 4)
    assert (second.name, second.kind) == ("f", "element-wise")
    assert found.by_kind == {"products": first.bytes, "element-wise": 2 * 3 * ROW}
    attends = counted(
        lines.replace("attention/dot", "attend/dot").strip().replace("%d0", "ROOT %d0")
    )
    assert set(attends.by_kind) == {"attention"}


def programs():
    """Functions, their arguments, and the bytes that they cannot but move."""
    x, w = jnp.ones((256, 512)), jnp.ones((512, 512))
    size = np.prod(x.shape) * 4

    def repeated(x, w):
        def step(x, _):
            return jnp.sin(x) + w[:256], None

        return jax.lax.scan(step, x, length=6)[0]

    yield "element-wise", lambda x, w: jnp.sin(x) + 1, (x, w), 2 * size
    yield "transposed", lambda x, w: x.T, (x, w), 2 * size
    yield "sliced", lambda x, w: w[8:16] * 2, (x, w), 2 * 8 * 512 * 4
    yield "loop", repeated, (x, w), 6 * 3 * size
    yield "gathered", lambda x, w: w[jnp.arange(4) * 7] * 2, (x, w), 2 * 4 * 512 * 4


@pytest.mark.parametrize("case", list(programs()), ids=lambda case: case[0])
def test_programs_of_this_machine(case):
    """The compiler may add little: copies of a loop's first value, indices."""
    _, fn, arguments, size = case
    found = traffic_of(parse(jax.jit(fn).lower(*arguments).compile().as_text()))
    assert size <= found.bytes * 1.001
    assert found.bytes <= 1.15 * size


@pytest.mark.gpu_compile
@pytest.mark.parametrize("case", list(programs()), ids=lambda case: case[0])
def test_programs_of_gpus(case):
    _, fn, arguments, size = case
    text = compile_for_gpu(fn, *on_gpu(arguments, "h100")).as_text()
    assert size <= traffic_of(parse(text)).bytes <= 1.15 * size


@pytest.mark.gpu_compile
def test_an_update_of_a_donated_array_moves_the_update():
    x, y = on_gpu((jnp.ones((4096, 512)), jnp.ones((1, 512))), "a100")

    def put(x, y):
        return jax.lax.dynamic_update_slice(x, y * 2, (5, 0))

    donated = traffic_of(parse(compile_for_gpu(put, x, y, donate_argnums=0).as_text()))
    assert donated.bytes < 3 * 512 * 4
    kept = traffic_of(parse(compile_for_gpu(put, x, y).as_text()))
    assert kept.bytes >= 2 * 4096 * 512 * 4


def test_what_a_kernel_declares_is_in_the_program():
    def declared(x):
        with declared_bytes(12, 34):
            return jnp.sin(x)

    text = jax.jit(declared).lower(jnp.ones(4)).as_text()
    assert 'bytes_fixed = "12"' in text
    assert 'bytes_paged = "34"' in text
