"""Reads the text of a compiled XLA program: its instructions, and how many times each computation runs."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BEGINS = re.compile(r"^ +(ROOT )?%?[\w.\-]+ = ")
_SPACE = re.compile(r"S\(\d+\)")


class Shape(NamedTuple):
    """One array of a program.

    Attributes:
        dtype: XLA's name, such as bf16.
        dims: its dimensions on one device.
        near: whether it is in a memory on the chip itself (or on the host), not in the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    near: bool

    @property
    def size(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of its elements, without padding."""
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = _BITS.get(self.dtype, int(digits.group(1)) if digits else 0)
        return -(-self.size * bits // 8)


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: unique in its computation.
        opcode: XLA's name of the operation.
        shapes: its results; several if it returns a tuple.
        operands: the names of its operands; of a parameter and a constant, the text in its parentheses.
        attributes: the rest of its line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute in braces or without, or ""."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found.group(1).strip("{}") if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, and the name of the one that it returns."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @functools.cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """Returns the instructions that read each one, by its name."""
        found: dict[str, list[Instruction]] = {}
        for each in self.instructions.values():
            for name in dict.fromkeys(each.operands) if each.opcode not in ("parameter", "constant") else ():
                found.setdefault(name, []).append(each)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Returns the names of the parameters by their numbers."""
        return {int(x.operands[0]): x.name for x in self.instructions.values() if x.opcode == "parameter"}

    def parameter(self, number: int) -> str:
        """Returns the name of a parameter."""
        return self.parameters[number]

    def shapes(self, instruction: Instruction) -> list[Shape]:
        """Returns the shapes of the operands of one of its instructions."""
        known = self.instructions
        return [shape for name in instruction.operands if name in known for shape in known[name].shapes]


class Use(NamedTuple):
    """How a computation is used.

    Attributes:
        computation: the computation.
        times: the number of times that one execution of the program runs it; of branches, each counts as taken.
        fused: whether it is inside a fusion, so that its intermediate results are not in main memory.
    """

    computation: Computation
    times: int
    fused: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the name of the first one.
    """

    computations: dict[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Program:
        """Returns the program of the text that `jax.stages.Compiled.as_text` returns."""
        computations: dict[str, Computation] = {}
        entry, name, root, instructions = "", "", "", {}
        for line in _lines(text):
            if header := _HEADER.match(line):
                name, root, instructions = header.group(2), "", {}
                entry = name if header.group(1) else entry
            elif line == "}":
                computations[name] = Computation(name, instructions, root)
                name = ""
            elif name and _BEGINS.match(line):
                made = _instruction(_COMMENT.sub("", line).strip())
                instructions[made.name] = made
                root = made.name if line.lstrip().startswith("ROOT ") or not root else root
        return cls(computations, entry)

    @functools.cached_property
    def uses(self) -> tuple[Use, ...]:
        """Returns every computation that runs; one that runs both fused and not is listed twice."""
        times: collections.Counter[tuple[str, bool]] = collections.Counter()

        def visit(name: str, count: int, fused: bool) -> None:
            times[name, fused] += count
            for instruction in self.computations[name].instructions.values():
                for called, repeats in self._called(instruction, self.computations[name]):
                    visit(called, count * repeats, fused or instruction.opcode == "fusion")

        visit(self.entry, 1, False)
        return tuple(Use(self.computations[name], count, fused) for (name, fused), count in times.items())

    def _called(self, instruction: Instruction, around: Computation) -> Iterator[tuple[str, int]]:
        """Yields the computations that an instruction runs, and how many times."""
        named = dict(_CALLED.findall(instruction.attributes))
        if instruction.opcode == "while":
            yield named["body"], self.trips(instruction, around)
        elif instruction.opcode == "call":
            yield named["to_apply"], 1
        elif instruction.opcode in ("fusion", "async-start") and "calls" in named:
            yield named["calls"], 1
        elif instruction.opcode == "conditional":
            branches = _BRANCHES.search(instruction.attributes)
            names = re.findall(r"[\w.\-]+", branches.group(1)) if branches else ()
            for name in names or (named["true_computation"], named["false_computation"]):
                yield name, 1

    def trips(self, loop: Instruction, around: Computation) -> int:
        """Returns the number of iterations of a loop: the one that XLA knows, or that of a loop which counts up.

        XLA unrolls some loops, which then count in steps of 2. A loop whose limit, step or start is not a constant
        counts as one iteration from there.

        Args:
            loop: the instruction.
            around: the computation that it is in.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known.group(1))
        called = dict(_CALLED.findall(loop.attributes))
        condition, body = self.computations[called["condition"]], self.computations[called["body"]]
        compared = condition.instructions[condition.root]
        sides = [condition.instructions[n] for n in compared.operands if n in condition.instructions]
        limits = [limit for x in sides if (limit := _number(condition, x.name)) is not None]
        counters = [int(x.attribute("index")) for x in sides if x.opcode == "get-tuple-element"]
        if compared.attribute("direction") != "LT" or len(limits) != 1 or len(counters) != 1:
            return 1
        results = body.instructions[body.root].operands
        following = body.instructions.get(results[counters[0]]) if len(results) > counters[0] else None
        steps = [_number(body, n) for n in following.operands] if following and following.opcode == "add" else []
        step = next((n for n in steps if n), 1)
        given = around.instructions.get(loop.operands[0])
        begins = _number(around, given.operands[counters[0]]) if given and given.opcode == "tuple" else 0
        return max(1, -(-(limits[0] - (begins or 0)) // step))


def _number(computation: Computation, name: str) -> int | None:
    """Returns the whole number that an instruction is, also as a copy of a constant, or None."""
    found = computation.instructions.get(name)
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = computation.instructions.get(found.operands[0])
    if found is None or found.opcode != "constant" or not found.operands[0].lstrip("-").isdigit():
        return None
    return int(found.operands[0])


def _lines(text: str) -> Iterator[str]:
    """Yields the lines of a program; an instruction whose attributes have line breaks is one line."""
    whole = ""
    for line in text.splitlines():
        if line.startswith("}}") or (line and line[0] not in " }%E\n" and whole.startswith(" ")):
            whole += line
            continue
        if whole:
            yield whole
        whole = line
    yield whole


def _instruction(line: str) -> Instruction:
    """Returns the instruction of a line `name = shape opcode(operands), attributes`."""
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d), bool(_SPACE.search(layout)))
        for dtype, dims, layout in _SHAPE.findall(rest[:end])
    )
    opcode, rest = rest[end:].strip().split("(", 1)
    end = _closing(f"({rest}") - 1
    inside, attributes = rest[: end - 1], rest[end:]
    if opcode in ("constant", "parameter"):
        operands: tuple[str, ...] = (inside,)
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name.removeprefix("%"), opcode, shapes, operands, attributes)


def _closing(text: str) -> int:
    """Returns the position after the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if not depth:
            return found.end()
    return len(text)
