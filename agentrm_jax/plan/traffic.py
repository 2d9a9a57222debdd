"""Bytes that a compiled program moves between memory and chip, counted from its text.

Every instruction of the scheduled program reads its operands from memory and writes its result;
inside of a fusion nothing moves. Slices and gathers read what they return, not their whole operand,
and an update in place moves the update alone. A kernel declares what it moves (`declared_bytes`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.plan.demand import fusion_moves, instruction_moves
from agentrm_jax.plan.hlo import Computation, Instruction, Module, arrays, trips
from agentrm_jax.plan.programs import KINDS as COLLECTIVES

KINDS = (
    "products", "attention", "prefetches", "copies", "gathers", "element-wise", "collectives",
)  # fmt: skip
"""What instructions do. Copies are transpositions, concatenations and conversions as well.
Prefetches load a TPU's vector memory while it computes: what reads from there moves nothing."""

MOST_LISTED = 10
"""Largest instructions that a profile lists."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Assumed:
    """The numbers that the text of a program leaves open, by the named scope of an operation.

    Attributes:
      trips: Iterations of the loops of a scope; a loop of unknown length in no scope counts once.
      filled: The fraction of the page tables of a scope that holds tokens; 1 for other scopes.
    """

    trips: Mapping[str, float] = dataclasses.field(default_factory=dict)
    filled: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """An instruction and what it moves.

    Attributes:
      name: Its name in the program.
      kind: One of `KINDS`.
      bytes: Bytes read and written by all executions together.
      times: How often it runs.
      source: The file and line that it comes from; empty if they are not in the program.
      scope: The path of scopes and of the operation of JAX that it comes from.
    """

    name: str
    kind: str
    bytes: float
    times: float
    source: str
    scope: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The bytes that one execution of a program moves on each device.

    Attributes:
      bytes: All together.
      by_kind: By kind of instruction.
      largest: The instructions that move most, the largest first. Instructions of unrolled layers
        that come from the same line and move equally much are one, with their executions added.
    """

    bytes: float
    by_kind: Mapping[str, float]
    largest: Sequence[Moved]


def traffic_of(module: Module, assumed: Assumed | None = None) -> Traffic:
    """Returns the bytes that a program moves.

    Args:
      module: The program, from `hlo.parse`.
      assumed: Lengths of loops and fills of page tables.
    """
    moves = list(_moves(module, module.entry, 1.0, assumed or Assumed()))
    by_kind: dict[str, float] = defaultdict(float)
    for move in moves:
        by_kind[move.kind] += move.bytes
    largest = sorted(_joined(moves), key=lambda move: -move.bytes)[:MOST_LISTED]
    return Traffic(
        bytes=sum(by_kind.values()),
        by_kind={kind: by_kind[kind] for kind in KINDS if by_kind[kind]},
        largest=largest,
    )


def _joined(moves: Sequence[Moved]) -> list[Moved]:
    """The moves, with those of equal instructions in different layers added up."""
    joined: dict[tuple[str, str, float], Moved] = {}
    for move in moves:
        key = move.source or move.scope, move.kind, round(move.bytes / max(move.times, 1e-9))
        if key in joined:
            move = dataclasses.replace(
                joined[key],
                bytes=joined[key].bytes + move.bytes,
                times=joined[key].times + move.times,
            )
        joined[key] = move
    return list(joined.values())


def _moves(
    module: Module, computation: Computation, times: float, assumed: Assumed
) -> Iterator[Moved]:
    """Yields what the instructions of a computation move that runs some times."""
    for instruction in computation.instructions.values():
        operation = instruction.operation
        inner = [name for name in instruction.called if name in module.computations]
        if operation == "while":
            known = trips(instruction, computation, module)
            # Scopes outside of the loop that holds this one are those of other loops.
            scopes = instruction.op_name.rpartition("/body/")[2]
            count = known or _of_scope(scopes, assumed.trips, 1.0)
            for name in inner:
                yield from _moves(module, module.computations[name], times * count, assumed)
        elif operation == "conditional":
            branches = [
                list(_moves(module, module.computations[name], times, assumed)) for name in inner
            ]
            yield from max(branches, key=lambda moves: sum(move.bytes for move in moves))
        elif operation in ("call", "async-start"):
            for name in inner:
                yield from _moves(module, module.computations[name], times, assumed)
        elif size := _bytes(instruction, computation, module, assumed):
            main = _main(instruction, module)
            scope = main.op_name
            if not scope and main.operands:  # a copy of the compiler's: the name of what is copied
                operand = computation.instructions.get(main.operands[0])
                scope = operand.op_name if operand is not None else ""
            yield Moved(
                name=instruction.name,
                kind=kind_of(instruction, computation, module),
                bytes=size * times,
                times=times,
                source=module.source(main),
                scope=scope,
            )


