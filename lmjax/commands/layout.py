"""The table of how a run lies on its mesh: what is split over which axes, what is copied to all devices, and why."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable

import jax

from lmjax.axes import RULES
from lmjax.commands.table import aligned
from lmjax.model.language_model import abstract_params
from lmjax.model.parameter_paths import UNROLLED, names_of
from lmjax.model.parameters import axis_names
from lmjax.parallel.memory import ONE_DEVICE, held, readable, whole
from lmjax.runs.build import Run
from lmjax.training.state import TrainState

# Kinds of parameters that a row of the table names.
_NAMED = 3


def layout_table(run: Run, state: TrainState) -> list[str]:
    """Returns the lines of the table, with a row for each group of parameters that are split alike.

    Args:
        run: the run.
        state: shapes, dtypes and shardings of its state.
    """
    sizes = {axis: size for axis, size in run.mesh.shape.items() if size > 1}
    names = axis_names(abstract_params(run.model.config, run.model.heads))
    groups: dict[tuple[str, ...], dict[str, jax.ShapeDtypeStruct]] = collections.defaultdict(dict)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        groups[_axes(leaf, sizes)]["/".join(names_of(path))] = leaf
    rows, over = [("parameters", "arrays", "bytes", "on each device")], ["split over"]
    for axes, leaves in sorted(groups.items(), key=lambda group: -whole(list(group[1].values()))):
        over.append(" x ".join(axes) or f"nothing: {_reason([names.get(path, ()) for path in leaves], sizes)}")
        rows.append((_kinds(leaves), str(len(leaves)), *_both(leaves.values())))
    rows.append(("optimizer state", "", *_both(jax.tree.leaves((state.opt_state, state.average)))))
    over.append("the same")
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    rows_of = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    parts = [f"batches in {rows_of} parts"]
    if "sequence" in sizes:
        parts.append(f"rows in {sizes['sequence']} parts, attention by {run.config.parallel.sequence_attention}")
    if run.config.parallel.slices > 1:
        parts.append(f"{run.config.parallel.slices} slices along data")
    lines = (f"  {line}  {how}" for line, how in zip(aligned(rows), over, strict=True))
    return [f"mesh {mesh}: {', '.join(parts)}", *lines]


def _axes(leaf: jax.ShapeDtypeStruct, sizes: dict[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes with several devices that split an array, in the order of the mesh."""
    used = jax.tree.leaves(tuple(leaf.sharding.spec))
    return tuple(axis for axis in sizes if axis in used)


def _kinds(leaves: dict[str, jax.ShapeDtypeStruct]) -> str:
    """Returns the names of the largest kinds of parameters, such as mlp/up/kernel."""
    sizes: collections.Counter[str] = collections.Counter()
    for path, leaf in leaves.items():
        sizes["/".join(re.sub(rf"{UNROLLED}\d+/", "", path).split("/")[-3:])] += math.prod(leaf.shape)
    named = [name for name, _ in sizes.most_common(_NAMED)]
    return ", ".join(named) + (", ..." if len(sizes) > _NAMED else "")


def _reason(names: list[tuple[str, ...]], sizes: dict[str, int]) -> str:
    """Returns why parameters with these axis names are on all devices."""
    rules, found = dict(RULES), {name for each in names for name in each}
    without = sorted(name for name in found if rules[name] is None)
    alone = sorted({str(rules[name]) for name in found if rules[name] is not None} - sizes.keys())
    reasons = [f"no rule splits {', '.join(without)}"] if without else []
    reasons += [f"one device along {' and '.join(alone)}"] if alone else []
    return "; ".join(reasons) or "scalars"


def _both(leaves: Iterable[jax.ShapeDtypeStruct]) -> tuple[str, str]:
    """Returns the bytes of arrays, all together and on one device."""
    leaves = list(leaves)
    return readable(whole(leaves)), readable(held(leaves, ONE_DEVICE))
