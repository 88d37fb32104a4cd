"""What the parameters of a model are: how many, of which shapes, under which axis names."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes


def parameter(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    names: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
) -> jax.Array:
    """Returns a parameter of a module, which is made where there is none.

    Linen's `param` traces the initializer at every call, to compare its shape with that of what is there: half of the
    time that it takes to trace a model.

    Args:
        module: the caller, inside its setup or its compact method.
        name: of the parameter.
        init: draws it.
        names: an axis name for every dimension.
        shape: its own.
        dtype: its own.
    """
    found = module.get_variable("params", name)
    if found is None or jnp.shape(found := nn.unbox(found)) != shape:
        # Linen's error says what is missing, or of another shape.
        return module.param(name, axes.partitioned(init, names), shape, jnp.dtype(dtype))
    return found


def is_box(x: Any) -> bool:
    """Returns whether `x` is an array, or a shape, with axis names around it."""
    return isinstance(x, nn.Partitioned)


def unboxed(tree: Any) -> Any:
    """Returns the tree without boxes; `nn.unbox` would also constrain each array, which shapes cannot be."""
    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)


def count_parameters(params: Any) -> int:
    """Returns the number of scalars in `params`: arrays or shapes, boxed or plain."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(unboxed(params)))


def parameter_table(params: Any) -> str:
    """Returns a text table with a row for every parameter (path, shape, axis names, count) and the total."""
    rows = [("parameter", "shape", "axes", "count")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box):
        names = leaf.names if is_box(leaf) else ()
        shape = unboxed(leaf).shape
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((name, " x ".join(map(str, shape)), " ".join(map(str, names)), f"{math.prod(shape):,}"))
    rows.append(("total", "", "", f"{count_parameters(params):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
    )


def flat(params: Any) -> dict[str, Any]:
    """Returns arrays, or shapes, boxed or plain, by path: names joined by slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(unboxed(params))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
