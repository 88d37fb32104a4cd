"""TensorBoard's event files, written by the thread that trains.

tensorboardX's own SummaryWriter passes events to a thread through a bounded queue. If that thread ends (on a full
disk), the queue fills and the next call blocks for ever. Here a failed write is an OSError in the call itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import pathlib
import socket
import sys
import textwrap
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

# TensorBoard's folder in a workdir, and the suffixes of the files with the last report and its figures.
_FOLDER, _REPORT, _IMAGES = "tensorboard", ".report", ".images"
# Seconds between flushes to the disk, each of which is an fsync.
_FLUSH_EVERY = 30.0


@functools.cache
def _tensorboardx(part: str) -> types.ModuleType:
    """Returns a module of tensorboardX, which is imported when it is needed because only training writes events.

    tensorboardX imports torch where that is installed, for arrays of torch. That takes seconds and is not needed here,
    so torch is hidden from the import, unless this process has it already.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(f"tensorboardX.{part}")
    finally:
        if hidden:
            del sys.modules["torch"]


class Board:
    """An event file; a context manager. After the first failed write it warns once and drops all later events."""

    def __init__(self, workdir: pathlib.Path, purge_step: int | None = None, suffix: str = ""):
        """Opens a new event file.

        Args:
            workdir: the run's workdir.
            purge_step: TensorBoard hides events of this step or later in older files; None: it hides none.
            suffix: the end of the file's name.
        """
        self._folder = workdir / _FOLDER
        self._file: Any = None
        self._flushed = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}{suffix}"
            self._file = _tensorboardx("record_writer").RecordWriter(str(self._folder / name))
        except OSError as e:
            self._drop(e)
        self._begin(purge_step)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, purge_step: int | None) -> None:
        events = _tensorboardx("proto.event_pb2")
        self._write(events.Event(file_version="brain.Event:2", step=purge_step))
        if purge_step is not None:
            session = events.SessionLog(status=events.SessionLog.START)
            self._write(events.Event(step=purge_step, session_log=session))

    def add(self, summary: Any, step: int | None = None) -> None:
        """Writes a summary for a step."""
        self._write(_tensorboardx("proto.event_pb2").Event(summary=summary, step=step))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by name for a step."""
        for name, value in values.items():
            self.add(_tensorboardx("summary").scalar(name, value), step)

    def _write(self, event: Any) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        try:
            self._file.write(event.SerializeToString())
            if time.monotonic() - self._flushed > _FLUSH_EVERY:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as e:
            self._drop(e)

    def _drop(self, error: OSError) -> None:
        """Closes the file for good and warns; training continues, for metrics.jsonl has the same numbers."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
        logging.warning(
            "%s: cannot write TensorBoard events (%s); no more are written, metrics.jsonl has the same numbers",
            self._folder, error.strerror or error,
        )  # fmt: skip

    def close(self) -> None:
        """Writes the buffered events and closes the file."""
        if self._file is None:
            return
        try:
            self._file.flush()
            self._file.close()
        except OSError as e:
            self._drop(e)
        self._file = None


@dataclasses.dataclass(frozen=True)
class HyperparameterTable:
    """A run as a row of TensorBoard's table of hyperparameters.

    Attributes:
        values: hyperparameters by name.
        metrics: names of the metrics that the table shows beside them.
    """

    values: Mapping[str, Any]
    metrics: Sequence[str]

    def summaries(self) -> Sequence[Any]:
        """Returns the events that declare the table and give this run's row."""
        # tensorboardX's own `add_hparams` would write them as another run, in a subfolder.
        shown = {name: x if isinstance(x, bool | int | float | str) else _as_text(x) for name, x in self.values.items()}
        experiment, start, _ = _tensorboardx("summary").hparams(shown, dict.fromkeys(self.metrics, 0.0))
        return experiment, start


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()


def write_report(workdir: pathlib.Path, step: int, texts: Mapping[str, str]) -> None:
    """Writes the texts of a run's last report for TensorBoard, and removes those of an earlier report.

    Args:
        workdir: the run's workdir.
        step: the last step.
        texts: texts by title, shown with their line breaks and columns unchanged.
    """
    with _replaced(workdir, _REPORT) as board:
        for title, text in texts.items():
            # Markdown shows an indented text unchanged.
            shown = textwrap.indent(text, "    ", lambda line: True)
            board.add(_tensorboardx("summary").text(title, shown), step)


def write_images(workdir: pathlib.Path, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images, uint8 `[height, width, 3]` by name, for TensorBoard, and removes those of an earlier call."""
    with _replaced(workdir, _IMAGES) as board:
        for name, pixels in images.items():
            board.add(_tensorboardx("summary").image(name, pixels, dataformats="HWC"), step)


def _replaced(workdir: pathlib.Path, suffix: str) -> Board:
    """Returns a new event file with a suffix, after those with this suffix are removed."""
    for old in (workdir / _FOLDER).glob(f"*{suffix}"):
        old.unlink()
    return Board(workdir, suffix=suffix)
