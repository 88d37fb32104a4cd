"""Tables as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

# The least width of a column of numbers, so that tables with different numbers look alike.
_LEAST = 12


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns rows as lines: the first column is aligned left and the others right, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{x:>{max(w, _LEAST)}}" for x, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
