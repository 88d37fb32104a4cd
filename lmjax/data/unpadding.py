"""Packs the rows of a batch for the layers of a model, so that they compute less padding.

Rows of records are as long as the longest record, and most of their positions may be padding. Layers treat each token
alone, except that it attends to its own segment. So they can read the same tokens in fewer rows, and their output is
moved back to the places of the tokens: objectives, heads and losses see the batch as it is (Zeng et al. 2022,
arXiv:2208.08124, section 3). Here a batch is given the two arrays that say where each token is read;
`lmjax.model.unpadding` moves tokens and states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.data.packing import best_fit
from lmjax.streams import random_stream

Features = dict[str, np.ndarray]

# Fields of a batch. int32 `[packed rows, packed length]`: the place in the flattened batch whose token is read there;
# -1 for padding.
SOURCE = "unpadded_source"
# int32 `[rows, length]`: the place in the flattened packed rows where this token is read; -1 for padding.
PLACE = "unpadded_place"

# Short rows are packed into rows of about this length, in which less room is left over.
_SHORT = 96
_TRIALS = 200
# Layouts that save less than this share of the positions are not worth a program of their own.
_LEAST = 0.05


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a batch are packed.

    Attributes:
        length: positions of a packed row.
        sizes: numbers of packed rows of a microbatch, rising; a batch has the first one that is enough for each of its
            microbatches. One for which none is enough is not packed.
        microbatches: of a batch; row r belongs to microbatch r mod `microbatches`.
    """

    length: int
    sizes: tuple[int, ...]
    microbatches: int = 1

    def __call__(self, batch: Features) -> Features:
        """Returns the batch with the fields SOURCE and PLACE, or as it is if it needs too many packed rows."""
        segments = batch["segment_ids"]
        parts = [segments[i :: self.microbatches] > 0 for i in range(self.microbatches)]
        needed = [_packed(part.sum(axis=1), self.length) for part in parts]
        size = next((n for n in self.sizes if n >= max(rows for _, rows in needed)), None)
        return batch if size is None else batch | self._fields(parts, [row for row, _ in needed], size)

    def of_size(self, batch: Features, size: int) -> Features:
        """Returns a batch with fields of the shapes of `size` packed rows, for compilation; 0: without such fields."""
        if not size:
            return batch
        shape = (size * self.microbatches, self.length)
        return batch | {SOURCE: np.zeros(shape, np.int32), PLACE: np.zeros(batch["segment_ids"].shape, np.int32)}

    def _fields(self, parts: Sequence[np.ndarray], rows: Sequence[np.ndarray], size: int) -> Features:
        """Returns the two fields.

        Args:
            parts: for each microbatch, bool `[rows, length]`, where a token is.
            rows: for each microbatch, int `[rows]`, the packed row of each row.
            size: packed rows of a microbatch.
        """
        count, length = self.microbatches, parts[0].shape[1]
        source = np.full((size * count, self.length), -1, np.int32)
        place = np.full((sum(map(len, parts)), length), -1, np.int32)
        for number, (part, own) in enumerate(zip(parts, rows, strict=True)):
            filled = np.zeros(size, np.int64)
            for row, packed in enumerate(own):
                columns = np.flatnonzero(part[row])
                begin, end = filled[packed], filled[packed] + len(columns)
                source[packed * count + number, begin:end] = row * length + columns
                place[row * count + number, columns] = packed * self.length + np.arange(begin, end)
                filled[packed] = end
        return {SOURCE: source, PLACE: place}


def size_of(batch: Features, microbatches: int = 1) -> int:
    """Returns the number of packed rows of a microbatch of a batch, or of each of several; 0 if it is not packed."""
    return batch[SOURCE].shape[-2] // microbatches if SOURCE in batch else 0


def choose_layout(
    tokens: np.ndarray, length: int, batch_size: int, *, longest: int, microbatches: int = 1
) -> Layout | None:
    """Returns the layout with the fewest positions on average, with one or two sizes; None: packing saves too little.

    Args:
        tokens: int `[sample]`, the number of tokens in each row of a sample of the data.
        length: positions of a row.
        batch_size: rows of a batch.
        longest: the most positions of a packed row.
        microbatches: of a batch.
    """
    # No packing takes fewer positions than there are tokens.
    if np.min(tokens) >= (1 - _LEAST) * length:
        return None
    packed_length = length * max(1, min(round(_SHORT / length), longest // length))
    rng, rows = random_stream(0, "unpadding"), batch_size // microbatches
    batches = (rng.choice(tokens, (microbatches, rows)) for _ in range(_TRIALS))
    needed = np.array([max(_packed(part, packed_length)[1] for part in batch) for batch in batches])
    padded = rows * length

    def cost(sizes: tuple[int, ...]) -> float:
        """Returns the mean number of positions that a microbatch takes."""
        places = np.array([*sizes, padded / packed_length]) * packed_length
        return float(places[np.searchsorted(sizes, needed)].mean())

    # A size that no batch needs exactly is worse than the next smaller one that some batch needs.
    sizes = sorted({int(n) for n in needed if 1 <= n < -(-padded // packed_length)})
    if not sizes:
        return None
    (one, first), (two, both) = (
        min((cost(chosen), chosen) for chosen in found)
        for found in ([(a,) for a in sizes], [(a, b) for a in sizes for b in sizes if a <= b])
    )
    # A second size has a program of its own, which is compiled when the first batch needs it.
    best, chosen = (two, both) if two < (1 - _LEAST) * one else (one, first)
    return Layout(packed_length, chosen, microbatches) if best < (1 - _LEAST) * padded else None


def _packed(tokens: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """Returns the packed row of each row, and the number of packed rows."""
    order = np.argsort(-tokens, kind="stable")
    rows = np.zeros(len(tokens), np.int64)
    # A row without tokens takes no room.
    full = order[: np.count_nonzero(tokens)]
    rows[full], count = best_fit(tokens[full].tolist(), length)
    return rows, count
