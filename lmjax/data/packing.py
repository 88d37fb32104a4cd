"""Packing: plans which pieces of documents share a row, from the lengths of the documents alone.

A piece is a contiguous part of a document, often all of it. Pieces are placed by best fit, the largest first (Krell et
al. 2021, arXiv:2107.02027, section 3): each goes into the fullest row that still has room for it. Segment ids and
positions of a row follow from its pieces.
"""

from collections.abc import Callable

import numpy as np

from lmjax.errors import FlagError
from lmjax.streams import random_stream


class Plan:
    """The pieces of each row; the arrays hold the pieces of row 0, then those of row 1, and so on.

    Attributes:
        documents: int64 `[pieces]`, the document of each piece.
        starts: int64 `[pieces]`, the index in the document of its first token.
        lengths: int64 `[pieces]`, its number of tokens.
        offsets: int64 `[rows + 1]`, the index of the first piece of each row, and the number of pieces.
    """

    def __init__(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        self.documents, self.starts, self.lengths, self.offsets = documents, starts, lengths, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the documents, starts and lengths of the pieces of row `i`, each int64 `[pieces of the row]`."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.documents[part], self.starts[part], self.lengths[part]


def cut(lengths: np.ndarray, max_piece: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the documents, starts and lengths of all pieces, each int64 `[pieces]`.

    Args:
        lengths: `[documents]`, the number of tokens of each document; one without tokens has no piece.
        max_piece: number of tokens of each piece; the last piece of a document may be shorter.
    """
    lengths = np.asarray(lengths, np.int64)
    counts = -(-lengths // max_piece)
    documents = np.repeat(np.arange(len(lengths)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(len(documents)) - first) * max_piece
    return documents, starts, np.minimum(max_piece, lengths[documents] - starts)


def pack(
    lengths: np.ndarray, *, max_piece: int, cost: Callable[[np.ndarray], np.ndarray], capacity: int, seed: int = 0
) -> Plan:
    """Returns a plan with each token of each document in exactly one piece, and the rows in random order.

    Args:
        lengths: `[documents]`, the number of tokens of each document.
        max_piece: the most tokens of a piece; longer documents are cut into several pieces.
        cost: maps numbers of tokens of pieces to the positions that they take in a row, which can be more because of
            special tokens.
        capacity: number of positions in a row.
        seed: decides which of several pieces of equal cost share a row, and the order of rows and of pieces in a row.

    Raises:
        FlagError: a piece does not fit into an empty row, or costs less than 1.
    """
    documents, starts, sizes = cut(lengths, max_piece)
    costs = np.asarray(cost(sizes), np.int64)
    if len(costs) and (costs.min() < 1 or costs.max() > capacity):
        worst = costs.argmax() if costs.max() > capacity else costs.argmin()
        raise FlagError(
            f"packing: a piece of {sizes[worst]} tokens takes {costs[worst]} positions, and must take 1 to {capacity}; "
            "give longer rows or shorter pieces"
        )
    rng = random_stream(seed, "packing")
    order = rng.permutation(len(costs))
    order = order[np.argsort(-costs[order], kind="stable")]
    rows = np.empty(len(costs), np.int64)
    rows[order], num_rows = best_fit(costs[order].tolist(), capacity)
    rows = rng.permutation(num_rows)[rows]
    order = np.lexsort((rng.permutation(len(costs)), rows))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64)
    return Plan(documents[order], starts[order], sizes[order], offsets)


def best_fit(costs: list[int], capacity: int) -> tuple[list[int], int]:
    """Returns the row of each piece, and the number of rows.

    For each number of free positions there is a stack of the rows that have so many. Bit n of `mask` is set if stack n
    is not empty, so one shift finds the fullest row with enough room.
    """
    stacks: list[list[int]] = [[] for _ in range(capacity + 1)]
    mask = 0
    rows, num_rows = [], 0
    for cost in costs:
        enough = mask >> cost
        if enough:
            free = cost + (enough & -enough).bit_length() - 1
            row = stacks[free].pop()
            if not stacks[free]:
                mask ^= 1 << free
        else:
            free, row = capacity, num_rows
            num_rows += 1
        rows.append(row)
        free -= cost
        if free:
            if not stacks[free]:
                mask |= 1 << free
            stacks[free].append(row)
    return rows, num_rows
