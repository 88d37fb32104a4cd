"""What the parameters of a model are: how many, of which shapes, under which axis names."""

import math
from typing import Any

import flax.linen as nn
import jax


def count_parameters(params: Any) -> int:
    """Returns the number of scalars in `params`: arrays or shapes, boxed or plain."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(params)))


def parameter_table(params: Any) -> str:
    """Returns a text table with a row for every parameter (path, shape, axis names, count) and the total."""

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.Partitioned)

    rows = [("parameter", "shape", "axes", "count")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box):
        names = leaf.names if is_box(leaf) else ()
        shape = nn.unbox(leaf).shape
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((name, " x ".join(map(str, shape)), " ".join(map(str, names)), f"{math.prod(shape):,}"))
    rows.append(("total", "", "", f"{count_parameters(params):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
    )
