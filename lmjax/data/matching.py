"""Which tokens of one tokenizer are those of another one, by their text."""

from typing import NamedTuple

import numpy as np

from lmjax.data.vocabulary import Vocabulary


class Matched(NamedTuple):
    """The tokens of an old tokenizer that stand for those of a new one.

    Attributes:
        ids: int64 `[new ids]`, the old id of each new token; -1: there is none.
        size: number of old ids.
        pieces: by new id without an old one, the old ids that spell its text; special tokens are left out.
    """

    ids: np.ndarray
    size: int
    pieces: dict[int, tuple[int, ...]]


def match_tokens(old: Vocabulary, new: Vocabulary) -> Matched:
    """Returns the old tokens by new id: text by its bytes, special tokens by their role or else by their text."""
    ids = np.full(new.vocab_size, -1, np.int64)
    # A token that is a single byte has a small id, and a text token with the same bytes replaces it.
    known = {piece: i for i, piece in enumerate(old.pieces) if piece}
    named = {i: old.role_ids[role] for role, i in new.role_ids.items() if role in old.role_ids}
    special = {i: old.special_texts.get(text) for text, i in new.special_texts.items()}
    for i, piece in enumerate(new.pieces):
        if not piece:
            found = named.get(i, special.get(i))
        elif i < old.vocab_size and old.pieces[i] == piece:
            found = i
        else:
            found = known.get(piece)
        ids[i] = -1 if found is None else found
    texts = {i: new.pieces[i].decode(errors="ignore") for i in np.flatnonzero(ids < 0).tolist()}
    texts = {i: text for i, text in texts.items() if text}
    spelled = zip(texts, old.encode_batch(list(texts.values())), strict=True)
    return Matched(ids, old.vocab_size, {i: tuple(pieces) for i, pieces in spelled if pieces})


def matched_rows(table: np.ndarray, matched: Matched, rows: int, *, by_pieces: bool) -> np.ndarray:
    """Returns float32 `[rows, ...]`: the rows of a table of the old tokens, in the order of the new ones.

    Args:
        table: `[old rows, ...]`, with a row for each old id.
        matched: the old tokens of the new ones.
        rows: of the new table; those without a token begin like new tokens.
        by_pieces: whether a new token begins as the mean of the rows of its pieces; else as the mean of the table.
    """
    table = np.asarray(table, np.float32)
    result = np.empty((rows, *table.shape[1:]), np.float32)
    result[:] = table[: matched.size].mean(axis=0)
    ids = matched.ids[:rows]
    result[: len(ids)][ids >= 0] = table[ids[ids >= 0]]
    if by_pieces:
        for i, pieces in matched.pieces.items():
            result[i] = table[list(pieces)].mean(axis=0)
    return result
