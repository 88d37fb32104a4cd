"""From row numbers to batches: a batch is a function of the step alone, so the step number is the data position.

Example g = step * batch_size + j is row permutation(seed, epoch)[g mod num_rows] of epoch g div num_rows, made with a
generator that is a function of (seed, epoch, row); where sources are mixed, `mixing.Mixture` says which epoch and row.
Nothing depends on the number of processes, workers or threads.
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
    """An iterator over the batches of consecutive steps, made ahead by threads or worker processes.

    A context manager; closing it, leaving the context, or reaching the end stops the threads and workers.
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
        import grain  # imports jax, which nothing else in this package does

        dataset = grain.MapDataset.range(start, stop).map(make_batch)
        # One thread keeps ahead of the device; with workers, each process has its own.
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
        """Stops the threads and workers; there is nothing more to iterate over then."""
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
    workers: int = 0,
    prefetch: int = 4,
    timeout: float = 300.0,
) -> Batches:
    """An iterator over this process's part of the batches from `start_step` on.

    Args:
      make_example: from a row number and a generator to the features of one example, each of a fixed shape. With
        `workers` it is pickled.
      rows: how many rows an epoch has, or the mixture of sources that they come from. Each epoch has its own order, and
        a batch may span two epochs.
      seed: of the order and of the generators.
      batch_size: examples of the global batch.
      start_step: the first step.
      num_steps: how many steps; None goes on for ever.
      process_index: which of the `process_count` contiguous parts of each global batch this process makes.
      process_count: number of processes; it divides `batch_size`.
      shuffle: whether rows come in a random order, a new one each epoch.
      workers: processes that make batches; 0 uses a thread of this one.
      prefetch: batches made ahead.
      timeout: seconds of waiting for a batch of the workers, after which they count as stuck.

    Raises:
      DataError: there are no rows.
      FlagError: the processes do not divide the batch.
    """
    mixture = _mixture(rows)
    share = _share(batch_size, process_index, process_count)
    make_batch = functools.partial(_train_batch, make_example, mixture, seed, share, shuffle)
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
    """An iterator over this process's part of the batches with each row once, in order, the same every time.

    Sources are spread evenly, so that the first batches hold some of each. The last batch is filled up with examples
    whose arrays are all zero: no weight, no segment. At most `max_batches` batches are made; the other arguments are
    those of `batches`.
    """
    mixture = _mixture(rows)
    share = _share(batch_size, process_index, process_count)
    make_batch = functools.partial(_eval_batch, make_example, mixture, seed, share)
    num_batches = -(-len(mixture) // batch_size)
    return Batches(
        make_batch, 0, num_batches if max_batches is None else min(num_batches, max_batches), prefetch=prefetch
    )


class _Share(NamedTuple):
    """Which part of each global batch a process makes."""

    batch_size: int
    process_index: int
    process_count: int

    def positions(self, step: int) -> range:
        """The global example numbers of this process at a step."""
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
    """The generator that a row of an epoch is made with."""
    return random_stream(seed, "example", epoch, row)


def _train_batch(
    make_example: MakeExample, mixture: Mixture, seed: int, share: _Share, shuffle: bool, step: int
) -> Features:
    examples = []
    for position in share.positions(step):
        epoch, row = mixture.row(position, seed, shuffle)
        examples.append(make_example(row, example_stream(seed, epoch, row)))
    return _stack(examples)


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
    """Marks absl's flags as parsed, as in a notebook they are not: grain reads them when it starts workers."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
