"""What a compiled program needs: memory, and what its devices exchange.

XLA's own counts (`cost_analysis`) take the body of a loop once. Here loops are read from the text
of the program, and what is inside counts as often as it runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

KINDS: tuple[str, ...] = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on each device.

    Attributes:
      arguments: What the program is handed.
      outputs: What it gives back, without what takes the place of arguments.
      temporaries: What it needs between.
      code: The program itself.
      peak: The most of all that at one time, the program not counted; less than the sum, since
        some of it takes the place of other parts. It is what the compiler compares with the device.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    peak: int

    @property
    def total(self) -> int:
        return self.peak + self.code


def memory_of(compiled: Any) -> Memory:
    """Memory of a `jax.stages.Compiled`."""
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    added_up = found.argument_size_in_bytes + outputs + found.temp_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=outputs,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        peak=getattr(found, "peak_memory_in_bytes", 0) or added_up,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Collectives of one kind.

    Attributes:
      count: How many run.
      bytes: What arrives at each device, all of them together.
    """

    count: int
    bytes: float


def exchanges_of(text: str) -> dict[str, Exchange]:
    """The collectives of a compiled program, by kind.

    A loop whose end is only known at run time counts once.

    Args:
      text: `Compiled.as_text()`.
    """
    counts, sizes = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0)
    for kind, size, times in _collectives(_computations(text)):
        counts[kind] += times
        sizes[kind] += size * times
    return {kind: Exchange(count=counts[kind], bytes=sizes[kind]) for kind in KINDS if counts[kind]}


@dataclasses.dataclass(frozen=True, slots=True)
class _Instruction:
    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str  # behind the operands: attributes


@dataclasses.dataclass(frozen=True, slots=True)
class _Computation:
    instructions: Mapping[str, _Instruction]
    root: str
    entry: bool


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def _computations(text: str) -> dict[str, _Computation]:
    found: dict[str, _Computation] = {}
    name, entry, root = "", False, ""
    instructions: dict[str, _Instruction] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, entry, root, instructions = head[2], bool(head[1]), "", {}
        elif line.startswith("}"):
            found[name] = _Computation(instructions, root, entry)
        elif match := _INSTRUCTION.match(line):
            instruction = _parsed(match[2], match[3])
            if instruction is not None:
                instructions[match[2]] = instruction
                root = match[2] if match[1] else root
    return found


def _parsed(name: str, text: str) -> _Instruction | None:
    operation = _OPERATION.search(text if text.startswith("(") else f" {text}", _end_of_shape(text))
    if operation is None:
        return None
    shift = 0 if text.startswith("(") else 1  # a blank was put before it
    begin = operation.end() - shift
    depth, end = 1, begin
    while depth and end < len(text):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    operands = re.findall(r"%([\w.\-]+)", text[begin : end - 1])
    constant = () if operands or operation[1] not in ("constant", "parameter") else (
        text[begin : end - 1],
    )  # fmt: skip
    return _Instruction(
        name, text[: operation.start()], operation[1], tuple(operands) or constant, text[end:]
    )


def _end_of_shape(text: str) -> int:
    """Where the shape ends that stands before the operation; tuples nest."""
    if not text.startswith("("):
        return 0
    depth = 0
    for at, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return at
    return len(text)


def _collectives(computations: Mapping[str, _Computation]) -> Iterator[tuple[str, float, int]]:
    """(kind, bytes that arrive, how often it runs)."""
    entry = next(c for c in computations.values() if c.entry)

    def walk(computation: _Computation, times: int) -> Iterator[tuple[str, float, int]]:
        for instruction in computation.instructions.values():
            kind = instruction.operation.removesuffix("-start")
            if kind in KINDS:
                yield kind, _arriving(instruction, kind, computation), times
                continue  # what it calls is how two numbers become one
            inside = times
            if instruction.operation == "while":
                inside *= _trips(instruction, computation, computations)
            called = _CALLED.findall(instruction.rest)
            for branches in _BRANCHES.findall(instruction.rest):
                called += re.findall(r"%?([\w.\-]+)", branches)
            for name in called:
                if name in computations:
                    yield from walk(computations[name], inside)

    yield from walk(entry, 1)


def _arriving(instruction: _Instruction, kind: str, computation: _Computation) -> float:
    operands = [computation.instructions.get(name) for name in instruction.operands]
    size = float(sum(_bytes(operand.shape) for operand in operands if operand is not None))
    devices = _group_size(instruction.rest)
    if kind == "all-gather":
        return size * (devices - 1)
    if kind == "all-reduce":
        return 2 * size * (devices - 1) / devices
    if kind in ("reduce-scatter", "all-to-all"):
        return size * (devices - 1) / devices
    return size


_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|[su]4)\[([\d,]*)\]")


def _bytes(shape: str) -> int:
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        bits = 8 if kind == "pred" or kind.startswith("f8") else int(re.sub(r"\D", "", kind))
        total += bits * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def _group_size(rest: str) -> int:
    """Devices that exchange with each other. The text has three ways to say it."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'", named[2])
        return math.prod(int(sizes[axis]) for axis in axes)
    if strided := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(strided[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    return 1


def _trips(
    loop: _Instruction, around: _Computation, computations: Mapping[str, _Computation]
) -> int:
    """How often a loop that counts upwards runs; 1 where that is not told by the text."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = computations[_attribute(loop.rest, "condition")]
    body = computations[_attribute(loop.rest, "body")]
    end = condition.instructions[condition.root]
    if end.operation != "compare" or "direction=LT" not in end.rest:
        return 1
    counter, limit = (condition.instructions[name] for name in end.operands)
    index = _element(counter)
    most = _constant(limit)
    if index is None or most is None:
        return 1
    stepped = body.instructions[body.instructions[body.root].operands[index]]
    if stepped.operation != "add":
        return 1
    step = [_constant(body.instructions[name]) for name in stepped.operands]
    step = next((number for number in step if number), 1)
    start = _initial(loop, index, around)
    return max(1, -(-(most - start) // step))


def _initial(loop: _Instruction, index: int, around: _Computation) -> int:
    """Where the counter begins; 0 where that is not told."""
    state = around.instructions.get(loop.operands[0])
    if state is None or state.operation != "tuple":
        return 0
    first = around.instructions.get(state.operands[index])
    return (_constant(first) or 0) if first is not None else 0


def _attribute(rest: str, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", rest)
    assert found is not None, rest
    return found[1]


def _element(instruction: _Instruction) -> int | None:
    found = re.search(r"index=(\d+)", instruction.rest)
    return int(found[1]) if found and instruction.operation == "get-tuple-element" else None


def _constant(instruction: _Instruction) -> int | None:
    if instruction.operation != "constant":
        return None
    text = instruction.operands[0] if instruction.operands else ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None
