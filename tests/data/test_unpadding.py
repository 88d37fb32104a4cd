"""Rows are packed for the layers: every token is read once, in order; a batch that does not fit stays as it is."""

import numpy as np
import pytest

from lmjax.data.unpadding import PLACE, SOURCE, Layout, choose_layout, size_of


def batch_of(*rows):
    """Returns a batch of rows given as texts: a digit is the segment id of a token, a dot is padding."""
    return {"segment_ids": np.array([[0 if x == "." else int(x) for x in row] for row in rows], np.int32)}


@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_read_once(seed, microbatches):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 9, 8)
    segments = (np.arange(10)[None] < tokens[:, None]).astype(np.int32)
    # Padding may be before the tokens, or between two segments of a row.
    segments[3] = segments[3][::-1]
    segments[4, 4] = 0
    found = Layout(20, (8,), microbatches)({"segment_ids": segments})
    for number in range(microbatches):
        part, source, place = (x[number::microbatches] for x in (segments, found[SOURCE], found[PLACE]))
        read = source[source >= 0]
        assert sorted(read) == list(np.flatnonzero(part.reshape(-1)))
        np.testing.assert_array_equal(source.reshape(-1)[place[part > 0]], np.flatnonzero(part.reshape(-1)))
        assert (place[part == 0] == -1).all()
        for row in source:
            rows = (row[row >= 0]) // 10
            # The tokens of a row stand together, in their order.
            assert len(np.flatnonzero(np.diff(rows))) == len(set(rows)) - 1 if len(rows) else True
            assert all((np.diff(row[row >= 0][rows == r]) > 0).all() for r in set(rows))


def test_a_batch_has_the_first_size_that_is_enough():
    layout = Layout(4, (1, 3))
    short, longer, longest = (batch_of(*rows) for rows in (("11..", "11.."), ("1111", "111."), ("1111",) * 4))
    assert [size_of(layout(batch)) for batch in (short, longer, longest)] == [1, 3, 0]
    assert layout(longest) is longest
    assert layout.of_size(short, 3)[SOURCE].shape == layout(longer)[SOURCE].shape
    assert layout.of_size(short, 0) is short


def test_the_worst_microbatch_decides_on_the_size():
    rows = ("1111", "1...", "1111", "1...")
    layout = Layout(4, (1, 2), microbatches=2)
    assert size_of(layout(batch_of(*rows)), 2) == 2
    assert size_of(layout(batch_of("1...", "1...", "1...", "1...")), 2) == 1


def test_the_layout_is_the_cheapest_on_average():
    """Half of the positions are padding: packed rows take little more than the tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, 41, 1000)
    layout = choose_layout(tokens, 48, 16, longest=512)
    assert layout.length == 96
    batches = [(np.arange(48)[None] < rng.choice(tokens, 16)[:, None]).astype(np.int32) for _ in range(200)]
    sizes = [size_of(layout({"segment_ids": batch})) for batch in batches]
    taken = np.mean([size * 96 if size else 16 * 48 for size in sizes])
    assert taken < 1.2 * 16 * tokens.mean()
    assert choose_layout(tokens, 48, 16, longest=512) == layout
    assert choose_layout(tokens, 48, 16, longest=95).length == 48


@pytest.mark.parametrize(("tokens", "length"), [(48, 48), (100, 128), (65, 128)])
def test_rows_that_cannot_share_one_are_not_packed(tokens, length):
    assert choose_layout(np.array([tokens] * 10), length, 4, longest=512) is None


def test_rows_without_tokens_take_no_room():
    layout = choose_layout(np.array([0] * 9 + [64]), 64, 4, longest=512)
    assert layout.sizes == (1,)
    empty = layout({"segment_ids": np.zeros((4, 64), np.int32)})
    assert size_of(empty) == 1
    assert (empty[PLACE] == -1).all()
    assert (empty[SOURCE] == -1).all()
