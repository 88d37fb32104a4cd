"""Mixtures: exact rates in every block, each row once per epoch, and any position computed without those before it."""

import collections
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.mixing import Mixture, quantised, set_rates
from lmjax.data.pipeline import batches, eval_batches
from lmjax.errors import DataError
from lmjax.streams import random_stream

SIZES = (5, 11, 3)


@pytest.fixture
def mixture():
    return Mixture(SIZES, (4.0, 2.0, 1.0))


def source_of(row):
    return int(np.searchsorted(np.cumsum(SIZES), row, side="right"))


def test_every_block_has_each_source_as_often_as_its_rate_says(mixture):
    slots = sum(mixture.slots)
    for block in range(8):
        rows = [mixture.row(g, seed=1)[1] for g in range(block * slots, (block + 1) * slots)]
        counts = collections.Counter(source_of(row) for row in rows)
        assert tuple(counts[i] for i in range(3)) == mixture.slots
    assert np.abs(np.array(mixture.slots) / slots - np.array([4, 2, 1]) / 7).max() < 1 / 4096


def test_the_order_within_a_block_is_random_and_the_blocks_own(mixture):
    slots = sum(mixture.slots)

    def order(seed, block):
        return [source_of(mixture.row(g, seed)[1]) for g in range(block * slots, (block + 1) * slots)]

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    first = np.flatnonzero(np.array(orders[0]) == 2)
    assert first.min() < slots / 10
    assert first.max() > slots * 9 / 10


def test_a_source_is_read_once_an_epoch_in_an_order_of_its_own(mixture):
    read = collections.defaultdict(list)
    for g in range(3000):
        epoch, row = mixture.row(g, seed=3)
        read[source_of(row), epoch].append(row)
    first = np.concatenate([[0], np.cumsum(SIZES)])
    for source, size in enumerate(SIZES):
        last = max(epoch for s, epoch in read if s == source)
        for epoch in range(last):
            assert sorted(read[source, epoch]) == [*range(first[source], first[source + 1])]
        assert len({tuple(read[source, epoch]) for epoch in range(last)}) > 1, f"{size} rows in one order"


def test_a_place_does_not_depend_on_what_was_asked_before(mixture):
    forward = [mixture.row(g, seed=0) for g in range(500)]
    fresh = Mixture(mixture.sizes, mixture.rates)
    assert [fresh.row(g, seed=0) for g in reversed(range(500))] == forward[::-1]
    assert [pickle.loads(pickle.dumps(mixture)).row(g, seed=0) for g in range(500)] == forward


def test_one_source_comes_in_the_order_that_it_has_alone():
    """With one source, each epoch has each row once, in a new order."""
    alone = Mixture((7,), (0.3,))
    expected = [(e, int(row)) for e in range(4) for row in random_stream(9, "order", 0, e).permutation(7)]
    assert [alone.row(g, seed=9) for g in range(28)] == expected


def test_epochs_are_counted_for_each_source(mixture):
    for positions in (0, 1, 3, 7, 4095, 4096, 10_000):
        rows = [mixture.row(g, seed=5)[1] for g in range(positions)]
        counts = collections.Counter(source_of(row) for row in rows)
        assert mixture.epochs(positions, seed=5) == pytest.approx([counts[i] / n for i, n in enumerate(SIZES)])


def test_evaluation_spreads_every_source_over_the_whole(mixture):
    assert sorted(mixture.spread.tolist()) == [*range(sum(SIZES))]
    for source in range(3):
        slots = [i for i, row in enumerate(mixture.spread.tolist()) if source_of(row) == source]
        assert np.diff(mixture.spread[slots]).min() == 1, "the rows of a source are not in order"
        assert np.diff(slots).max() <= 2 * sum(SIZES) / SIZES[source]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40))
def test_quantised_rates_keep_every_source_and_are_near(rates):
    counts = np.array(quantised(rates, 4096))
    assert (counts >= 1).all(), "a source is never read"
    shares = np.array(rates) / sum(rates)
    # A share that is raised to one slot lowers the others.
    assert np.abs(counts / counts.sum() - shares).max() < (len(rates) + 1) / 4096


def test_equal_rates_take_turns_in_the_smallest_blocks():
    assert quantised([0.5, 0.5], 4096) == (1, 1)
    assert quantised([3.0, 1.0], 4096) == (3, 1)
    assert quantised([17.0], 4096) == (1,)


def test_temperature_evens_the_rates_out():
    assert set_rates((), (300, 100), 1.0) == pytest.approx((0.75, 0.25))
    assert set_rates((), (300, 100), 2.0) == pytest.approx(np.sqrt([300, 100]) / np.sqrt([300, 100]).sum())
    assert set_rates((), (300, 100), 1e9) == pytest.approx((0.5, 0.5))
    assert set_rates((), (300, 100), 1e-3) == pytest.approx((1.0, 0.0))
    assert set_rates((1.0, 3.0), (300, 100), 1.0) == pytest.approx((0.25, 0.75))
    assert set_rates((0.0, 100.0), (300, 7), 1.0) == pytest.approx((0.75, 0.25))


def make_example(row, rng):
    return {"row": np.array(row), "noise": rng.integers(0, 2**31, 3), "weights": np.ones(2, np.float32)}


def take(iterator):
    with iterator:
        return [{name: array.tolist() for name, array in batch.items()} for batch in iterator]


@pytest.mark.parametrize("step", [1, 5])
def test_a_mixed_run_resumes_at_any_step(mixture, step):
    whole = take(batches(make_example, mixture, seed=3, batch_size=6, num_steps=9))
    fresh = Mixture(mixture.sizes, mixture.rates)
    assert take(batches(make_example, fresh, seed=3, batch_size=6, start_step=step, num_steps=9 - step)) == whole[step:]


def test_hosts_share_a_mixed_run(mixture):
    whole = take(batches(make_example, mixture, seed=3, batch_size=6, num_steps=5))
    share = {"process_count": 2}
    parts = [
        take(batches(make_example, mixture, seed=3, batch_size=6, num_steps=5, process_index=i, **share))
        for i in (0, 1)
    ]
    assert [{name: a[name] + b[name] for name in a} for a, b in zip(*parts, strict=True)] == whole


def test_evaluation_of_a_mixture_has_each_row_once(mixture):
    steps = take(eval_batches(make_example, mixture, seed=0, batch_size=4))
    rows = [row for step in steps for row in step["row"]]
    assert rows[: sum(SIZES)] == mixture.spread.tolist()
    assert [w for step in steps for w in step["weights"]][sum(SIZES) :] == [[0, 0]]


def test_a_source_without_rows_is_refused():
    with pytest.raises(DataError, match="no example"):
        batches(make_example, Mixture((3, 0), (1, 1)), seed=0, batch_size=2)
