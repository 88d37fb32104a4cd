"""Tokens of two tokenizers that are the same, and the rows of an embedding table that follow from them."""

import numpy as np
import pytest

from lmjax.data.matching import match_tokens, matched_rows
from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    text = "the old king sees the young queen under the tree. " * 20
    small = train_tokenizer([text], TokenizerConfig(kind="char", byte_fallback=False))
    return small, train_tokenizer([text], TokenizerConfig(vocab_size=400))


def test_tokens_are_matched_by_bytes_and_roles(tokenizers):
    old, new = tokenizers
    matched = match_tokens(old, new)
    for text in "thek.":
        assert matched.ids[new.encode(text)[0]] == old.encode(text)[0]
    for role, i in new.role_ids.items():
        assert matched.ids[i] == old.role_ids[role]
    whole = [i for i in np.flatnonzero(matched.ids < 0).tolist() if len(new.pieces[i]) > 1]
    assert whole
    for i in whole:
        assert old.decode(matched.pieces[i]).encode() == new.pieces[i]


def test_the_same_tokenizer_keeps_its_ids(tokenizers):
    for each in tokenizers:
        np.testing.assert_array_equal(match_tokens(each, each).ids, np.arange(each.vocab_size))


def test_rows_follow_their_tokens(tokenizers):
    old, new = tokenizers
    matched = match_tokens(old, new)
    table = np.random.default_rng(0).normal(size=(old.vocab_size + 5, 3)).astype(np.float32)
    table[old.vocab_size :] = 1e6  # rows without a token are no part of a mean
    for by_pieces in (False, True):
        rows = matched_rows(table, matched, new.vocab_size + 2, by_pieces=by_pieces)
        kept = matched.ids >= 0
        np.testing.assert_array_equal(rows[: len(kept)][kept], table[matched.ids[kept]])
        i, pieces = next(iter(matched.pieces.items()))
        mean = table[list(pieces)] if by_pieces else table[: old.vocab_size]
        np.testing.assert_allclose(rows[i], mean.mean(0), rtol=1e-5)
        np.testing.assert_allclose(rows[-1], table[: old.vocab_size].mean(0), rtol=1e-5)
