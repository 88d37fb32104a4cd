"""The folder of a sweep: what was asked, which runs have ended, and the workdirs of the runs.

| file | content |
|---|---|
| `sweep.json` | what all runs are given, and every run: its point, its arguments for `lmjax train`, its config |
| `results.jsonl` | a line for each run that has ended; of several lines of one run the last counts |
| `runs/NAME/` | the workdir of a run, as `lmjax train` leaves it |
| `workers/`, `logs/` | which runs each process is training, and what the processes of `--processes` print |
| `claims/` | a file for each run, locked by the process that trains it until its result is recorded |

Several processes may work on one folder, and `.lock` guards the files.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

from lmjax import __version__, strict_json
from lmjax.config import Config
from lmjax.errors import BusyError, ConfigMismatchError, DataError, FlagError, SaveError
from lmjax.paths import is_free, read_regular
from lmjax.runs.workdir import lock_workdir
from lmjax.schema import shown
from lmjax.strict_json import write_json
from lmjax.sweep.outcome import Outcome
from lmjax.sweep.space import Point
from lmjax.sweep.targets import Target, differences

_SWEEP, RESULTS, _RUNS, _LOCK = "sweep.json", "results.jsonl", "runs", ".lock"
_WORKERS = "workers"
_MOST_SHOWN = 4


class Ledger:
    """The record of a sweep in its folder.

    Attributes:
        directory: the folder.
    """

    def __init__(self, directory: pathlib.Path):
        """Opens a folder, which need not exist yet."""
        self.directory = directory

    def workdir(self, target: Target) -> pathlib.Path:
        """Returns the workdir of a run."""
        return self.directory / _RUNS / target.name

    @property
    def exists(self) -> bool:
        """Returns whether the folder holds a sweep."""
        return (self.directory / _SWEEP).exists()

    def read(self) -> tuple[dict[str, Any], tuple[Target, ...]]:
        """Returns what all runs of the folder are given, and its runs; both are empty if it holds no sweep.

        Raises:
            DataError: sweep.json cannot be read.
        """
        path = self.directory / _SWEEP
        try:
            values = json.loads(read_regular(path))
            targets = tuple(
                Target(
                    name,
                    each["point"],
                    each["fields"],
                    tuple(each["arguments"]),
                    Config.model_validate(each["config"]),
                )
                for name, each in values["runs"].items()
            )
            return values["settings"] | {"base": values["base"]}, targets
        except FileNotFoundError:
            return {}, ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pydantic.ValidationError) as e:
            raise DataError(f"{path}: cannot be read ({str(e).splitlines()[0]}); restore it from a copy") from e

    def write(self, base: Point, settings: Mapping[str, Any], targets: Sequence[Target]) -> None:
        """Records what was asked; runs that the folder has already stay.

        Args:
            base: what all runs are given.
            settings: the metric and other settings of the sweep.
            targets: its runs.

        Raises:
            UserError: as of `check`, or the folder cannot be written to.
        """
        try:
            (self.directory / _RUNS).mkdir(parents=True, exist_ok=True)
            with self._locked():
                self.check(base, targets)
                _, known = self.read()
                runs = {each.name: each for each in (*known, *targets)}
                write_json(
                    self.directory / _SWEEP,
                    {
                        "lmjax": __version__,
                        "base": _plain(base),
                        "settings": dict(settings),
                        "runs": {
                            name: {
                                "point": _plain(each.point),
                                "fields": _plain(each.fields),
                                "arguments": each.arguments,
                                "config": each.config.model_dump(mode="json"),
                            }
                            for name, each in runs.items()
                        },
                    },
                )
        except OSError as e:
            raise FlagError(f"--workdir={self.directory}: cannot be written to: {e.strerror}; choose another") from e

    def _begun(self) -> bool:
        """Returns whether the folder holds only what a kill before the first `write` had ended leaves."""
        here = self.directory
        return here.is_dir() and {path.name for path in here.iterdir()} <= {_LOCK, _RUNS, f"{_SWEEP}.tmp"}

    def check(self, base: Point, targets: Sequence[Target]) -> None:
        """Checks that a sweep is the one in the folder, or the same with more runs.

        Args:
            base: what all runs are given.
            targets: the runs.

        Raises:
            ConfigMismatchError: a run of this name is another one there, or all runs are given something else.
            FlagError: the folder holds something else.
        """
        if not self.exists and not (is_free(self.directory) or self._begun()):
            raise FlagError(f"--workdir={self.directory} exists and holds no sweep; choose another or empty it")
        there, known = self.read()
        was, now = _plain(there.get("base", base)), _plain(base)
        varied = {key for target in targets for key in target.point}
        for key in sorted((was.keys() | now.keys()) - varied):
            old, new = (shown(each[key]) if key in each else "not given" for each in (was, now))
            if old != new:
                raise ConfigMismatchError(
                    f"--workdir={self.directory} holds a sweep whose runs all have {key}: {old}, and now "
                    f"it is {new}; use another --workdir, or vary the field in the sweep"
                )
        old = {target.name: target.config for target in known}
        for target in targets:
            if target.name in old and (fields := differences(old[target.name], target.config)):
                said = "; ".join(f"{path}: {was!r} there, {new!r} now" for path, (was, new) in fields.items())
                raise ConfigMismatchError(
                    f"--workdir={self.directory}: its run {target.name} is another one: "
                    f"{'; '.join(said.split('; ')[:_MOST_SHOWN])}; use another --workdir"
                )

    def results(self) -> dict[str, dict[str, Any]]:
        """Returns the last result of every run that has one, by name; a line that is cut short is left out."""
        found: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for text in (self.directory / RESULTS).read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    line = json.loads(text)
                    found[line["name"]] = line
        return found

    def ended(self, targets: Sequence[Target], since: str) -> bool:
        """Returns whether all runs have ended, or crashed since a time."""
        results = self.results()
        return all(has_ended(results.get(target.name), since) for target in targets)

    def append(self, target: Target, outcome: Outcome, *, group: str, commit: str | None) -> None:
        """Appends the result of a run; not if another process has recorded that it finished.

        Args:
            target: the run.
            outcome: how it ended.
            group: the runs that were trained with it have the same.
            commit: of lmjax.

        Raises:
            SaveError: it cannot be written.
        """
        line = {
            "name": target.name,
            "workdir": f"{_RUNS}/{target.name}",
            "status": outcome.status,
            "fields": _plain(target.fields),
            "metrics": outcome.metrics,
            "steps": outcome.step,
            "tokens": outcome.tokens,
            "flops": outcome.flops,
            "seconds": round(outcome.seconds, 3),
            "commit": commit,
            "group": group,
            "time": now(),
        }
        line |= {"error": outcome.error} if outcome.error else {}
        path = self.directory / RESULTS
        try:
            with self._locked():
                earlier = self.results().get(target.name)
                if is_final(earlier):
                    return
                line["attempt"] = earlier["attempt"] + 1 if earlier else 1
                with path.open("ab+") as file:
                    # A launcher that was killed while it wrote may have left a line without an end.
                    if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                        file.write(b"\n")
                    file.write(strict_json.dumps(line).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as e:
            raise SaveError(f"{path}: cannot write the result of {target.name} ({e.strerror}); make room") from e

    def is_busy(self, target: Target) -> bool:
        """Returns whether another process trains the run now."""
        workdir = self.workdir(target)
        if not workdir.exists():
            return False
        try:
            lock_workdir(workdir).close()
        except BusyError:
            return True
        return False

    @contextlib.contextmanager
    def training(self, targets: Sequence[Target]) -> Iterator[None]:
        """Records, while the context runs, which runs this process trains; the file stays if the process dies."""
        path = self._note(os.getpid())
        path.parent.mkdir(exist_ok=True)
        write_json(path, [target.name for target in targets])
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def trained_by(self, process: int) -> list[str]:
        """Returns the names of the runs that a process of this machine was training when it died, and forgets them."""
        path = self._note(process)
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return []
        finally:
            path.unlink(missing_ok=True)

    def _note(self, process: int) -> pathlib.Path:
        return self.directory / _WORKERS / f"{platform.node()}-{process}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.directory / _LOCK).open("w") as lock:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def now() -> str:
    """Returns the time in UTC as text; later times are greater texts."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def is_final(result: Mapping[str, Any] | None) -> bool:
    """Returns whether a result is final; a run that crashed is tried again by the next command."""
    return result is not None and result["status"] != "crashed"


def _plain(point: Point) -> dict[str, Any]:
    """Returns a point with values that JSON keeps: other values as a flag would give them."""
    return {
        key: value if isinstance(value, str | int | float | bool | None) else shown(value)
        for key, value in point.items()
    }


def has_ended(result: Mapping[str, Any] | None, since: str) -> bool:
    """Returns whether a result is final, or of a crash since a time."""
    return is_final(result) or (result is not None and result["time"] >= since)