def _bytes(
    instruction: Instruction, computation: Computation, module: Module, assumed: Assumed
) -> float:
    """The bytes that one execution of an instruction moves."""
    if instruction.operation == "fusion":
        return fusion_moves(instruction, computation, module)
    if instruction.operation == "custom-call":
        declared = declared_bytes(instruction)
        if declared is not None:
            fixed, paged = declared
            return fixed + paged * _of_scope(instruction.op_name, assumed.filled, 1.0)
        if re.search(r'target="(AllocateBuffer|Sharding|\w*Barrier)"', instruction.attributes):
            return 0.0
    return instruction_moves(instruction, computation, module)


def declared_bytes(instruction: Instruction) -> tuple[float, float] | None:
    """Returns the bytes that a kernel declares: fixed ones, and those of the pages of full tables.

    None if the kernel declares nothing. Our kernels declare it in two attributes, JAX's kernels for
    TPUs in their cost estimate.
    """
    declared = dict(re.findall(r'\b(bytes_fixed|bytes_paged)="(\d+)"', instruction.attributes))
    if declared:
        return float(declared.get("bytes_fixed", 0)), float(declared.get("bytes_paged", 0))
    estimate = re.search(r'"bytes_accessed":"?(\d+)', instruction.attributes)
    return (float(estimate[1]), 0.0) if estimate else None


def _of_scope(op_name: str, values: Mapping[str, float], otherwise: float) -> float:
    """The value of the innermost scope that has one."""
    for scope in reversed(op_name.split("/")):
        if scope in values:
            return values[scope]
    return otherwise


def _main(instruction: Instruction, module: Module) -> Instruction:
    """The instruction whose source stands for another one: for a fusion its product, or its root if
    the fusion itself has no source."""
    name = instruction.attribute("calls") if instruction.operation == "fusion" else None
    if name is None:
        return instruction
    computation = module.computations[name]
    for inner in computation.instructions.values():
        if inner.operation in _PRODUCTS and inner.op_name:
            return inner
    return instruction if instruction.op_name else computation.instructions[computation.root]


_PRODUCTS = ("dot", "convolution", "ragged-dot")
_GATHERS = ("gather", "scatter")
_MOVEMENTS = {
    "bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "copy-start",
    "dynamic-slice", "dynamic-update-slice", "get-tuple-element", "iota", "pad", "parameter",
    "reshape", "reverse", "slice", "slice-start", "dynamic-slice-start",
    "dynamic-update-slice-start", "transpose", "tuple",
}  # fmt: skip
_INDEXING = {
    "add",
    "and",
    "compare",
    "select",
    "subtract",
    "multiply",
    "clamp",
    "maximum",
    "minimum",
}


def kind_of(instruction: Instruction, computation: Computation, module: Module) -> str:
    """Returns the kind of an instruction, one of `KINDS`."""
    operation = instruction.operation.removesuffix("-start")
    end = computation.ends.get(instruction.name)
    if end is not None and operation in _MOVEMENTS and arrays(end.shape)[0].on_chip:
        return "prefetches"
    if operation in COLLECTIVES or operation.startswith("collective"):
        return "collectives"
    inner = list(_operations(instruction, module))
    of_attention = bool(re.search(r"\battend\b", _main(instruction, module).op_name))
    if operation == "custom-call":
        return "attention" if of_attention else "products"
    if any(each.operation in _PRODUCTS for each in inner):
        return "attention" if of_attention else "products"
    if any(each.operation in _GATHERS for each in inner):
        return "gathers"
    if all(
        each.operation in _MOVEMENTS or (each.operation in _INDEXING and _is_index(each))
        for each in inner
    ):
        return "copies"
    return "attention" if of_attention else "element-wise"


def _is_index(instruction: Instruction) -> bool:
    """Whether an instruction computes whole numbers or truth values, as indices and masks are."""
    return bool(re.match(r"(pred|[su]\d+)\[\d{0,3}\]", instruction.shape))


def _operations(instruction: Instruction, module: Module) -> Iterator[Instruction]:
    """The instructions of a fusion and of fusions in it; another instruction itself."""
    name = instruction.attribute("calls") if instruction.operation == "fusion" else None
    if name is None:
        yield instruction
        return
    for inner in module.computations[name].instructions.values():
        yield from _operations(inner, module)
