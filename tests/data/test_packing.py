"""Plans: each token in exactly one piece, no row too full, rows nearly full, the same plan for the same seed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.packing import cut, pack
from lmjax.errors import FlagError


def plain(lengths):
    return lengths


def covered(plan, lengths):
    """Returns, for each token of each document, the number of pieces that contain it."""
    counts = [np.zeros(length, int) for length in lengths]
    for i in range(len(plan)):
        for document, start, length in zip(*plan.row(i), strict=True):
            assert start + length <= lengths[document]
            counts[document][start : start + length] += 1
    return np.concatenate(counts) if counts else np.zeros(0, int)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=60),
    st.integers(1, 12),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_every_token_is_in_one_piece_and_no_row_overflows(lengths, max_piece, extra, room, seed):
    capacity = max_piece + extra + room
    plan = pack(np.array(lengths, int), max_piece=max_piece, cost=lambda x: x + extra, capacity=capacity, seed=seed)
    assert (covered(plan, lengths) == 1).all(), "a token is lost, or occurs twice in an epoch"
    for i in range(len(plan)):
        sizes = plan.row(i)[2]
        assert len(sizes) > 0, "a row has only padding"
        assert sizes.max() <= max_piece
        assert (sizes + extra).sum() <= capacity


def test_long_documents_are_cut_into_windows_and_a_remainder():
    documents, starts, lengths = cut(np.array([7, 0, 3, 6]), 3)
    assert documents.tolist() == [0, 0, 0, 2, 3, 3]
    assert starts.tolist() == [0, 3, 6, 0, 0, 3]
    assert lengths.tolist() == [3, 3, 1, 3, 3, 3]


def test_pieces_go_to_the_fullest_row_with_room():
    # By size: 6 | 5 | 4 with 6 | 3 with 5 (2 free) | 2 with 5 and 3. First fit in the given order would need 3 rows.
    plan = pack(np.array([2, 6, 3, 5, 4]), max_piece=10, cost=plain, capacity=10)
    assert sorted(sorted(plan.row(i)[2].tolist()) for i in range(len(plan))) == [[2, 3, 5], [4, 6]]


def test_rows_are_nearly_full_on_lengths_like_those_of_texts():
    lengths = np.random.default_rng(0).lognormal(5, 1.2, 20_000).astype(int) + 1
    for capacity in (64, 256, 1024):
        plan = pack(lengths, max_piece=capacity - 2, cost=lambda x: x + 2, capacity=capacity)
        used = (plan.lengths + 2).sum() / (len(plan) * capacity)
        assert used > 0.98, f"{1 - used:.1%} of every step would be spent on padding"


def test_a_plan_is_a_function_of_its_seed():
    lengths = np.random.default_rng(0).integers(1, 50, 500)
    plans = [pack(lengths, max_piece=40, cost=plain, capacity=64, seed=seed) for seed in (3, 3, 4)]
    arrays = [np.concatenate([plan.documents, plan.starts, plan.lengths, plan.offsets]) for plan in plans]
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


def test_the_first_rows_are_no_special_ones():
    lengths = np.concatenate([np.full(500, 64), np.full(2000, 8)])
    plan = pack(lengths, max_piece=64, cost=plain, capacity=64)
    whole = np.array([len(plan.row(i)[0]) == 1 for i in range(len(plan))])
    assert abs(whole[:100].mean() - whole.mean()) < 0.15, (
        "an evaluation of the first rows would see long documents alone"
    )


def test_a_piece_that_fits_no_row_is_refused():
    with pytest.raises(FlagError, match=r"a piece of 9 tokens takes 11 positions, and must take 1 to 10"):
        pack(np.array([3, 9]), max_piece=9, cost=lambda x: x + 2, capacity=10)


def test_no_documents_give_no_rows():
    assert len(pack(np.zeros(0, int), max_piece=4, cost=plain, capacity=4)) == 0


def test_a_hundred_thousand_documents_take_no_time():
    lengths = np.random.default_rng(0).integers(1, 600, 100_000)
    start = time.process_time()
    pack(lengths, max_piece=512, cost=plain, capacity=512)
    assert time.process_time() - start < 5, "planning is no longer linear in the pieces"
