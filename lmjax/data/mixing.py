"""Mixtures: which row of which source stands at which place of an endless stream, at rates that hold exactly.

The stream is cut into blocks. In each, every source has its exact number of places, in an order of the block's own; so
a source's nth row is found without counting from the start, and any place is found in constant time.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from lmjax.streams import random_stream

_PLACES = 4096  # rates are multiples of 1/4096, and every source has at least one place


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources of rows, mixed row by row.

    A row's index counts through all sources: those of the first, then those of the second, and so on.

    Attributes:
      sizes: rows of each source.
      rates: how often each comes, relative to the others.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]

    def __len__(self) -> int:
        """The number of rows of all sources."""
        return sum(self.sizes)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """`[sources + 1]` int64: the index of each source's first row, and the number of all rows."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @functools.cached_property
    def places(self) -> tuple[int, ...]:
        """Places of each source in a block, the smallest that keeps the rates."""
        return quantised(self.rates, _PLACES)

    def source(self, index: int) -> tuple[int, int]:
        """The source of a row, and its number within the source."""
        source = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return source, index - int(self.offsets[source])

    def row(self, position: int, seed: int, shuffle: bool = True) -> tuple[int, int]:
        """The epoch and the index of the row at a position of the stream.

        Every source has epochs of its own, each with every row once, in an order of its own unless `shuffle` is off.
        """
        block, place = divmod(position, sum(self.places))
        sources, ranks = _block(self.places, seed, block)
        source = sources[place]
        size = self.sizes[source]
        epoch, row = divmod(block * self.places[source] + ranks[place], size)
        if shuffle:
            row = int(self._order(source, seed, epoch)[row])
        return epoch, int(self.offsets[source]) + row

    def epochs(self, positions: int, seed: int) -> tuple[float, ...]:
        """How often each source has been read through after the first `positions` of the stream."""
        blocks, rest = divmod(positions, sum(self.places))
        counts = np.array(self.places) * blocks
        counts += np.bincount(_block(self.places, seed, blocks)[0][:rest], minlength=len(self.sizes))
        return tuple((counts / self.sizes).tolist())

    def _order(self, source: int, seed: int, epoch: int) -> np.ndarray:
        """The order of a source's rows; the latest of each source is kept, for positions come one after the other."""
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
        """`[rows]` int64: every row once, each source spread evenly over the whole, and in its own order."""
        if len(self.sizes) == 1:
            return np.arange(self.sizes[0])
        return np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in self.sizes]), kind="stable")


def quantised(rates: Sequence[float], total: int) -> tuple[int, ...]:
    """Positive whole numbers in the ratio of `rates`, out of at most `total` (or one each, if there are more rates)."""
    wanted = np.array(rates, float) / sum(rates) * total
    counts = np.maximum(np.floor(wanted), 1).astype(int)
    for source in np.argsort(counts - wanted, kind="stable")[: max(0, total - counts.sum())]:
        counts[source] += 1
    divisor = math.gcd(*counts.tolist())
    return tuple((counts // divisor).tolist())


def set_rates(weights: Sequence[float], tokens: Sequence[int], temperature: float) -> tuple[float, ...]:
    """The rates of sets: weight**(1/T), scaled to add up to 1 (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2).

    Args:
      weights: of each set; 0, or none at all, stands for its number of tokens.
      tokens: of each set.
      temperature: 1 keeps the weights' proportions; the higher, the more even.
    """
    # Logarithms, for the power of a small temperature overflows.
    weights = weights or [0.0] * len(tokens)
    logs = np.log([weight or count for weight, count in zip(weights, tokens, strict=True)]) / temperature
    rates = np.exp(logs - logs.max())
    return tuple((rates / rates.sum()).tolist())


@functools.lru_cache(maxsize=16)
def _block(places: tuple[int, ...], seed: int, block: int) -> tuple[list[int], list[int]]:
    """The source of each place of a block, and how many places of that source are before it."""
    if len(places) == 1:
        return [0], [0]
    sources = random_stream(seed, "block", block).permutation(np.repeat(np.arange(len(places)), places))
    ranks = np.empty_like(sources)
    for source, count in enumerate(places):
        ranks[sources == source] = np.arange(count)
    return sources.tolist(), ranks.tolist()
