"""TensorBoard's event files, written by the thread that trains.

tensorboardX's own SummaryWriter passes events to a thread through a bounded queue. If that thread ends (on a full
disk), the queue fills and the next call blocks for ever. Here a failed write is an OSError in the call itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import socket
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

# TensorBoard's folder in a workdir, and the suffixes of the files with the last report and its figures.
_FOLDER, _REPORT, _IMAGES = "tensorboard", ".report", ".images"
# Seconds between flushes to the disk, each of which is an fsync.
_FLUSH_EVERY = 30.0


class Board:
    """An event file; a context manager. After the first failed write it warns once and drops all later events."""

    def __init__(self, workdir: pathlib.Path, purge_step: int | None = None, suffix: str = ""):
        """Opens a new event file.

        Args:
            workdir: the run's workdir.
            purge_step: TensorBoard hides events of this step or later in older files; None: it hides none.
            suffix: the end of the file's name.
        """
        # Imported here because it takes 0.1 s and only training writes events.
        from tensorboardX.record_writer import RecordWriter

        self._folder = workdir / _FOLDER
        self._file: RecordWriter | None = None
        self._flushed = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}{suffix}"
            self._file = RecordWriter(str(self._folder / name))
        except OSError as e:
            self._drop(e)
        self._begin(purge_step)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, purge_step: int | None) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._write(Event(file_version="brain.Event:2", step=purge_step))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Any, step: int | None = None) -> None:
        """Writes a summary for a step."""
        from tensorboardX.proto.event_pb2 import Event

        self._write(Event(summary=summary, step=step))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by name for a step."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self.add(scalar(name, value), step)

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
        from tensorboardX.summary import hparams

        # tensorboardX's own `add_hparams` would write them as another run, in a subfolder.
        shown = {name: x if isinstance(x, bool | int | float | str) else _as_text(x) for name, x in self.values.items()}
        experiment, start, _ = hparams(shown, dict.fromkeys(self.metrics, 0.0))
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
    from tensorboardX.summary import text as text_summary

    with _replaced(workdir, _REPORT) as board:
        for title, text in texts.items():
            # Markdown shows an indented text unchanged.
            board.add(text_summary(title, textwrap.indent(text, "    ", lambda line: True)), step)


def write_images(workdir: pathlib.Path, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images, uint8 `[height, width, 3]` by name, for TensorBoard, and removes those of an earlier call."""
    from tensorboardX.summary import image

    with _replaced(workdir, _IMAGES) as board:
        for name, pixels in images.items():
            board.add(image(name, pixels, dataformats="HWC"), step)


def _replaced(workdir: pathlib.Path, suffix: str) -> Board:
    """Returns a new event file with a suffix, after those with this suffix are removed."""
    for old in (workdir / _FOLDER).glob(f"*{suffix}"):
        old.unlink()
    return Board(workdir, suffix=suffix)
