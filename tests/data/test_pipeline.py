"""Batches: they depend on the step alone, not on the number of hosts, workers and restarts."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from lmjax.data.pipeline import batches, eval_batches
from lmjax.errors import DataError, FlagError, StuckError, WorkerError

ROWS = 23


def make_example(index, rng):
    return {"row": np.array(index), "noise": rng.integers(0, 2**31, 3), "weights": np.ones(2, np.float32)}


def take(iterator, count=None):
    with iterator:
        return [batch for _, batch in zip(range(10**9 if count is None else count), iterator, strict=False)]


def equal(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def test_each_epoch_has_every_row_once_in_an_order_of_its_own():
    rows = np.concatenate([batch["row"] for batch in take(batches(make_example, ROWS, seed=1, batch_size=5), 23)])
    epochs = rows.reshape(5, ROWS)
    assert (np.sort(epochs) == np.arange(ROWS)).all(), "a row is missing, or occurs twice in an epoch"
    assert len({tuple(epoch) for epoch in epochs}) == 5, "two epochs have the same order"


def test_noise_differs_between_epochs_and_seeds_and_not_between_runs():
    runs = [take(batches(make_example, ROWS, seed=seed, batch_size=ROWS), 2) for seed in (1, 1, 2)]

    def noise(batch):
        return batch["noise"][np.argsort(batch["row"])]

    assert equal(runs[0], runs[1])
    assert not (noise(runs[0][0]) == noise(runs[0][1])).any(), "every epoch would mask the same tokens"
    assert not (noise(runs[0][0]) == noise(runs[2][0])).any()


@pytest.mark.parametrize("step", [1, 4, 11])
def test_resuming_at_a_step_goes_on_as_if_nothing_had_happened(step):
    whole = take(batches(make_example, ROWS, seed=3, batch_size=6, num_steps=12))
    rest = take(batches(make_example, ROWS, seed=3, batch_size=6, start_step=step, num_steps=12 - step))
    assert equal(rest, whole[step:])
    assert not equal(take(batches(make_example, ROWS, seed=3, batch_size=6, start_step=step - 1), 1), rest[:1])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_make_contiguous_parts_of_the_same_global_batches(hosts):
    whole = take(batches(make_example, ROWS, seed=3, batch_size=8), 7)
    parts = [
        take(batches(make_example, ROWS, seed=3, batch_size=8, process_index=i, process_count=hosts), 7)
        for i in range(hosts)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert equal(joined, whole)


def test_worker_processes_change_nothing():
    alone = take(batches(make_example, ROWS, seed=3, batch_size=8), 7)
    assert equal(take(batches(make_example, ROWS, seed=3, batch_size=8, workers=2), 7), alone)


class Trouble:
    """Makes examples until row 9, at which its worker process fails."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, index, rng):
        if index == 9 and multiprocessing.parent_process() is not None:
            if self.kind == "raises":
                raise DataError("row 9 is bad")
            if self.kind == "loops":
                time.sleep(1000)
            os.kill(os.getpid(), {"is killed": signal.SIGKILL, "is stopped": signal.SIGSTOP}[self.kind])
        return make_example(index, rng)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("is killed", WorkerError, "exit code -9"),
        ("is stopped", StuckError, "in 6 seconds"),
        ("loops", StuckError, "in 6 seconds"),
        ("raises", DataError, "row 9 is bad"),
    ],
)
def test_a_worker_that(kind, error, message):
    """A failure in a worker is raised within a limited time, after the batches made before it."""
    start, whole, seconds = time.monotonic(), [], 6 if error is StuckError else 60
    iterator = batches(Trouble(kind), ROWS, seed=0, batch_size=4, shuffle=False, workers=1, timeout=seconds)
    with iterator, pytest.raises(error, match=message):
        whole.extend(batch["row"].tolist() for batch in iterator)
    # Some of the batches made may not have been sent yet.
    assert whole == [[0, 1, 2, 3], [4, 5, 6, 7]][: len(whole)]
    assert time.monotonic() - start < 40
    assert not multiprocessing.active_children()


def test_without_shuffling_rows_come_in_order():
    (batch,) = take(batches(make_example, 3, seed=0, batch_size=7, shuffle=False, num_steps=1))
    assert batch["row"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_evaluation_sees_each_row_once_and_fills_up_with_nothing():
    steps = take(eval_batches(make_example, ROWS, seed=0, batch_size=5))
    rows = np.concatenate([batch["row"] for batch in steps])
    weights = np.concatenate([batch["weights"] for batch in steps])
    assert rows[:ROWS].tolist() == list(range(ROWS))
    assert weights[:ROWS].all()
    assert weights.shape == (25, 2)
    assert all(not batch_array[-2:].any() for batch_array in steps[-1].values()), "padding would be evaluated"
    assert equal(take(eval_batches(make_example, ROWS, seed=0, batch_size=5)), steps)
    assert equal(take(eval_batches(make_example, ROWS, seed=0, batch_size=5, max_batches=2)), steps[:2])


def test_evaluation_does_not_depend_on_the_batch_or_on_hosts():
    def rows(batch_size, **share):
        steps = take(eval_batches(make_example, ROWS, seed=0, batch_size=batch_size, **share))
        return np.stack([batch["noise"] for batch in steps])

    whole = rows(8)
    parts = [rows(8, process_index=i, process_count=4) for i in range(4)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert np.array_equal(rows(5).reshape(-1, 3)[:ROWS], whole.reshape(-1, 3)[:ROWS])


def test_an_evaluation_smaller_than_a_batch_gives_every_host_a_batch_of_the_same_shape():
    for i in range(4):
        (batch,) = take(eval_batches(make_example, 1, seed=0, batch_size=4, process_index=i, process_count=4))
        assert batch["weights"].shape == (1, 2)
        assert batch["weights"].all() == (i == 0)


def test_an_error_in_an_example_surfaces_with_its_cause():
    def broken(index, rng):
        raise ValueError("token 70000 is past the vocabulary")

    with pytest.raises(ValueError, match="token 70000"):
        take(batches(broken, ROWS, seed=0, batch_size=4), 1)


def test_impossible_shares_are_refused_at_once():
    with pytest.raises(FlagError, match="batch_size: 6 does not divide among 4 processes"):
        batches(make_example, ROWS, seed=0, batch_size=6, process_count=4)
    with pytest.raises(DataError, match="no example"):
        eval_batches(make_example, 0, seed=0, batch_size=6)


def test_a_closed_iterator_is_at_its_end():
    iterator = batches(make_example, ROWS, seed=0, batch_size=4)
    next(iterator)
    iterator.close()
    iterator.close()
    assert list(iterator) == []
