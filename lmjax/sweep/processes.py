"""Trains a sweep by several processes of this machine, each with its own share of the devices."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from lmjax.errors import FlagError, PreemptedError, SaveError, UserError
from lmjax.sweep.ledger import Ledger, is_final
from lmjax.sweep.outcome import outcome
from lmjax.sweep.targets import Target

_LOOK = 0.5
_LOGS = "logs"


class WorkerError(UserError):
    """A process of a sweep ended before it trained anything."""

    exit_code = 70


def worker_command(directory: pathlib.Path, since: str, most: int | None) -> list[str]:
    """Returns the command of a process that trains runs of a sweep until all have ended.

    Args:
        directory: the folder of the sweep.
        since: when the sweep was launched, as of `Launcher`.
        most: the most runs that it trains together, as of `Launcher`.
    """
    command = [sys.executable, "-m", "lmjax", "sweep", f"--workdir={directory}", "--worker", f"--since={since}"]
    return command + ([f"--members={most}"] if most else [])


def shares(count: int) -> list[dict[str, str] | set[int]]:
    """Returns each process's share of the devices: a variable that names its GPUs, or the numbers of its cores.

    Raises:
        FlagError: there are fewer devices than processes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else [p[11:] for p in sorted(glob.glob("/dev/nvidia[0-9]*"))]
    devices = [each for each in gpus if each] or sorted(os.sched_getaffinity(0))
    kind = "GPUs" if any(gpus) else "cores"
    if not 1 <= count <= len(devices):
        raise FlagError(f"--processes={count}: there are {len(devices)} {kind}; take 1 to {len(devices)}")
    parts = [devices[i * len(devices) // count : (i + 1) * len(devices) // count] for i in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} if kind == "GPUs" else set(part) for part in parts]


class Pool:
    """Processes that train a sweep together; one that dies is replaced, and the runs that it trained are recorded."""

    def __init__(self, ledger: Ledger, targets: Sequence[Target], count: int, since: str, most: int | None = None):
        """Makes a pool of `count` processes; `since` and `most` as of `worker_command`."""
        self._ledger, self._since, self._most = ledger, since, most
        self._targets = {target.name: target for target in targets}
        self._shares = shares(count)
        self._running: dict[int, subprocess.Popen] = {}
        self._asked = False

    def run(self) -> None:
        """Returns after all runs have ended.

        Raises:
            PreemptedError: this process was asked to stop; the runs are saved.
            SaveError: a process could not save.
            WorkerError: a process ended before it trained anything.
        """
        (self._ledger.directory / _LOGS).mkdir(exist_ok=True)
        with self._signals():
            try:
                for number in range(len(self._shares)):
                    self._start(number)
                while self._running:
                    try:
                        time.sleep(_LOOK)
                        self._look()
                    except KeyboardInterrupt:
                        # The processes are in this one's group, so that they are interrupted too, and save.
                        self._asked = True
            finally:
                self._stop()
        if self._asked:
            raise PreemptedError("stopped, and all runs saved; run the command again")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._asked = True
            self._terminate()

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _terminate(self) -> None:
        for process in list(self._running.values()):
            process.terminate()

    def _stop(self) -> None:
        self._terminate()
        for process in self._running.values():
            process.wait()

    def _log(self, number: int) -> pathlib.Path:
        return self._ledger.directory / _LOGS / f"worker-{number}.log"

    def _start(self, number: int) -> None:
        share, environment = self._shares[number], dict(os.environ)
        cores = os.sched_getaffinity(0)
        if isinstance(share, Mapping):
            environment |= share
        with self._log(number).open("a") as log:
            try:
                if isinstance(share, set):
                    os.sched_setaffinity(0, share)  # a process inherits it
                command = worker_command(self._ledger.directory, self._since, self._most)
                self._running[number] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            finally:
                os.sched_setaffinity(0, cores)

    def _look(self) -> None:
        """Looks after processes that have ended."""
        for number, process in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[number]
            if code == SaveError.exit_code:
                raise SaveError(f"{self._log(number)}: {_last(self._log(number))}")
            if self._asked or code in (0, PreemptedError.exit_code):
                continue
            trained = self._ledger.trained_by(process.pid)
            if not trained:
                raise WorkerError(
                    f"a process of the sweep ended with code {code}: {_last(self._log(number))} ({self._log(number)})"
                )
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            said = f"its process ended {how}: {_last(self._log(number))}"
            results = self._ledger.results()
            for name in trained:
                if not is_final(results.get(name)):
                    target = self._targets[name]
                    ended = outcome(self._ledger.workdir(target), "crashed", said)
                    self._ledger.append(target, ended, group="", commit=None)
            self._start(number)


def _last(log: pathlib.Path) -> str:
    """Returns the last line of a log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"
