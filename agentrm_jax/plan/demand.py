"""The needs of an instruction of a compiled program: numbers and bytes of its operands.

A fusion computes its result from what of its operands the result needs: a slice of an operand reads
the slice, a sum reads everything. Needs are followed from the result back to the operands.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from agentrm_jax.plan.hlo import Array, Computation, Instruction, Module, arrays

FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
     "replica-id", "add-dependency", "opt-barrier", "optimization-barrier", "domain")
)  # fmt: skip
"""Operations that move nothing."""

_SLICES = ("slice", "dynamic-slice", "gather")
_WHOLE = ("dot", "convolution", "ragged-dot", "sort", "custom-call", "reduce-window", "fusion")
_RENAMES = ("bitcast", "reshape")


def instruction_moves(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Returns the bytes that an instruction outside of fusions reads and writes.

    An asynchronous one counts where it starts.
    """
    operation = instruction.operation
    if operation in FREE or operation.endswith(("-done", "-update")):
        return 0.0
    result = _result(instruction, computation)
    operands = [computation.instructions.get(name) for name in instruction.operands]
    needs = _needs(instruction, sum(a.numbers for a in result), 1.0, computation.numbers)
    if operation.startswith("scatter") and _replaces(instruction, module):
        needs[0] = 0.0
    read, seen = 0.0, set()
    for operand, need in zip(operands, needs, strict=True):
        if operand is None or operand.name in seen:
            continue
        seen.add(operand.name)
        read += _bytes_of(need, arrays(operand.shape))
    update = _update(instruction)
    if update is not None:
        written = operands[update]
        return read + (0.0 if written is None else _bytes_in_memory(arrays(written.shape)))
    return read + _bytes_in_memory(result)


def fusion_moves(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Returns the bytes that a fusion reads and writes."""
    inner = module.computations[instruction.attribute("calls") or ""]
    roots, written = _roots(inner), 0.0
    needed: dict[str, float] = defaultdict(float)
    results = arrays(instruction.shape)
    for root, result in zip(roots, results, strict=False):
        changed = _in_place(root, inner, module)
        if changed is None:
            needed[root.name] += result.numbers
            written += 0.0 if result.on_chip else result.bytes
            continue
        for name, numbers in changed.items():
            needed[name] += numbers
        update = inner.instructions[next(iter(changed))]
        written += 0.0 if result.on_chip else sum(a.bytes for a in arrays(update.shape))
    _follow(inner, needed)
    read = 0.0
    for parameter in inner.instructions.values():
        if parameter.operation != "parameter":
            continue
        operand = computation.instructions.get(instruction.operands[int(parameter.operands[0])])
        if operand is not None:
            read += _bytes_of(needed[parameter.name], arrays(operand.shape))
    return read + written


def _roots(computation: Computation) -> list[Instruction]:
    """The instructions that make the results of a fusion."""
    root = computation.instructions[computation.root]
    if root.operation != "tuple":
        return [root]
    return [computation.instructions[name] for name in root.operands]


def _in_place(
    root: Instruction, computation: Computation, module: Module
) -> dict[str, float] | None:
    """Returns the needs of a result that is an operand of the fusion with a part replaced.

    The part comes first. None for other results. The rest of the operand stays in memory as it is.
    """
    root = _renamed(root, computation)
    update = _update(root)
    if update is None:
        return None
    base = _renamed(computation.instructions[root.operands[0]], computation)
    if base.operation != "parameter":
        return None
    sizes = computation.numbers
    others = [root.operands[update], *(n for n in root.operands[1:] if n != root.operands[update])]
    needs = {name: sizes.get(name, 0.0) for name in others}
    if root.operation == "scatter" and not _replaces(root, module):
        needs[base.name] = sizes.get(root.operands[update], 0.0)
    return needs


def _replaces(scatter: Instruction, module: Module) -> bool:
    """Whether a scatter writes its updates without reading what was there before."""
    combiner = module.computations.get(scatter.attribute("to_apply") or "")
    if combiner is None:
        return False
    return combiner.instructions[combiner.root].operation == "parameter"


def _renamed(instruction: Instruction, computation: Computation) -> Instruction:
    """The instruction whose result another one only gives another shape."""
    while instruction.operation in _RENAMES:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _update(instruction: Instruction) -> int | None:
    """The operand that an update in place writes; None for other instructions."""
    return {"dynamic-update-slice": 1, "scatter": 2}.get(
        instruction.operation.removesuffix("-start")
    )


def _follow(computation: Computation, needed: dict[str, float]) -> None:
    """Adds to `needed` what the instructions of a fusion need of each other, last one first."""
    sizes = computation.numbers
    for instruction in reversed(list(computation.instructions.values())):
        need = min(needed[instruction.name], sizes[instruction.name])
        needed[instruction.name] = need
        if not need or instruction.operation in ("parameter", "constant"):
            continue
        part = need / sizes[instruction.name]
        needs = _needs(instruction, need, part, sizes)
        # An operand that is named twice is read once.
        for name, more in dict(zip(instruction.operands, needs, strict=True)).items():
            needed[name] = min(needed[name] + more, sizes.get(name, 0.0))


def _needs(
    instruction: Instruction, need: float, part: float, sizes: Mapping[str, float]
) -> list[float]:
    """The numbers of each operand that an instruction needs for some numbers of its result.

    Args:
      instruction: The instruction.
      need: The numbers of its result.
      part: Their fraction of all.
      sizes: The numbers of each operand.
    """
    operation = instruction.operation.removesuffix("-start")
    whole = [sizes.get(name, 0.0) for name in instruction.operands]
    if operation in _SLICES:
        return [min(need, whole[0]), *(part * size for size in whole[1:])]
    if operation == "dynamic-update-slice":
        return [0.0 if part == 1.0 else min(need, whole[0]), *whole[1:]]
    if operation == "scatter":
        return [min(whole[0], whole[2]), *whole[1:]]
    if operation in _WHOLE:
        return whole
    if operation in ("broadcast", "pad"):
        return [min(need, size) for size in whole]
    return [part * size for size in whole]


def _result(instruction: Instruction, computation: Computation) -> tuple[Array, ...]:
    """The arrays of a result, without workspaces and what an asynchronous instruction holds."""
    result = arrays(instruction.shape)
    if instruction.name in computation.ends:
        return arrays(computation.ends[instruction.name].shape)
    if re.search(r'custom_call_target="__cu\w+\$', instruction.attributes):
        return result[:1]  # the others are workspaces
    return result


def _bytes_of(numbers: float, held: tuple[Array, ...]) -> float:
    """The bytes of some numbers of arrays; zero of those on the chip itself."""
    total = sum(array.numbers for array in held)
    return _bytes_in_memory(held) * min(1.0, numbers / total) if total else 0.0


def _bytes_in_memory(held: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in held if not array.on_chip)
