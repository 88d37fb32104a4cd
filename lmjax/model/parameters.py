"""Parameters of a model: how they are made, and their number, shapes and axis names."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import axes
from lmjax.model.quantized import is_quantized


def parameter(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    names: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
) -> jax.Array:
    """Returns a parameter of a module, and makes it if the module does not have it.

    Linen's `param` traces the initializer at every call, to compare shapes; this takes half of the time in which a
    model is traced. So an existing parameter is read directly, and its shape compared here.

    Args:
        module: the caller, in its setup or its compact method.
        name: of the parameter.
        init: its initializer.
        names: an axis name for every dimension.
        shape: of the parameter.
        dtype: of the parameter.
    """
    found = module.get_variable("params", name)
    if found is None or (found := nn.unbox(found)).shape != shape:
        # Makes the parameter; outside of initialisation, raises Linen's error on a missing or wrongly shaped parameter.
        return module.param(name, axes.partitioned(init, names), shape, jnp.dtype(dtype))
    return found


def overlaid(tree: Any, other: Any) -> Any:
    """Returns nested dicts with the leaves of both; those of `other` replace leaves of `tree` at the same path."""
    if not isinstance(other, Mapping) or not isinstance(tree, Mapping):
        return other
    return {**tree, **{name: overlaid(tree[name], x) if name in tree else x for name, x in other.items()}}


def is_box(x: Any) -> bool:
    """Returns whether `x` is a box: an array or a shape, together with its axis names."""
    return isinstance(x, nn.Partitioned)


def unboxed(tree: Any) -> Any:
    """Returns the tree without boxes; also for shapes, for which `nn.unbox` fails, as it constrains their sharding."""
    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)


def count_parameters(params: Any) -> int:
    """Returns the number of scalars in `params`: arrays or shapes, boxed or plain; codes count as their numbers."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(unboxed(params), is_leaf=is_quantized))


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
    """Returns the arrays, shapes or kernels in few bits of a tree, without boxes, by path (names joined by slashes)."""
    leaves = jax.tree_util.tree_leaves_with_path(unboxed(params), is_leaf=is_quantized)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with the arrays or shapes by path, as `flat` returns them."""
    tree: dict[str, Any] = {}
    for path, x in params.items():
        *groups, last = path.split("/")
        place = tree
        for name in groups:
            place = place.setdefault(name, {})
        place[last] = x
    return tree


def axis_names(params: Any) -> dict[str, tuple[str, ...]]:
    """Returns the axis names of boxed parameters by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): box.names for path, box in leaves if is_box(box)}


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns a hex digest of the paths, shapes, dtypes and bytes of arrays by path, as `flat` returns them."""
    digest = hashlib.blake2b(digest_size=16)
    for path, x in sorted(params.items()):
        array = np.asarray(x)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
