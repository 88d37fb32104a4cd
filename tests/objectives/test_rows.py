"""The arrays of packed rows: each piece has its own positions and segment id, and only targets have weight."""

import numpy as np
import pytest

from lmjax.objectives.rows import pad, side, source_target

PAIRS = [(np.array([11, 12, 3]), np.array([21, 3])), (np.array([13, 3]), np.array([22, 23, 3]))]


def test_pieces_stand_side_by_side():
    row = side([np.array([5, 6]), np.array([7])], 5, 0, "x_")
    assert row["x_tokens"].tolist() == [5, 6, 7, 0, 0]
    assert row["x_positions"].tolist() == [0, 1, 0, 0, 0]
    assert row["x_segment_ids"].tolist() == [1, 1, 2, 0, 0]


def test_what_does_not_fit_is_an_error_and_never_cut():
    with pytest.raises(ValueError, match="broadcast"):
        pad(np.arange(4), 3)


def test_pairs_for_an_encoder_decoder():
    row = source_target(PAIRS, paired=True, length=7, target_length=6, pad_id=0, bos_id=2)
    assert {k: v.tolist() for k, v in row.items()} == {
        "encoder_tokens": [11, 12, 3, 13, 3, 0, 0],
        "encoder_positions": [0, 1, 2, 0, 1, 0, 0],
        "encoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
        "decoder_tokens": [0, 21, 0, 22, 23, 0],
        "decoder_positions": [0, 1, 0, 1, 2, 0],
        "decoder_segment_ids": [1, 1, 2, 2, 2, 0],
        "targets": [21, 3, 22, 23, 3, 0],
        "weights": [1, 1, 1, 1, 1, 0],
    }


def test_pairs_for_a_decoder():
    row = source_target(PAIRS, paired=False, length=12, target_length=6, pad_id=0, bos_id=2)
    assert {k: v.tolist() for k, v in row.items()} == {
        "tokens": [2, 11, 12, 3, 21, 2, 13, 3, 22, 23, 0, 0],
        "positions": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0],
        "segment_ids": [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0],
        "targets": [11, 12, 3, 21, 3, 13, 3, 22, 23, 3, 0, 0],
        "weights": [0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0],
    }
