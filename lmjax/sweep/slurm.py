"""Trains a sweep by an array of Slurm jobs, through submitit (extra `slurm`).

Each job is `lmjax sweep --worker`: it claims runs until none is left. A job that Slurm preempts, or whose time is over,
saves its runs and is put into the queue again.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmjax.errors import FlagError, PreemptedError
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.processes import worker_command

_LOOK = 2.0
# Looks in a row without a job of the array, after which there is none.
_MISSED = 3
_FOLDER = "slurm"


class Job:
    """What a job of the array runs; submitit calls `checkpoint` when Slurm is about to stop the job."""

    def __init__(self, command: Sequence[str]):
        """Takes the command of the worker."""
        self._command, self._process = list(command), None

    def __call__(self) -> int:
        """Returns the exit code of the worker; submitit keeps it."""
        # Slurm sends submitit's signal to every process of the job, and it would end the worker before it saves. A
        # process blocks what the one that starts it blocks at that time; here the signal waits, and none is lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        self._process = subprocess.Popen(self._command)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._ended()

    def _ended(self) -> int:
        """Returns the exit code of the worker when it has ended.

        It looks from time to time, because `wait` cannot be called by a signal's handler that interrupts a `wait`.
        """
        while (code := self._process.poll()) is None:
            time.sleep(0.1)
        return code

    def checkpoint(self) -> Any:
        """Returns the same job, for the queue, after the worker has saved its runs."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            self._ended()
        return submitit.helpers.DelayedSubmission(Job(self._command))


def settings(given: Sequence[str]) -> dict[str, Any]:
    """Returns the parameters of the jobs, given as NAME=VALUE.

    Raises:
        FlagError: one has another form, or asks for several nodes.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise FlagError(f"--slurm={text}: give NAME=VALUE, a parameter of submitit, such as partition=gpu")
        found[f"slurm_{name}"] = int(value) if value.isdecimal() else value
    if found.get("slurm_nodes", 1) != 1:
        raise FlagError(f"--slurm=nodes={found['slurm_nodes']}: each job of a sweep trains on one node")
    return found


def submit(ledger: Ledger, count: int, given: Sequence[str], since: str, most: int | None) -> str:
    """Returns the number of the array of `count` jobs after submitting it.

    Args:
        ledger: the record of the sweep.
        count: number of jobs.
        given: the parameters of the jobs, as of `settings`.
        since: as of `worker_command`.
        most: as of `worker_command`.

    Raises:
        FlagError: submitit is not installed, there is no Slurm, or it does not accept the parameters.
    """
    parameters = settings(given)
    if importlib.util.find_spec("submitit") is None:
        raise FlagError("--launcher=slurm: submitit is not installed: pip install 'lmjax[slurm]'")
    import submitit

    try:
        executor = submitit.AutoExecutor(ledger.directory / _FOLDER, cluster="slurm")
        executor.update_parameters(name="lmjax-sweep", **parameters)
        command = worker_command(ledger.directory.absolute(), since, most)
        with executor.batch():
            jobs = [executor.submit(Job(command)) for _ in range(count)]
    except (RuntimeError, NameError, TypeError, ValueError, submitit.core.utils.FailedJobError) as e:
        raise FlagError(f"--launcher=slurm: {str(e).strip()[:500]}") from e
    return jobs[0].job_id.partition("_")[0]


def follow(job: str, ended: Callable[[], bool]) -> None:
    """Returns when a sweep has ended, or no job of the array is left.

    Args:
        job: the number of the array.
        ended: whether all runs have ended.

    Raises:
        PreemptedError: this process was interrupted; the jobs go on.
    """
    try:
        missed = 0
        while not ended():
            time.sleep(_LOOK)
            # A job that is being put back into the queue may not be listed for a moment.
            missed = 0 if _listed(job) else missed + 1
            if missed == _MISSED and not ended():
                return
    except KeyboardInterrupt:
        raise PreemptedError(f"job {job} goes on in Slurm; scancel {job} stops it, and its runs are saved") from None


def _listed(job: str) -> bool:
    """Returns whether Slurm has a job of the array in its queue or runs it."""
    asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    # A controller that does not answer for a moment does not mean that the jobs have ended.
    return bool(asked.stdout.split()) or (asked.returncode != 0 and "Invalid job id" not in asked.stderr)
