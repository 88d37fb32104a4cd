"""Makes batches; each depends only on the seed and the step, so a run can continue its data from any step.

With one source, example g = step * batch_size + j is row permutation(seed, epoch)[g mod num_rows] of epoch
g div num_rows, and the random generator of an example depends on (seed, epoch, row) alone. With several sources,
`mixing.Mixture` computes the epoch and the row. The number of processes, workers or threads has no influence.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lmjax.data.mixing import Mixture
from lmjax.data.workers import BoundedReader
from lmjax.errors import DataError, FlagError
from lmjax.streams import random_stream

Features = dict[str, np.ndarray]
MakeExample = Callable[[int, np.random.Generator], Features]

_ENDLESS = 2**62


class Batches:
    """An iterator over the batches of consecutive steps, which threads or worker processes make in advance.

    It is also a context manager. `close`, the end of the context and the end of the iteration stop the threads and
    workers.
    """

    def __init__(
        self,
        make_batch: Callable[[int], Features],
        start: int,
        stop: int,
        *,
        workers: int = 0,
        prefetch: int = 4,
        timeout: float = 300.0,
    ):
        import grain  # here and not above, because it imports jax

        dataset = grain.MapDataset.range(start, stop).map(make_batch)
        # One thread is fast enough to make batches in advance; with workers, each process has one thread.
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
        if workers:
            _parse_flags()
            options = grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=max(1, prefetch // workers)
            )
            dataset = dataset.mp_prefetch(options)
        self._iterator = iter(dataset)
        self._reader = BoundedReader(self._iterator, timeout) if workers else None

    def __iter__(self):
        return self

    def __next__(self) -> Features:
        if self._iterator is None:
            raise StopIteration
        batch = next(self._iterator, None) if self._reader is None else self._reader.read()
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def close(self) -> None:
        """Stops the threads and workers; afterwards the iterator is exhausted."""
        if self._iterator is not None:
            if self._reader is not None:
                self._reader.close()
            self._iterator.close()
            self._iterator = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def batches(
    make_example: MakeExample,
    rows: int | Mixture,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    arrange: Callable[[Features], Features] | None = None,
    workers: int = 0,
    prefetch: int = 4,
    timeout: float = 300.0,
) -> Batches:
    """Returns an iterator over this process's part of the batches from `start_step` on.

    Args:
        make_example: makes the features of one example, each of a fixed shape, from a row number and a random
            generator. It is pickled if there are `workers`.
        rows: the number of rows in an epoch, or a mixture of sources. A batch may contain rows of two epochs.
        seed: of the order of rows and of the random generators.
        batch_size: number of examples in the global batch.
        start_step: the first step.
        num_steps: number of steps; None for no end.
        process_index: which of the `process_count` contiguous parts of each global batch this process makes.
        process_count: number of processes; it must divide `batch_size`.
        shuffle: whether each epoch has the rows in a new random order.
        arrange: applied to each batch; None: batches stay as they are.
        workers: number of processes that make batches; with 0 a thread of this process makes them.
        prefetch: number of batches made in advance.
        timeout: seconds of waiting for a batch of the workers, after which they count as stuck.

    Raises:
        DataError: there are no rows.
        FlagError: `process_count` does not divide `batch_size`.
    """
    mixture = _mixture(rows)
    share = _share(batch_size, process_index, process_count)
    make_batch = functools.partial(_train_batch, make_example, mixture, seed, share, shuffle, arrange)
    stop = _ENDLESS if num_steps is None else start_step + num_steps
    return Batches(make_batch, start_step, stop, workers=workers, prefetch=prefetch, timeout=timeout)


def eval_batches(
    make_example: MakeExample,
    rows: int | Mixture,
    *,
    seed: int,
    batch_size: int,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> Batches:
    """Returns an iterator over this process's part of the batches of one epoch; it is the same at each call.

    Each row occurs once. The sources are spread evenly, so that the first batches have rows of each. The last batch is
    padded with examples whose arrays are all zero, which have weight 0 and segment id 0. There are at most
    `max_batches` batches; the other arguments are those of `batches`.
    """
    mixture = _mixture(rows)
    share = _share(batch_size, process_index, process_count)
    make_batch = functools.partial(_eval_batch, make_example, mixture, seed, share)
    num_batches = -(-len(mixture) // batch_size)
    return Batches(
        make_batch, 0, num_batches if max_batches is None else min(num_batches, max_batches), prefetch=prefetch
    )


class _Share(NamedTuple):
    """The part of each global batch that one process makes."""

    batch_size: int
    process_index: int
    process_count: int

    def positions(self, step: int) -> range:
        """Returns the numbers of this process's examples at a step, counted over all steps and processes."""
        local = self.batch_size // self.process_count
        first = step * self.batch_size + self.process_index * local
        return range(first, first + local)


def _mixture(rows: int | Mixture) -> Mixture:
    mixture = Mixture((rows,), (1.0,)) if isinstance(rows, int) else rows
    if min(mixture.sizes) < 1:
        raise DataError("the data gives no example; check what --data and --eval_data name, or give more text")
    return mixture


def _share(batch_size: int, process_index: int, process_count: int) -> _Share:
    if batch_size % process_count:
        raise FlagError(f"batch_size: {batch_size} does not divide among {process_count} processes; give a multiple")
    return _Share(batch_size, process_index, process_count)


def example_stream(seed: int, epoch: int, row: int) -> np.random.Generator:
    """Returns the random generator with which a row is made in an epoch."""
    return random_stream(seed, "example", epoch, row)


def _train_batch(
    make_example: MakeExample,
    mixture: Mixture,
    seed: int,
    share: _Share,
    shuffle: bool,
    arrange: Callable[[Features], Features] | None,
    step: int,
) -> Features:
    examples = []
    for position in share.positions(step):
        epoch, row = mixture.row(position, seed, shuffle)
        examples.append(make_example(row, example_stream(seed, epoch, row)))
    batch = _stack(examples)
    return batch if arrange is None else arrange(batch)


def _eval_batch(make_example: MakeExample, mixture: Mixture, seed: int, share: _Share, step: int) -> Features:
    examples = []
    for place in share.positions(step):
        row = int(mixture.spread[min(place, len(mixture) - 1)])
        example = make_example(row, random_stream(seed, "evaluation example", row))
        if place >= len(mixture):
            example = {name: np.zeros_like(value) for name, value in example.items()}
        examples.append(example)
    return _stack(examples)


def _stack(examples: list[Features]) -> Features:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _parse_flags() -> None:
    """Marks absl's flags as parsed, because grain reads them to start workers, and a notebook does not parse them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
