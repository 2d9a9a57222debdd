"""Memory and collectives of a compiled program.

XLA's own counts (`cost_analysis`) include the body of a loop only once. Here loops are read from
the text of the program, and a collective in a loop counts once for each iteration.
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
      arguments: Arguments.
      outputs: Results, without those that reuse the memory of donated arguments.
      temporaries: Intermediate values.
      code: The program itself.
      peak: Most bytes of arguments, outputs and temporaries at one time, which share memory. The
        compiler compares this number with the device.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    peak: int

    @property
    def total(self) -> int:
        """Peak and code together."""
        return self.peak + self.code


def memory_of(compiled: Any) -> Memory:
    """Returns the memory of a `jax.stages.Compiled`."""
    sizes = compiled.memory_analysis()
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    total = sizes.argument_size_in_bytes + outputs + sizes.temp_size_in_bytes
    return Memory(
        arguments=sizes.argument_size_in_bytes,
        outputs=outputs,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        peak=getattr(sizes, "peak_memory_in_bytes", 0) or total,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Collectives of one kind.

    Attributes:
      count: Number of executions.
      bytes: Bytes that arrive at each device, in all of them together.
    """

    count: int
    bytes: float


def exchanges_of(text: str) -> dict[str, Exchange]:
    """Returns the collectives of a compiled program, by kind.

    A loop whose number of iterations is only known at run time counts once.

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
    attributes: str


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
    """The computations of a program's text, by name."""
    computations: dict[str, _Computation] = {}
    name, entry, root = "", False, ""
    instructions: dict[str, _Instruction] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, entry, root, instructions = head[2], bool(head[1]), "", {}
        elif line.startswith("}"):
            computations[name] = _Computation(instructions, root, entry)
        elif match := _INSTRUCTION.match(line):
            instruction = _parsed(match[2], match[3])
            if instruction is not None:
                instructions[match[2]] = instruction
                root = match[2] if match[1] else root
    return computations


def _parsed(name: str, text: str) -> _Instruction | None:
    operation = _OPERATION.search(text if text.startswith("(") else f" {text}", _end_of_shape(text))
    if operation is None:
        return None
    shift = 0 if text.startswith("(") else 1  # for the blank in front of it
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
    """The end of the shape in front of the operation; shapes of tuples nest."""
    if not text.startswith("("):
        return 0
    depth = 0
    for position, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return position
    return len(text)


def _collectives(computations: Mapping[str, _Computation]) -> Iterator[tuple[str, float, int]]:
    """Yields kind, bytes that arrive at a device, and number of executions of each collective."""
    entry = next(c for c in computations.values() if c.entry)

    def walk(computation: _Computation, times: int) -> Iterator[tuple[str, float, int]]:
        for instruction in computation.instructions.values():
            kind = instruction.operation.removesuffix("-start")
            if kind in KINDS:
                yield kind, _arriving(instruction, kind, computation), times
                continue  # the computation that it calls only combines two numbers
            inside = times
            if instruction.operation == "while":
                inside *= _trips(instruction, computation, computations)
            called = _CALLED.findall(instruction.attributes)
            for branches in _BRANCHES.findall(instruction.attributes):
                called += re.findall(r"%?([\w.\-]+)", branches)
            for name in called:
                if name in computations:
                    yield from walk(computations[name], inside)

    yield from walk(entry, 1)


def _arriving(instruction: _Instruction, kind: str, computation: _Computation) -> float:
    """The bytes that arrive at each device in one execution of a collective."""
    operands = [computation.instructions.get(name) for name in instruction.operands]
    size = float(sum(_bytes(operand.shape) for operand in operands if operand is not None))
    devices = _group_size(instruction.attributes)
    if kind == "all-gather":
        return size * (devices - 1)
    if kind == "all-reduce":
        return 2 * size * (devices - 1) / devices
    if kind in ("reduce-scatter", "all-to-all"):
        return size * (devices - 1) / devices
    return size


_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|[su]4)\[([\d,]*)\]")


def _bytes(shape: str) -> int:
    """The bytes of an array, or of all arrays of a tuple."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        bits = 8 if kind == "pred" or kind.startswith("f8") else int(re.sub(r"\D", "", kind))
        total += bits * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def _group_size(attributes: str) -> int:
    """The number of devices that exchange with each other; the text has three forms for it."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'", named[2])
        return math.prod(int(sizes[axis]) for axis in axes)
    if strided := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(strided[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    return 1


def _trips(
    loop: _Instruction, outer: _Computation, computations: Mapping[str, _Computation]
) -> int:
    """The number of iterations of a loop that counts upwards; 1 if the text lacks it."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = computations[_attribute(loop.attributes, "condition")]
    body = computations[_attribute(loop.attributes, "body")]
    end = condition.instructions[condition.root]
    if end.operation != "compare" or "direction=LT" not in end.attributes:
        return 1
    counter, limit = (condition.instructions[name] for name in end.operands)
    index = _element(counter)
    most = _constant(limit)
    if index is None or most is None:
        return 1
    stepped = body.instructions[body.instructions[body.root].operands[index]]
    if stepped.operation != "add":
        return 1
    numbers = [_constant(body.instructions[name]) for name in stepped.operands]
    step = next((number for number in numbers if number), 1)
    start = _initial(loop, index, outer)
    return max(1, math.ceil((most - start) / step))


def _initial(loop: _Instruction, index: int, outer: _Computation) -> int:
    """The first value of the counter; 0 if the text lacks it."""
    state = outer.instructions.get(loop.operands[0])
    if state is None or state.operation != "tuple":
        return 0
    first = outer.instructions.get(state.operands[index])
    return (_constant(first) or 0) if first is not None else 0


def _attribute(attributes: str, name: str) -> str:
    match = re.search(rf"\b{name}=%?([\w.\-]+)", attributes)
    assert match is not None, attributes
    return match[1]


def _element(instruction: _Instruction) -> int | None:
    """The index of a `get-tuple-element`, None for other operations."""
    match = re.search(r"index=(\d+)", instruction.attributes)
    return int(match[1]) if match and instruction.operation == "get-tuple-element" else None


def _constant(instruction: _Instruction) -> int | None:
    """The value of a whole constant, None for other operations."""
    if instruction.operation != "constant":
        return None
    text = instruction.operands[0] if instruction.operands else ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None
