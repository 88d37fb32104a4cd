"""What a compiled program computes and moves: FLOPs of its products, and bytes to and from a device's main memory.

`jax.stages.Compiled.cost_analysis` counts the body of a loop once, whatever its number of iterations, so that scanned
layers would count as one layer. Here each computation counts as often as it runs.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from lmjax.parallel.hlo import Computation, Instruction, Program, Shape

# Instructions that move nothing: their results are names of parts of memory, or what they call is counted itself.
_NOTHING = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "copy-done", "slice-done", "async-start", "async-update", "async-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain",
})  # fmt: skip
# Products of a matrix of queries and keys in each of splash attention's kernels, by the beginning of its name.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
_SLICES = frozenset({"dynamic-slice", "slice", "gather", "slice-start"})


def flops(program: Program, pairs: float = 1.0) -> float:
    """Returns the FLOPs of the products of one execution on one device; a multiplication with an addition is two.

    Args:
        program: the compiled program.
        pairs: the share of pairs of a query and a key that attention kernels compute; 0.5 for causal order, because
            they skip the others, and the text of a program does not say which ones.
    """
    return sum(
        use.times * _flops(use.computation, instruction, pairs)
        for use in program.uses
        for instruction in use.computation.instructions.values()
    )


def _flops(computation: Computation, instruction: Instruction, pairs: float) -> float:
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operands[0]].shapes[0]
        contracted = instruction.attribute("lhs_contracting_dims")
        inner = math.prod(left.dims[int(d)] for d in contracted.split(",") if d)
        return 2.0 * instruction.shapes[0].size * inner
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call":
        return pairs * _kernel(computation, instruction)
    return 0.0


def _kernel(computation: Computation, instruction: Instruction) -> float:
    """Returns the FLOPs of a splash attention kernel over all pairs; 0 for other calls."""
    products = next((n for name, n in _PRODUCTS.items() if instruction.name.startswith(name)), 0)
    large = [shape.dims for shape in computation.shapes(instruction) if len(shape.dims) == 4]
    if not products or len(large) < 2:
        return 0.0
    (batch, heads, queries, width), keys = large[0], large[1][2]
    return 2.0 * products * batch * heads * queries * keys * width


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """Returns the FLOPs of a convolution, as which XLA on a TPU writes products; only places inside the input count."""
    left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction
    inputs, kernel, outputs = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    spatial = sorted(c for c in outputs if c.isdigit())
    out, groups = instruction.shapes[0].dims, int(instruction.attribute("batch_group_count") or 1)
    places = 1.0
    for number, label in enumerate(spatial):
        sizes = {name: _entry(fields, name, number) for name in ("size", "stride", "lhs_dilate", "rhs_dilate")}
        low = int(fields["pad"].split("x")[number].split("_")[0]) if "pad" in fields else 0
        places *= _inside(left.dims[inputs.index(label)], out[outputs.index(label)], low, **sizes)
    # The kernel's input features are those of one group.
    inner = right.dims[kernel.index("i")]
    rows = left.dims[inputs.index("b")] / groups
    return 2.0 * rows * inner * out[outputs.index("f")] * places


def _entry(fields: dict[str, str], name: str, number: int) -> int:
    return int(fields[name].split("x")[number]) if name in fields else 1


@functools.cache
def _inside(inputs: int, outputs: int, low: int, size: int, stride: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Returns how many pairs of an output and an element of the window meet an input, on one axis."""
    starts = np.arange(outputs, dtype=np.int64) * stride - low
    total = 0
    for element in range(size):
        at = starts + element * rhs_dilate
        total += int(((at >= 0) & (at % lhs_dilate == 0) & (at <= (inputs - 1) * lhs_dilate)).sum())
    return total


def moved_bytes(program: Program) -> float:
    """Returns the bytes that one execution reads from and writes to the main memory of one device.

    A fusion reads its operands and writes its results once; what stays inside it, or in the memory on the chip, is not
    counted. Of an array of which a part is read or updated in place, this part counts.
    """
    total = 0.0
    for use in program.uses:
        if not use.fused:
            for instruction in use.computation.instructions.values():
                if instruction.opcode not in _NOTHING:
                    total += use.times * _moved(program, use.computation, instruction)
    return total


def _moved(program: Program, computation: Computation, instruction: Instruction) -> int:
    known = computation.instructions
    if instruction.opcode == "fusion":
        called = program.computations[re.search(r"calls=%?([\w.\-]+)", instruction.attributes).group(1)]
        return _fusion(computation, instruction, called)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _far(known[instruction.operands[1]].shapes)
    if instruction.opcode in _SLICES:
        return 2 * _far(instruction.shapes[:1]) if instruction.opcode != "slice-start" else _far(instruction.shapes)
    if instruction.opcode == "copy-start":
        return _far(instruction.shapes[:2])
    if instruction.opcode.endswith("-start"):
        return 2 * _far(computation.shapes(instruction))
    return _far(computation.shapes(instruction)) + _far(instruction.shapes)


def _fusion(computation: Computation, instruction: Instruction, called: Computation) -> int:
    """Returns what a fusion reads and writes."""
    inside, total = called.instructions, 0
    users: dict[str, list[Instruction]] = {}
    for each in inside.values():
        for name in each.operands if each.opcode not in ("parameter", "constant") else ():
            users.setdefault(name, []).append(each)
    for each in inside.values():
        if each.opcode != "parameter":
            continue
        given = computation.instructions.get(instruction.operands[int(each.operands[0])])
        if given is None or not _far(given.shapes):
            continue
        readers = users.get(each.name, [])
        if readers and all(_partly(reader, each.name) for reader in readers):
            parts = [x.shapes[0].num_bytes for x in readers if x.opcode in _SLICES]
            total += min(sum(parts), _far(given.shapes))
        else:
            total += _far(given.shapes)
    root = inside[called.root]
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for shape, result in zip(instruction.shapes, results, strict=False):
        while result.opcode in ("bitcast", "copy") and result.operands[0] in inside:
            result = inside[result.operands[0]]
        if result.opcode == "dynamic-update-slice" and not shape.near:
            total += inside[result.operands[1]].shapes[0].num_bytes
        else:
            total += _far((shape,))
    return total


def _partly(reader: Instruction, name: str) -> bool:
    """Returns whether an instruction reads a part of an operand alone, or updates a part of it in place."""
    return reader.opcode in _SLICES | {"dynamic-update-slice"} and reader.operands[0] == name


def _far(shapes: list[Shape] | tuple[Shape, ...]) -> int:
    return sum(shape.num_bytes for shape in shapes if not shape.near)
