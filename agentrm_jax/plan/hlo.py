"""The text of a compiled program (`Compiled.as_text()`) as records: XLA's scheduled HLO."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction.

    Attributes:
      name: Its name.
      shape: The shape of its result with layouts, as text.
      operation: For example `fusion`.
      operands: Names of the operands; the text in the brackets of a constant or parameter.
      attributes: The text after the operands.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """The path of scopes and of the operation of JAX that it comes from; may be empty."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def called(self) -> list[str]:
        """The names of the computations that it calls."""
        called = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            called += re.findall(r"%?([\w.\-]+)", branches)
        return called

    def attribute(self, name: str) -> str | None:
        """Returns the computation that an attribute names, such as `body`; None without it."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions: the entry, the body of a loop, a fusion.

    Attributes:
      name: Its name.
      instructions: By name, in the order of the schedule.
      root: The name of the instruction whose result is the computation's.
      entry: Whether the program begins here.
    """

    name: str
    instructions: Mapping[str, Instruction]
    root: str
    entry: bool

    @functools.cached_property
    def numbers(self) -> Mapping[str, float]:
        """The count of numbers in the result of each instruction."""
        return {
            name: float(sum(array.numbers for array in arrays(instruction.shape)))
            for name, instruction in self.instructions.items()
        }

    @functools.cached_property
    def ends(self) -> Mapping[str, Instruction]:
        """The instruction that waits for each asynchronous one, by the name of the latter."""
        return {
            name: instruction
            for instruction in self.instructions.values()
            if instruction.operation.endswith("-done")
            for name in instruction.operands
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    """A program.

    Attributes:
      computations: By name.
      sources: The file and line of each stack frame of the text, by its number.
    """

    computations: Mapping[str, Computation]
    sources: Mapping[int, str]

    @property
    def entry(self) -> Computation:
        """The computation that the program begins with."""
        return next(c for c in self.computations.values() if c.entry)

    def source(self, instruction: Instruction) -> str:
        """Returns the file and line that an instruction comes from; empty if it is not known."""
        if frame := re.search(r"\bstack_frame_id=(\d+)", instruction.attributes):
            return self.sources.get(int(frame[1]), "")
        file = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
        return f"{_shortened(file[1])}:{file[2]}" if file else ""


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def parse(text: str) -> Module:
    """Returns the program of a text."""
    computations: dict[str, Computation] = {}
    name, entry, root = "", False, ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, entry, root, instructions = head[2], bool(head[1]), "", {}
        elif line.startswith("}"):
            computations[name] = Computation(name, instructions, root, entry)
        elif match := _INSTRUCTION.match(line):
            instruction = _parsed(match[2], match[3])
            if instruction is not None:
                instructions[match[2]] = instruction
                root = match[2] if match[1] else root
    return Module(computations, _sources(text))


def _parsed(name: str, text: str) -> Instruction | None:
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
    return Instruction(
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


def _sources(text: str) -> dict[int, str]:
    """The file and line of each stack frame, from the tables at the beginning of a text.

    Of a frame and those that called it, the innermost one of this package.
    """
    tables: dict[str, dict[int, str]] = {}
    rows: dict[int, str] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables.setdefault(line, {})
        elif row := re.match(r"(\d+) (.*)$", line):
            rows[int(row[1])] = row[2]
        elif _HEAD.match(line):
            break
    files = {number: name.strip('"') for number, name in tables.get("FileNames", {}).items()}
    places: dict[int, str] = {}
    for number, row in tables.get("FileLocations", {}).items():
        fields = dict(re.findall(r"(\w+)=(\d+)", row))
        places[number] = f"{files.get(int(fields['file_name_id']), '')}:{fields['line']}"
    frames = {
        number: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}
        for number, row in tables.get("StackFrames", {}).items()
    }

    def source(number: int) -> str:
        chain, seen = [], set()
        while number in frames and number not in seen:
            seen.add(number)
            chain.append(places.get(frames[number]["file_location_id"], ""))
            number = frames[number].get("parent_frame_id", 0)
        ours = (place for place in chain if _PACKAGE in place)
        return _shortened(next(ours, chain[0] if chain else ""))

    return {number: source(number) for number in frames}


_PACKAGE = "/agentrm_jax/"


def _shortened(place: str) -> str:
    return place.rpartition(_PACKAGE)[2] if _PACKAGE in place else place.rpartition("/")[2]


_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|c\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """The shape of an array.

    Attributes:
      bits: Bits of a number.
      sizes: The size of each axis.
      layout: The text of its layout, such as `{1,0:T(8,128)S(1)}`.
    """

    bits: int
    sizes: tuple[int, ...]
    layout: str

    @property
    def numbers(self) -> int:
        """The count of its numbers."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        """The bytes of its numbers, without padding."""
        return self.bits * self.numbers / 8

    @property
    def on_chip(self) -> bool:
        """Whether it lies in a memory of the chip itself, such as a TPU's vector memory."""
        return bool(re.search(r"S\([1-9]\d*\)", self.layout))


@functools.cache
def arrays(shape: str) -> tuple[Array, ...]:
    """Returns the array of a shape, or all arrays of a tuple."""
    return tuple(
        Array(_bits(kind), tuple(int(size) for size in sizes.split(",") if size), layout)
        for kind, sizes, layout in _SHAPE.findall(shape)
    )


def _bits(kind: str) -> int:
    if kind == "pred" or kind.startswith("f8"):
        return 8
    return int(re.sub(r"\D", "", kind))


def num_bytes(shape: str) -> float:
    """Returns the bytes of an array, or of all arrays of a tuple, wherever they lie."""
    return sum(array.bytes for array in arrays(shape))


def groups_of(attributes: str) -> list[list[int]]:
    """Returns the groups of devices that exchange with each other; the text has three forms.

    Args:
      attributes: Of a collective.

    Returns:
      Numbers of devices in the order of the mesh; none if the text has no groups.
    """
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = re.findall(r"'(\w+)'", named[2])
        numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        order = [name for name in sizes if name not in axes] + axes
        numbers = numbers.transpose([list(sizes).index(name) for name in order])
        return numbers.reshape(-1, math.prod(sizes[name] for name in axes)).tolist()
    strided = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    )
    if strided:
        shape = [int(size) for size in strided[3].split(",")]
        numbers = np.arange(math.prod(shape)).reshape(shape)
        if strided[4]:
            numbers = numbers.transpose([int(axis) for axis in strided[4].split(",")])
        return numbers.reshape(int(strided[1]), int(strided[2])).tolist()
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return [
            [int(number) for number in group.split(",") if number]
            for group in re.findall(r"\{([\d,]*)\}", listed[1])
        ]
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        return [
            [int(number) for number in pair.split(",")]
            for pair in re.findall(r"\{([\d,]+)\}", pairs[1])
        ]
    return []


