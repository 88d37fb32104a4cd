"""One view of the progress of all runs of a sweep, whichever processes train them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from lmjax.sweep.ledger import Ledger, is_final
from lmjax.sweep.targets import Target
from lmjax.training.metrics import METRICS

# Seconds between two lines of progress on a terminal and in a log; bytes of metrics.jsonl that hold its last line.
_TERMINAL, _LOG, _TAIL = 1.0, 30.0, 1 << 16


class View:
    """Writes to stderr a line for each run that ends, and a line about all of them. A context manager."""

    def __init__(
        self,
        ledger: Ledger,
        targets: Sequence[Target],
        steps: Mapping[str, int],
        metric: str | None,
        on: bool = True,
    ):
        """Makes a view; with `on` false it shows nothing.

        Args:
            ledger: the record of the sweep.
            targets: its runs.
            steps: of each run, by name.
            metric: what is shown of a run that has ended; None: the loss of its first evaluation set.
            on: whether to show anything.
        """
        self._ledger, self._targets, self._metric, self._on = ledger, targets, metric, on
        self._steps = steps
        self._told = dict(ledger.results())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._began, self._width = time.monotonic(), 0
        self._first = self._share()[0]

    def __enter__(self) -> View:
        if self._on:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on:
            self._ended.set()
            self._thread.join()
            self._write(self.line(), last=True)

    def _follow(self) -> None:
        terminal = sys.stderr.isatty()
        shown = time.monotonic()
        while not self._ended.wait(_TERMINAL):
            self._tell()
            if terminal or time.monotonic() - shown >= _LOG:
                self._write(self.line(), last=not terminal)
                shown = time.monotonic()
        self._tell()

    def _tell(self) -> None:
        """Writes a line for each run that has ended since the last call."""
        for name, result in self._ledger.results().items():
            if self._told.get(name) != result:
                self._told[name] = result
                self._write(ended_text(result, self._metric), last=True)

    def _write(self, text: str, last: bool) -> None:
        """Writes a line over the one that is shown; after the `last` one a new line begins."""
        if sys.stderr.isatty():
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            text = text if last else text[: columns - 1]
            print(f"\r{text:<{self._width}}", end="\n" if last else "", file=sys.stderr, flush=True)
            self._width = 0 if last else len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _share(self) -> tuple[float, list[str]]:
        """Returns the share of all steps that is done, and what is known of each run that is under way."""
        results, total, running = self._ledger.results(), 0.0, []
        for target in self._targets:
            if is_final(results.get(target.name)):
                total += 1
                continue
            if line := last_line(self._ledger.workdir(target) / METRICS):
                steps = self._steps[target.name]
                total += min(1.0, line["step"] / steps)
                if self._ledger.is_busy(target):
                    loss = f", loss {line['train/loss']:.3f}" if line.get("train/loss") is not None else ""
                    running.append(f"{target.name}: step {line['step']} of {steps}{loss}")
        return total / len(self._targets), running

    def line(self) -> str:
        """Returns a line about all runs."""
        results = self._ledger.results()
        kinds = [results[target.name]["status"] for target in self._targets if target.name in results]
        counts = [f"{kinds.count(kind)} {kind}" for kind in ("diverged", "stopped", "crashed") if kind in kinds]
        share, running = self._share()
        parts = [f"{kinds.count('done')} of {len(self._targets)} runs done", *counts, f"{share:.0%} of the steps"]
        passed = time.monotonic() - self._began
        if self._first < share < 1 and passed > 5:
            parts.append(f"about {duration(passed * (1 - share) / (share - self._first))} left")
        if len(running) > 1:
            parts.append(f"{len(running)} running")
        return "; ".join([*parts, *running[:1]])


def ended_text(result: Mapping[str, Any], metric: str | None) -> str:
    """Returns a line about a run that has ended."""
    metrics = result["metrics"]
    name = metric or next((key for key in metrics if key.endswith("/loss")), "")
    value = metrics.get(name)
    shown = f"{name} {value:.4f}, " if value is not None else ""
    reason = f": {result['error'].splitlines()[0]}" if result.get("error") else ""
    spent = f"{shown}{result['steps']} steps in {duration(result['seconds'])}"
    return f"{result['status']:<8}  {result['name']}  {spent}{reason}"


def duration(seconds: float) -> str:
    """Returns a time in words: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def last_line(path: pathlib.Path) -> dict[str, Any]:
    """Returns the last complete line with training metrics of a metrics.jsonl, or {}."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        for text in reversed(file.read().split(b"\n")):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                if "train/loss" in line and line["step"] >= 0:
                    return line
    return {}
