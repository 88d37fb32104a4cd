"""A bias on attention scores that depends on the distance alone, kept as one number for each distance."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ByDistance:
    """The bias between all positions of a row, in memory linear in its length.

    Used where rows are split over devices: the array of queries by keys of a long row would fit on none of them.

    Attributes:
        values: float32 `[heads, 2 length - 1]`, of key positions minus query positions from 1 - length on.
    """

    values: jax.Array

    def part(self, row: int | jax.Array, queries: int, column: int | jax.Array, keys: int) -> jax.Array:
        """Returns `[1, heads, queries, keys]` for the queries from `row` and the keys from `column` on."""
        first = column - row - (queries - 1) + self.length - 1
        return toeplitz(jax.lax.dynamic_slice_in_dim(self.values, first, queries + keys - 1, axis=1), queries)[None]

    @property
    def length(self) -> int:
        """Returns the number of positions in a row."""
        return (self.values.shape[1] + 1) // 2


def toeplitz(values: jax.Array, rows: int) -> jax.Array:
    """Returns `[heads, rows, columns]` with element (i, j) = values[:, j - i + rows - 1].

    Computed by padding and reshaping: the values, padded to `count + 1`, are repeated and then cut into rows of length
    `count`, so that each row is shifted by one against the row before. A gather of all elements would be slow, since
    its gradient is a scatter.
    """
    heads, count = values.shape
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    tiled = jnp.broadcast_to(padded[:, None], (heads, rows, count + 1)).reshape(heads, rows * (count + 1))
    return tiled[:, : rows * count].reshape(heads, rows, count)[:, :, rows - 1 :]
