"""The number of slots of the running batch: as many as its longest text needs, not as many as a text may have.

A step reads the keys and values of all slots of all rows, filled or not. With GPT-2's width and 16 rows of 1,152 slots
these are three times the bytes of the parameters. So the batch has one of a few sizes, and is copied when a text needs
a larger one. All sizes are known when the server starts, so that their programs are compiled then.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.cache import Cache
from lmjax.model.key_value import KeyValue
from lmjax.model.language_model import LanguageModel

# The smallest batch. Each of the next ones has half as many slots more, in whole blocks.
_SMALLEST, _BLOCK = 256, 64


class Slots:
    """Counts the filled slots of the rows whose texts have not ended, and chooses the size of the batch.

    Attributes:
        sizes: that the batch may have, ascending.
        now: the size that it has.
    """

    def __init__(self, rows: int, capacity: int):
        """Begins with a batch of so many empty rows, of the smallest size; `capacity` is the largest."""
        self.sizes, size = [capacity], _SMALLEST
        while size <= capacity * 4 // 5:
            self.sizes.insert(-1, size)
            size = -(-(size + size // 2) // _BLOCK) * _BLOCK
        self.now = self.sizes[0]
        self._filled = np.zeros(rows, np.int64)

    def join(self, row: int, filled: int) -> int:
        """Returns the size for a batch in which a text with so many filled slots begins in a row.

        The batch becomes smaller only if it has then an eighth of its slots left, so that it is not copied to and fro.
        """
        self._filled[row] = filled
        used = int(self._filled.max())
        smaller = self.fitting(used + 1 + used // 7)
        return smaller if smaller < self.now else max(self.now, self.fitting(used + 1))

    def step(self) -> int:
        """Counts a slot more in the row of each text, and returns the size that this step needs."""
        self._filled[self._filled > 0] += 1
        return max(self.now, self.fitting(int(self._filled.max())))

    def end(self, ended: np.ndarray) -> None:
        """Counts the rows of texts that have ended as empty; bool `[rows]`."""
        self._filled[ended] = 0

    def fitting(self, needed: int) -> int:
        """Returns the smallest size with so many slots; if none has them, the largest."""
        return next((size for size in self.sizes if size >= needed), self.sizes[-1])


def resized(cache: Cache, model: LanguageModel, size: int, *, release: bool = False) -> Cache:
    """Returns a cache with so many slots.

    Args:
        cache: its filled slots must fit.
        model: whose cache it is.
        size: the new number of slots; a layer with a window has at most its window.
        release: whether each layer of `cache` is deleted once it is copied, so that two of a layer are the most.
    """
    if size == cache.capacity:
        return cache
    kind = "int8" if cache.layers[0]["attention"].key_scale is not None else "compute"
    wanted = jax.eval_shape(lambda: model.empty_cache(1, size, kind=kind))
    layers = []
    for layer, shapes in zip(cache.layers, wanted.layers, strict=True):
        old, slots = layer["attention"], shapes["attention"].slots
        new = old if slots == old.slots else _resized(old, slots)
        layers.append({**layer, "attention": new})
        if release and new is not old:
            for buffer in jax.tree.leaves(old):
                buffer.delete()
    positions, segment_ids = (_columns(x, size) for x in (cache.positions, cache.segment_ids))
    return cache.replace(layers=tuple(layers), positions=positions, segment_ids=segment_ids)


@functools.partial(jax.jit, static_argnames=("slots",))
def _resized(kept: KeyValue, slots: int) -> KeyValue:
    return kept.resized(slots)


@functools.partial(jax.jit, static_argnames=("size",))
def _columns(x: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x[:, :size], ((0, 0), (0, max(0, size - x.shape[1]))))
