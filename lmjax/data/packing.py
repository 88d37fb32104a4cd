"""Which pieces of which documents share a row: planned over lengths alone, before anything is read.

Best fit, largest first, as in Krell et al. 2021, arXiv:2107.02027, section 3: each piece goes to the fullest row that
still has room for it. A row is described by its pieces; segment ids and positions follow from them.
"""

from collections.abc import Callable

import numpy as np

from lmjax.errors import FlagError
from lmjax.streams import random_stream


class Plan:
    """Rows of pieces of documents.

    Attributes:
      documents: `[pieces]` int64, the document of each piece.
      starts: `[pieces]` int64, its first token in the document.
      lengths: `[pieces]` int64, its number of tokens.
      offsets: `[rows + 1]` int64, where the pieces of each row begin.
    """

    def __init__(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        self.documents, self.starts, self.lengths, self.offsets = documents, starts, lengths, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The documents, starts and lengths of the pieces of row `i`."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.documents[part], self.starts[part], self.lengths[part]


def cut(lengths: np.ndarray, max_piece: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The documents, starts and lengths of pieces of `max_piece` tokens and, at a document's end, what remains.

    Args:
      lengths: `[documents]` tokens of each document; one without tokens gives no piece.
      max_piece: tokens.
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
    """A plan with every token of every document in exactly one piece, and the rows in random order.

    Args:
      lengths: `[documents]` tokens of each document.
      max_piece: the most tokens of a piece; longer documents are cut.
      cost: from the tokens of pieces to the places that they take in a row (more, say, for an end-of-text token).
      capacity: places of a row.
      seed: decides which pieces of equal cost meet, and the order of the rows and of the pieces in a row.

    Raises:
      FlagError: a piece does not fit into an empty row.
    """
    documents, starts, sizes = cut(lengths, max_piece)
    costs = np.asarray(cost(sizes), np.int64)
    if len(costs) and (costs.min() < 1 or costs.max() > capacity):
        worst = costs.argmax() if costs.max() > capacity else costs.argmin()
        raise FlagError(
            f"packing: a piece of {sizes[worst]} tokens takes {costs[worst]} places, and a row has 1 to {capacity}; "
            "give longer rows or shorter pieces"
        )
    rng = random_stream(seed, "packing")
    order = rng.permutation(len(costs))
    order = order[np.argsort(-costs[order], kind="stable")]
    rows = np.empty(len(costs), np.int64)
    rows[order], num_rows = _best_fit(costs[order].tolist(), capacity)
    rows = rng.permutation(num_rows)[rows]
    order = np.lexsort((rng.permutation(len(costs)), rows))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64)
    return Plan(documents[order], starts[order], sizes[order], offsets)


def _best_fit(costs: list[int], capacity: int) -> tuple[list[int], int]:
    """The row of each piece, and the number of rows.

    Open rows are kept in a stack for each number of free places; a bit mask of the stacks that hold any gives the
    fullest row with enough room by one shift.
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
