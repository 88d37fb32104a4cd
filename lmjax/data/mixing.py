"""Mixtures: an infinite stream of rows from several sources at exact rates.

The stream consists of blocks of equal size. In each block every source has a fixed number of slots, in a random order
that differs from block to block. The row at any position of the stream is therefore computed in constant time, without
counting from the beginning.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from lmjax.streams import random_stream

_PLACES = 4096  # rates are multiples of 1/4096, and every source has at least one slot in a block


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources of rows, mixed row by row.

    Rows are numbered over all sources: first the rows of the first source, then those of the second, and so on.

    Attributes:
        sizes: number of rows of each source.
        rates: how often rows of each source are drawn, relative to the others.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]

    def __len__(self) -> int:
        """Returns the number of rows of all sources."""
        return sum(self.sizes)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Returns int64 `[sources + 1]`: the number of each source's first row, and the number of all rows."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @functools.cached_property
    def slots(self) -> tuple[int, ...]:
        """Returns the number of slots of each source in a block, the smallest numbers that give the rates."""
        return quantised(self.rates, _PLACES)

    def source(self, index: int) -> tuple[int, int]:
        """Returns the source of row `index`, and the number of the row in that source."""
        source = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return source, index - int(self.offsets[source])

    def row(self, position: int, seed: int, shuffle: bool = True) -> tuple[int, int]:
        """Returns the epoch and the number of the row at a position of the stream.

        Epochs are counted for each source separately. Each epoch has every row of the source once, in a new random
        order unless `shuffle` is False.
        """
        block, place = divmod(position, sum(self.slots))
        sources, ranks = _block(self.slots, seed, block)
        source = sources[place]
        size = self.sizes[source]
        epoch, row = divmod(block * self.slots[source] + ranks[place], size)
        if shuffle:
            row = int(self._order(source, seed, epoch)[row])
        return epoch, int(self.offsets[source]) + row

    def epochs(self, positions: int, seed: int) -> tuple[float, ...]:
        """Returns the number of epochs of each source in the first `positions` rows of the stream, as fractions."""
        blocks, rest = divmod(positions, sum(self.slots))
        counts = np.array(self.slots) * blocks
        counts += np.bincount(_block(self.slots, seed, blocks)[0][:rest], minlength=len(self.sizes))
        return tuple((counts / self.sizes).tolist())

    def _order(self, source: int, seed: int, epoch: int) -> np.ndarray:
        """Returns the order of a source's rows in an epoch, int64 `[rows]`.

        The latest order of each source is cached, because successive positions are mostly in the same epoch.
        """
        key, order = self._orders.get(source, (None, None))
        if key != (seed, epoch):
            order = random_stream(seed, "order", source, epoch).permutation(self.sizes[source])
            self._orders[source] = ((seed, epoch), order)
        return order

    @functools.cached_property
    def _orders(self) -> dict:
        return {}

    def __reduce__(self):
        return Mixture, (self.sizes, self.rates)

    @functools.cached_property
    def spread(self) -> np.ndarray:
        """Returns int64 `[rows]`: each row once; those of each source are in order and evenly spread over the array."""
        if len(self.sizes) == 1:
            return np.arange(self.sizes[0])
        return np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in self.sizes]), kind="stable")


def quantised(rates: Sequence[float], total: int) -> tuple[int, ...]:
    """Returns positive integers in about the ratio of `rates`, divided by their greatest common divisor.

    Before the division they add up to `total`, or to more if very small rates have to be raised to 1.
    """
    wanted = np.array(rates, float) / sum(rates) * total
    counts = np.maximum(np.floor(wanted), 1).astype(int)
    for source in np.argsort(counts - wanted, kind="stable")[: max(0, total - counts.sum())]:
        counts[source] += 1
    divisor = math.gcd(*counts.tolist())
    return tuple((counts // divisor).tolist())


def set_rates(weights: Sequence[float], tokens: Sequence[int], temperature: float) -> tuple[float, ...]:
    """Returns the rates of data sets: weight**(1/T), scaled to a sum of 1 (Raffel et al. 2020, section 3.5.2).

    The paper is arXiv:1910.10683.

    Args:
        weights: of each set; 0 means its number of tokens, and an empty sequence means this for all sets.
        tokens: number of tokens of each set.
        temperature: T; 1 gives rates proportional to the weights, higher values give more equal rates.
    """
    # In logarithms, because the powers overflow for a low temperature.
    weights = weights or [0.0] * len(tokens)
    logs = np.log([weight or count for weight, count in zip(weights, tokens, strict=True)]) / temperature
    rates = np.exp(logs - logs.max())
    return tuple((rates / rates.sum()).tolist())


@functools.lru_cache(maxsize=16)
def _block(slots: tuple[int, ...], seed: int, block: int) -> tuple[list[int], list[int]]:
    """Returns, for each slot of a block, its source and the number of earlier slots of that source in the block."""
    if len(slots) == 1:
        return [0], [0]
    sources = random_stream(seed, "block", block).permutation(np.repeat(np.arange(len(slots)), slots))
    ranks = np.empty_like(sources)
    for source, count in enumerate(slots):
        ranks[sources == source] = np.arange(count)
    return sources.tolist(), ranks.tolist()
