"""Writes metrics to metrics.jsonl and TensorBoard under the same names, reads them, and measures time by purpose."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
from pydantic import Field

from lmjax import strict_json
from lmjax.errors import DataError, SaveError
from lmjax.paths import read_regular, write_durably
from lmjax.schema import Schema
from lmjax.training.board import Board, HyperparameterTable

# The file of metrics in a workdir: a line of JSON for each step that is logged.
METRICS = "metrics.jsonl"


class LoggingConfig(Schema):
    """What is logged, and how often."""

    every: int = Field(10, ge=1, description="steps between lines of metrics; evaluated steps always have one")
    tensorboard: bool = Field(True, description="write TensorBoard events beside metrics.jsonl")


class MetricsWriter:
    """Writes one line of numbers per step; a context manager. A number that is not finite is written as null.

    A resumed run computes the steps after its checkpoint again, bit for bit. Their old lines are removed first, so that
    the file has one line per step; a run that starts at step 0 removes all lines.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: LoggingConfig,
        start_step: int,
        hyperparameters: HyperparameterTable | None = None,
    ):
        """Opens the files of a run that starts or resumes at a step.

        Args:
            workdir: the run's workdir.
            config: what is written.
            start_step: updates done so far.
            hyperparameters: the run's row in TensorBoard's table of hyperparameters; None: it has none.
        """
        self._path = workdir / METRICS
        keep_lines(self._path, start_step)
        self._file = self._path.open("a")
        self._board = Board(workdir, start_step + 1) if config.tensorboard else None
        if self._board is not None and hyperparameters is not None:
            for summary in hyperparameters.summaries():
                self._board.add(summary)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # `write` has raised it already
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step; raises SaveError if metrics.jsonl, which a resumed run reads, has no room."""
        try:
            self._file.write(strict_json.dumps({"step": step} | metrics) + "\n")
            self._file.flush()
        except OSError as e:
            raise SaveError(
                f"{self._path}: cannot write the metrics of step {step} ({e.strerror}); make room, and run the same "
                "command again"
            ) from e
        if self._board is not None:
            self._board.add_scalars(metrics, step)


def keep_lines(path: pathlib.Path, start_step: int) -> list[str]:
    """Returns the lines of a file up to `start_step`, and removes the later ones from the file.

    Args:
        path: a file of JSON lines with a `step`.
        start_step: the step at which the run starts or resumes; 0 removes all lines.

    Raises:
        DataError: a line other than the last is damaged.
    """
    if not path.exists():
        return []
    lines = [text for text, values in _lines(path) if values["step"] <= start_step] if start_step else []
    write_durably(path, "".join(f"{line}\n" for line in lines))
    return lines


def _lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns the lines of a file, each as text and as its values; a last line that is cut short is left out."""
    try:
        texts = read_regular(path, sys.maxsize).rstrip().split(b"\n")
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from e
    found = []
    for number, text in enumerate(texts, 1):
        try:
            values = json.loads(text)
            found.append((text.decode(), values | {"step": int(values["step"])}))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
            if number == len(texts):
                break
            raise DataError(
                f"{path}:{number}: is damaged (not JSON with a step); restore the file from a copy, or remove it: the "
                "run then continues, but early stopping and the best checkpoint start over"
            ) from e
    return found


def read_lines(workdir: pathlib.Path | str) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl, with NaN for a number that was not finite.

    Raises:
        DataError: the file cannot be read, or a line other than the last is damaged.
    """
    lines = (values for _, values in _lines(pathlib.Path(workdir) / METRICS))
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def read_metrics(workdir: pathlib.Path | str, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of one metric of a run."""
    points = [(line["step"], line[name]) for line in read_lines(workdir) if name in line]
    return [step for step, _ in points], [value for _, value in points]


class Timers:
    """Seconds and counts by purpose: input, evaluation, checkpoint and compilation; the other time is training."""

    def __init__(self):
        self.seconds = dict.fromkeys(("input", "evaluation", "checkpoint", "compilation"), 0.0)
        self.counts = dict.fromkeys(self.seconds, 0)

    @property
    def beside_training(self) -> float:
        """Returns the seconds of evaluation, checkpoints and compilation, in which no step was computed."""
        return sum(seconds for purpose, seconds in self.seconds.items() if purpose != "input")

    @contextlib.contextmanager
    def time(self, purpose: str) -> Iterator[None]:
        """Adds the time spent inside to `purpose`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[purpose] += time.perf_counter() - start
            self.counts[purpose] += 1


def computed(metrics: Mapping[str, jax.Array]) -> bool:
    """Returns whether the program that computes metrics has ended."""
    return all(x.is_ready() for x in metrics.values())


def peak_memory() -> int:
    """Returns the peak bytes in use on the first local device, or in the process if the device does not report them."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    return peak_host_memory()


def peak_host_memory() -> int:
    """Returns the peak bytes of the process in the host's memory, including pages mapped from files."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
