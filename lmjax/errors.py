"""Errors that end a command with a message and an exit code, without a traceback.

| code | meaning |
|---|---|
| 64 | a bad flag or config value |
| 65 | bad data |
| 66 | checkpoints exist and none of them loads |
| 70 | the run hangs, lost one of its processes, or diverged and did not recover |
| 74 | a save failed |
| 75 | preempted, and saved: run the same command again |
| 76 | two layouts of a run compute different numbers |
| 78 | the config does not match the one in the workdir |
"""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """An error that the user can correct. The message names the flag or the file and line, the value and the remedy."""

    exit_code = 64


class FlagError(UserError):
    """A flag or a config field has a value that cannot be used."""

    exit_code = 64


class BusyError(FlagError):
    """Another process writes to the workdir."""


class DataError(UserError):
    """Input data is missing, empty, truncated or of the wrong kind."""

    exit_code = 65


class CheckpointError(UserError):
    """Checkpoints exist and none of them can be loaded."""

    exit_code = 66


class DivergedError(UserError):
    """Training stopped because too many consecutive updates were not finite.

    Attributes:
        first: step of the first update that was left out.
        at: step of the last one.
        good: step of the last good checkpoint before them; 0: there is none.
        metrics: metrics of the last one, by name.
    """

    exit_code = 70

    def __init__(self, message: str, *, first: int, at: int, good: int, metrics: Mapping[str, float]):
        super().__init__(message)
        self.first, self.at, self.good, self.metrics = first, at, good, metrics

    @property
    def facts(self) -> dict[str, Any]:
        """Returns the arguments of `__init__` except the message."""
        return {"first": self.first, "at": self.at, "good": self.good, "metrics": self.metrics}


class WorkerError(UserError):
    """A process that makes batches ended unexpectedly."""

    exit_code = 70


class StuckError(UserError):
    """The run waited too long for a batch, a step or another process."""

    exit_code = 70


class SaveError(UserError):
    """A checkpoint could not be written."""

    exit_code = 74


class PreemptedError(UserError):
    """The run received a signal to stop, and has saved its state; the same command resumes it."""

    exit_code = 75


class DifferenceError(UserError):
    """Two layouts of one run compute different numbers."""

    exit_code = 76


class ConfigMismatchError(UserError):
    """The workdir belongs to a run with another config."""

    exit_code = 78