def trips(loop: Instruction, outer: Computation, module: Module) -> int | None:
    """Returns the number of iterations of a loop that counts upwards; None if the text lacks it.

    Args:
      loop: A `while`.
      outer: The computation that holds it.
      module: The program.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.attribute("condition") or ""]
    body = module.computations[loop.attribute("body") or ""]
    end = condition.instructions[condition.root]
    if end.operation != "compare" or "direction=LT" not in end.attributes:
        return None
    counter, limit = (condition.instructions[name] for name in end.operands)
    index, most = _element(counter), _constant(limit)
    if index is None or most is None:
        return None
    stepped = body.instructions[body.instructions[body.root].operands[index]]
    if stepped.operation != "add":
        return None
    numbers = [_constant(body.instructions[name]) for name in stepped.operands]
    step = next((number for number in numbers if number), 1)
    return max(1, math.ceil((most - _initial(loop, index, outer)) / step))


def _initial(loop: Instruction, index: int, outer: Computation) -> int:
    """The first value of the counter; 0 if the text lacks it."""
    state = outer.instructions.get(loop.operands[0])
    if state is None or state.operation != "tuple":
        return 0
    first = outer.instructions.get(state.operands[index])
    return (_constant(first) or 0) if first is not None else 0


def _element(instruction: Instruction) -> int | None:
    """The index of a `get-tuple-element`, None for other operations."""
    match = re.search(r"index=(\d+)", instruction.attributes)
    return int(match[1]) if match and instruction.operation == "get-tuple-element" else None


def _constant(instruction: Instruction) -> int | None:
    """The value of a whole constant, None for other operations."""
    if instruction.operation != "constant":
        return None
    text = instruction.operands[0] if instruction.operands else ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def walk(module: Module) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yields every instruction with its computation and how often it runs.

    A loop whose number of iterations the text lacks counts once; so does every branch.
    """

    def inner(
        computation: Computation, times: int
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            inside = times
            if instruction.operation == "while":
                inside *= trips(instruction, computation, module) or 1
            for name in instruction.called:
                if name in module.computations:
                    yield from inner(module.computations[name], inside)

    yield from inner(module.entry, 1)
