"""What a compiled program computes and moves: FLOPs of its products, and bytes to and from a device's main memory.

`jax.stages.Compiled.cost_analysis` counts the body of a loop once, whatever its number of iterations, so that scanned
layers would count as one layer. Here each computation counts as often as it runs.
"""

from __future__ import annotations

import collections
import functools
import json
import math
import re
from collections.abc import Sequence

import numpy as np

from lmjax.parallel.hlo import Computation, Instruction, Program, Shape

# Instructions that move nothing: their results are names of parts of memory, or what they call is counted itself.
_NOTHING = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "copy-done", "slice-done", "async-start", "async-update", "async-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain",
})  # fmt: skip
# By the beginning of the name of each of splash attention's kernels: its products of a matrix of queries and keys, and
# the end of the names of its block sizes.
_KERNELS = {"splash_mha_fwd": (2, ""), "splash_mha_dkv": (4, "_dkv"), "splash_mha_dq": (3, "_dq")}
_BLOCKS = re.compile(r'"xprof_metadata":("(?:[^"\\]|\\.)*")')
# A custom call that reserves memory and moves nothing.
_RESERVES = 'custom_call_target="AllocateBuffer"'
_SLICES = frozenset({"dynamic-slice", "slice", "gather", "slice-start"})


def flops(program: Program, *, causal: bool = False) -> float:
    """Returns the FLOPs of the products of one execution on one device; a multiplication with an addition is two.

    The compiler does not count those of attention kernels. Here they follow from the shapes of a kernel's arrays and
    from its block sizes, which stand in the program.

    Args:
        program: the compiled program.
        causal: whether attention kernels skip the blocks that causal order masks, which the text of a program does not
            say. A block on the diagonal is computed whole. Blocks that only a window masks count as computed.
    """
    return sum(
        use.times * _flops(use.computation, instruction, causal)
        for use in program.uses
        for instruction in use.computation.instructions.values()
    )


def _flops(computation: Computation, instruction: Instruction, causal: bool) -> float:
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operands[0]].shapes[0]
        contracted = instruction.attribute("lhs_contracting_dims")
        inner = math.prod(left.dims[int(d)] for d in contracted.split(",") if d)
        return 2.0 * instruction.shapes[0].size * inner
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call":
        return _kernel(computation, instruction, causal)
    return 0.0


def _kernel(computation: Computation, instruction: Instruction, causal: bool) -> float:
    """Returns the FLOPs of a splash attention kernel; 0 for other calls."""
    known = next((found for name, found in _KERNELS.items() if instruction.name.startswith(name)), None)
    if known is None or (found := _queries_and_keys(computation.shapes(instruction))) is None:
        return 0.0
    (*rows, queries, width), keys = found[0].dims, found[1].dims[-2]
    products, end = known
    said = _BLOCKS.search(instruction.attributes)
    sizes = json.loads(json.loads(said.group(1))) if said else {}
    results = [x for x in instruction.shapes if len(x.dims) >= len(found[0].dims) and x.dims[-1] == width]
    # With those of keys and values, the gradients of the queries.
    products += end == "_dkv" and len(results) == 3
    share = _visited(queries, keys, sizes[f"block_q{end}"], sizes[f"block_kv{end}"]) if causal else 1.0
    return 2.0 * share * products * math.prod(rows) * queries * keys * width


def _queries_and_keys(given: Sequence[Shape]) -> tuple[Shape, Shape] | None:
    """Returns the first two arrays of numbers of a kernel, `[..., heads, length, width]`; None: it has no two.

    A batch of one row has no dimension. What comes before them are the masks, which are integers.
    """
    large = [shape for shape in given if len(shape.dims) > 2 and shape.dtype.startswith(("f", "bf"))]
    return (large[0], large[1]) if len(large) > 1 else None


