"""Answers as spans: from characters of a context to tokens, and from logits of tokens to the best texts."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """An answer: its text, its score, its first character in the context, and the character after its last one."""

    text: str
    score: float
    start: int
    end: int


def spans_of(starts: np.ndarray, first: int, end: int) -> tuple[int, int]:
    """Returns the numbers of the first and the last token that overlap the characters `first` to `end` - 1.

    Args:
        starts: the character at which each token begins, never decreasing; at least one token.
        first: the first character.
        end: the character after the last one.
    """
    token = max(0, int(np.searchsorted(starts, first, side="right")) - 1)
    # Of several tokens of one character, all are part of the span.
    token = int(np.searchsorted(starts, starts[token], side="left"))
    return token, max(token, int(np.searchsorted(starts, end, side="left")) - 1)


def best_spans(
    rows: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    context: str,
    starts: np.ndarray,
    longest: int,
    count: int,
) -> list[Candidate]:
    """Returns the best answers with different texts that are not blank, the best first.

    Args:
        rows: of each row, the numbers of the context's tokens from 1 (0: another token), and the logits of start and
            end, each `[length]`.
        context: the text.
        starts: the character at which each of its tokens begins.
        longest: the most tokens of an answer.
        count: the most answers.
    """
    scores: dict[tuple[int, int], float] = {}
    for numbers, start, end in rows:
        at = np.flatnonzero(numbers)
        # `[start, end]`; only an end that is not before its start, and not too far behind it, gives an answer.
        pairs = np.add.outer(start[at], end[at])
        pairs[~(np.tri(len(at), k=longest - 1, dtype=bool) & np.tri(len(at), dtype=bool).T)] = -np.inf
        # Blank texts and texts that occur twice are left out below.
        several = min(pairs.size, 8 * count)
        for place in np.argpartition(pairs, -several, axis=None)[-several:] if several else ():
            i, j = divmod(int(place), len(at))
            if pairs[i, j] > -np.inf:
                span = int(numbers[at[i]]) - 1, int(numbers[at[j]]) - 1
                scores[span] = max(scores.get(span, -np.inf), float(pairs[i, j]))
    found: dict[str, Candidate] = {}
    for (first, last), score in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
        begin, after = int(starts[first]), int(np.searchsorted(starts, starts[last], side="right"))
        text = context[begin : int(starts[after]) if after < len(starts) else len(context)]
        begin += len(text) - len(text.lstrip())
        text = text.strip()
        if text and text not in found:
            found[text] = Candidate(text, score, begin, begin + len(text))
    return list(found.values())[:count]
