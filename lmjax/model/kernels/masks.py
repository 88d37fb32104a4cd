"""Attention masks, stored as rules on order and segments; an array of queries by keys is made only by kernels."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


def _static(default: bool | int) -> bool | int:
    """Returns a dataclass field that is static, not part of the pytree's arrays."""
    return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class Mask:
    """The keys that each query may attend to; `Mask()` masks nothing.

    A token attends only to its own segment, so packed documents are separate. Padding is segment 0, and attends to
    padding. Order and distance are computed from indices in the row; inside a segment these equal differences of
    positions. With keys from a cache, they are computed from positions.

    Attributes:
        causal: a query attends only to itself and to earlier keys.
        window: a query attends only to keys at a distance below `window` (Beltagy et al. 2020, arXiv:2004.05150,
            section 3.1). With an int, kernels skip keys outside the window; a traced scalar may differ between scanned
            layers.
        sink_tokens: keys whose position in their segment is below this number stay visible outside the window
            (Xiao et al. 2024, arXiv:2309.17453, section 3.2).
        query_segments: `[batch, queries]`; None: the whole row is segment 1.
        key_segments: `[batch, keys]`; None: the whole row is segment 1.
        prefix: bool `[batch, keys]`, True for keys that `causal` does not mask (Raffel et al. 2020, arXiv:1910.10683,
            section 3.2.1); window and segments still apply.
        key_positions: `[batch or 1, keys]`, needed with `sink_tokens` and with `query_positions`; None: indices in the
            row.
        query_positions: `[batch or 1, queries]`, needed if keys come from a cache; None: order is by index in the row,
            which kernels can use while tracing.
        leading: number of first keys that stand before those of the row; only segments mask them.
        global_keys: bool `[batch or 1, keys]`, keys that the window does not mask (Beltagy et al. 2020, section 3.1);
            None: no such keys.
        global_queries: bool `[batch or 1, queries]`, queries for which the window masks no key; None: no such queries.
    """

    causal: bool = _static(False)
    window: int | jax.Array | None = None
    sink_tokens: int = _static(0)
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    prefix: jax.Array | None = None
    key_positions: jax.Array | None = None
    query_positions: jax.Array | None = None
    leading: int = _static(0)
    global_keys: jax.Array | None = None
    global_queries: jax.Array | None = None

    @property
    def segmented(self) -> bool:
        """Whether a row may have several segments."""
        return self.query_segments is not None or self.key_segments is not None

    @property
    def hides_far(self) -> bool:
        """Whether no query sees a key beyond the window."""
        return self.window is not None and not self.sink_tokens and self.global_keys is None

    @property
    def banded(self) -> bool:
        """Whether no query sees a key beyond the window, which is known while tracing."""
        return isinstance(self.window, int) and self.hides_far

    @property
    def cached_positions(self) -> jax.Array | None:
        """Returns the positions of the keys if they come from a cache, else None."""
        return None if self.query_positions is None else self.key_positions

    def segments(self, queries: int, keys: int) -> tuple[jax.Array, jax.Array]:
        """Returns the segments of the queries and of the keys, `[batch or 1, length]` each."""
        pairs = ((self.query_segments, queries), (self.key_segments, keys))
        return tuple(jnp.ones((1, n), jnp.int32) if segments is None else segments for segments, n in pairs)

    def filled(self, queries: int, keys: int) -> Mask:
        """Returns the same mask with all arrays that it needs, of whose columns `part` then takes traced ranges."""
        of_queries, of_keys = self.segments(queries, keys) if self.segmented else (None, None)
        positions = self.key_positions
        if positions is None and self.sink_tokens:
            positions = jnp.arange(keys)[None]
        return self.replace(query_segments=of_queries, key_segments=of_keys, key_positions=positions)

    def dense(self, queries: int, keys: int) -> jax.Array | None:
        """Returns bool `[batch or 1, 1, queries, keys]`, True where a query may attend to a key; None: everywhere."""
        return self.part(0, queries, 0, keys)

    def part(self, row: int | jax.Array, queries: int, column: int | jax.Array, keys: int) -> jax.Array | None:
        """Returns the part of `dense` for `queries` queries from `row` on and `keys` keys from `column` on.

        A traced `column` needs a mask that is `filled`.
        """

        def along_keys(x: jax.Array) -> jax.Array:
            if isinstance(column, int):
                return jax.lax.slice_in_dim(x, column, column + keys, axis=1)[:, None, None, :]
            return jax.lax.dynamic_slice_in_dim(x, column, keys, axis=1)[:, None, None, :]

        seen = None
        if self.causal or self.window is not None:
            distance = self._distance(row, queries, column, keys)
        if self.causal:
            seen = distance >= 0
            if self.prefix is not None:
                seen |= along_keys(self.prefix)
        if self.window is not None:
            near = jnp.abs(distance) < self.window
            if self.sink_tokens:
                positions = jnp.arange(column + keys)[None] if self.key_positions is None else self.key_positions
                near |= along_keys(positions) < self.sink_tokens
            if self.global_keys is not None:
                near |= along_keys(self.global_keys)
            if self.global_queries is not None:
                near |= jax.lax.dynamic_slice_in_dim(self.global_queries, row, queries, axis=1)[:, None, :, None]
            if self.leading:
                near |= (column + jnp.arange(keys) < self.leading)[None, None, None]
            seen = near if seen is None else seen & near
        if self.segmented:
            of_queries, of_keys = self.segments(queries, column + keys)
            if self.query_segments is not None:
                of_queries = jax.lax.dynamic_slice_in_dim(of_queries, row, queries, axis=1)
            same = of_queries[:, None, :, None] == along_keys(of_keys)
            seen = same if seen is None else seen & same
        return seen

    def _distance(self, row: int | jax.Array, queries: int, column: int | jax.Array, keys: int) -> jax.Array:
        """Returns int32 `[batch or 1, 1, queries, keys]`: index or position of each query minus that of each key."""
        if self.query_positions is None:
            starts = (row, queries), (column - self.leading, keys)
            rows, columns = (start + jnp.arange(n, dtype=jnp.int32) for start, n in starts)
            return (rows[:, None] - columns[None])[None, None]
        rows = jax.lax.dynamic_slice_in_dim(self.query_positions, row, queries, axis=1)
        columns = jax.lax.slice_in_dim(self.key_positions, column, column + keys, axis=1)
        return rows[:, None, :, None] - columns[:, None, None, :]

    def any_key_visible(self, queries: int, keys: int) -> jax.Array | None:
        """Returns bool `[batch or 1, queries]`, True where a query may attend to any key; None: all queries may."""
        if not self.segmented and (self.window is None or (self.query_positions is None and queries <= keys)):
            return None
        return jnp.any(self.dense(queries, keys), axis=(1, 3))

    def columns(self, start: int, stop: int, keys: int) -> tuple[int, int]:
        """Returns the range (first, end) of keys behind the leading ones to which some queries may attend.

        The queries are those from `start` to `stop`. The range has at least one key. It is narrowed only by what is
        known while tracing: causal order, and a window that is an int.
        """
        first, end, before = self.leading, keys, self.leading
        if self.query_positions is None:
            if self.causal and self.prefix is None:
                end = min(end, before + stop)
            if self.banded:
                first = max(first, before + start - self.window + 1)
                end = min(end, before + stop + self.window - 1)
        first = min(first, keys - 1)
        return first, max(end, first + 1)