def _visited(queries: int, keys: int, block_q: int, block_kv: int) -> float:
    """Returns the share of blocks that have a key which causal order shows to one of their queries."""
    blocks = -(-keys // block_kv)
    last = range(min(block_q, queries), queries + block_q, block_q)
    visited = [min(blocks, -(-min(end, queries) // block_kv)) for end in last]
    return sum(visited) / (len(visited) * blocks)


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


def least_bytes(program: Program, width: int) -> float:
    """Returns the bytes that the products and attention kernels of one execution read and write at least on a device.

    Each reads its operands and writes its result once, and all else is done on the way.

    Args:
        program: the compiled program.
        width: bytes of a number in the compute dtype.
    """
    total = 0.0
    for use in program.uses:
        for instruction in use.computation.instructions.values():
            given = use.computation.shapes(instruction)
            if instruction.opcode in ("dot", "convolution"):
                total += use.times * sum(shape.size for shape in (*given[:2], *instruction.shapes))
            elif instruction.opcode == "custom-call" and instruction.name.startswith(tuple(_KERNELS)):
                queries, _ = _queries_and_keys(given)
                rank, width_of_head = len(queries.dims), queries.dims[-1]
                both = (*given, *instruction.shapes)
                total += use.times * sum(x.size for x in both if len(x.dims) >= rank and x.dims[-1] == width_of_head)
    return width * total


def moved_bytes(program: Program) -> float:
    """Returns the bytes that one execution reads from and writes to the main memory of one device.

    A fusion reads its operands and writes its results once; what stays inside it, or in the memory on the chip, is not
    counted. Of an array of which a part is read or updated in place, this part counts.
    """
    return sum(moved_by_source(program).values())


def moved_by_source(program: Program) -> dict[str, float]:
    """Returns `moved_bytes` by the operation that they are for, the largest first; layers of a stack count together.

    The name of an operation is its place in the model and what it computes; backward passes have "transpose" in it,
    and what is computed again "rematted_computation". Copies that XLA adds have the name of their kind.
    """
    found: collections.Counter[str] = collections.Counter()
    for use in program.uses:
        if not use.fused:
            for instruction in use.computation.instructions.values():
                if instruction.opcode not in _NOTHING:
                    name = re.search(r'op_name="([^"]*)"', instruction.attributes)
                    source = re.sub(r"_\d+\b", "_N", name.group(1)) if name else instruction.opcode
                    found[source] += use.times * _moved(program, use.computation, instruction)
    return {source: size for source, size in found.most_common() if size}


def _moved(program: Program, computation: Computation, instruction: Instruction) -> int:
    known = computation.instructions
    if instruction.opcode == "custom-call" and _RESERVES in instruction.attributes:
        return 0
    if instruction.opcode == "fusion":
        return _fusion(program, computation, instruction)
    if instruction.opcode == "dynamic-update-slice":
        whole, part = (known[name].shapes[0] for name in instruction.operands[:2])
        return _copied(part, part, whole)
    if instruction.opcode == "slice-start":
        # Its results are the whole array, which is not read, the slice, and a counter.
        return _copied(instruction.shapes[1], *instruction.shapes[:2])
    if instruction.opcode in _SLICES:
        part = instruction.shapes[0]
        return _copied(part, known[instruction.operands[0]].shapes[0], part)
    if instruction.opcode == "copy-start":
        return _far(instruction.shapes[:2])
    if instruction.opcode.endswith("-start"):
        return 2 * _far(computation.shapes(instruction))
    return _far(computation.shapes(instruction)) + _far(instruction.shapes)


def _fusion(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Returns what a fusion reads and writes."""
    called = _called(program, instruction)
    inside, total = called.instructions, 0
    for number, name in enumerate(instruction.operands):
        given = computation.instructions.get(name)
        if given is not None and (whole := _far(given.shapes)):
            total += min(_read(program, called, called.parameter(number), whole), whole)
    root = inside[called.root]
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for shape, result in zip(instruction.shapes, results, strict=False):
        updated = None if shape.near else _updated(program, called, result)
        total += _far((shape,)) if updated is None else updated
    return total


def _called(program: Program, fusion: Instruction) -> Computation:
    return program.computations[re.search(r"calls=%?([\w.\-]+)", fusion.attributes).group(1)]


def _read(program: Program, computation: Computation, name: str, whole: int) -> int:
    """Returns the bytes that a fused computation reads of an array of `whole` bytes, by the array's name there.

    Of an array of which all readers take a slice, the slices count; an update in place reads nothing. Scanned layers
    are read so, by fusions inside fusions.
    """
    total = 0
    for reader in computation.readers.get(name, ()):
        if reader.opcode in _SLICES and reader.operands[0] == name:
            total += reader.shapes[0].num_bytes
        elif reader.opcode == "bitcast":
            total += _read(program, computation, reader.name, whole)
        elif reader.opcode == "fusion":
            called = _called(program, reader)
            numbers = (number for number, operand in enumerate(reader.operands) if operand == name)
            total += sum(_read(program, called, called.parameter(number), whole) for number in numbers)
        elif reader.opcode != "dynamic-update-slice" or reader.operands[0] != name:
            return whole
    # A parameter that is returned as it is, is read whole.
    return total if name in computation.readers else whole


def _updated(program: Program, computation: Computation, result: Instruction) -> int | None:
    """Returns the bytes of the part that a result of a fusion updates in place, or None if it is written whole."""
    inside = computation.instructions
    while result.opcode in ("bitcast", "copy") and result.operands[0] in inside:
        result = inside[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return inside[result.operands[1]].shapes[0].num_bytes
    if result.opcode == "fusion":
        called = _called(program, result)
        return _updated(program, called, called.instructions[called.root])
    return None


def _copied(part: Shape, source: Shape, target: Shape) -> int:
    """Returns the bytes that a copy of a part of an array moves to or from main memory, given where both are."""
    return part.num_bytes * ((not source.near) + (not target.near))


def _far(shapes: list[Shape] | tuple[Shape, ...]) -> int:
    return sum(shape.num_bytes for shape in shapes if not shape.near)
