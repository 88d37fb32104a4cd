"""A workdir that a command writes to: it has one writer and one config, and a command that fails early leaves nothing.

`state.json` records the stage of the workdir. It is written before anything else, so that the same command can be run
again after a kill at any time.

| stage | content of the workdir | what the next command does |
|---|---|---|
| building | config.json, perhaps a tokenizer; no step was made | starts over, with any config |
| training | metrics, and checkpoints from the first save on | resumes, if the config is the same |
| done | the complete result of the command | resumes, if the config is the same or has more steps |
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import pathlib
import shutil
from types import TracebackType
from typing import Literal, NamedTuple, TextIO

from absl import logging

from lmjax import __version__
from lmjax.config import Config, changed, from_json
from lmjax.errors import BusyError, CheckpointError, ConfigMismatchError, DataError, FlagError, SaveError
from lmjax.paths import is_free, is_litter, make_folders, read_regular, remove_folders
from lmjax.strict_json import write_json

# The file that every workdir has.
CONFIG = "config.json"
STATE = "state.json"
_LOCK = ".lock"
# The only files of a workdir whose command was killed at its very start.
_EARLY = (_LOCK, f"{STATE}.tmp")

# Fields that change neither the numbers of a run nor its length: how long it waits, and where and by whom data is made.
INERT = (
    "step_timeout",
    "data.workers",
    "data.worker_timeout",
    "data.prefetch",
    "data.cache_dir",
    "parallel.connect_timeout",
    "parallel.heartbeat_timeout",
)
# Fields that may differ when a workdir is used again: the length of the run, and what is logged and saved. They affect
# the steps only through the schedule, which ends with the run.
MAY_CHANGE = (
    "steps",
    "epochs",
    "minutes",
    "max_skipped",
    "on_divergence",
    "evaluation.",
    "checkpoint.",
    "logging.",
    *INERT,
)
# Fields that change only the order of the arithmetic. They may differ too, with a warning.
ROUNDING = (
    "accumulation",
    "steps_per_call",
    "parallel.",
    "model.attention.kernel",
    "model.remat",
    "model.moe.dispatch",
)
Stage = Literal["building", "training", "done"]


class State(NamedTuple):
    """The content of state.json.

    Attributes:
        stage: one of the table above.
        saved: the step of the newest checkpoint; None: there is none yet, or an earlier version wrote it.
    """

    stage: Stage
    saved: int | None = None


def read_state(workdir: pathlib.Path) -> State | None:
    """Returns the state of a workdir, or None if it has no state.json, as in runs of an earlier version.

    Raises:
        DataError: its state.json is damaged.
    """
    path = workdir / STATE
    try:
        values = json.loads(read_regular(path))
        state = State(values["stage"], values["saved"])
        if state.stage not in ("building", "training", "done") or not isinstance(state.saved, int | None):
            raise ValueError(f"stage {state.stage!r}, saved {state.saved!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise DataError(
            f"{path}: is damaged ({str(e).splitlines()[0]}); restore it from a copy, or run lmjax doctor --repair on "
            "the workdir"
        ) from e
    return state


def write_state(workdir: pathlib.Path, state: State) -> None:
    """Writes the state of a workdir."""
    write_json(workdir / STATE, {"lmjax": __version__, **state._asdict()})


class Claim:
    """The exclusive right to write to a workdir, until the claim is closed or the process ends. A context manager.

    If it is closed in the stage "building", everything that was written to the workdir is removed.
    """

    def __init__(self, workdir: pathlib.Path, lock: TextIO, made: list[pathlib.Path], before: set[str], state: State):
        """Makes a claim; use `claim_workdir`.

        Args:
            workdir: the workdir.
            lock: its locked file.
            made: the folders that were made for it.
            before: the names of files that were in it before.
            state: its state.
        """
        self._workdir, self._lock, self._made, self._before, self._state = workdir, lock, made, before, state

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        # The errors of what is written rarely are caught where it is written; this is the last place that knows them.
        if isinstance(error, OSError) and str(error.filename).startswith(str(self._workdir)):
            raise SaveError(
                f"{error.filename}: {error.strerror}; make room or repair the disk, then run the command again"
            ) from error

    def begun(self) -> None:
        """Records that the first step starts; from now on the workdir belongs to this config."""
        self._note(State("training", self._state.saved))

    def saved(self, step: int | None) -> None:
        """Records the newest checkpoint, or the one that the run rolls back to; None: it rolls back to step 0."""
        self._note(State(self._state.stage, step))

    def done(self) -> None:
        """Records that the command has completed its work."""
        self._note(State("done", self._state.saved))

    def _note(self, state: State) -> None:
        self._state = state
        try:
            write_state(self._workdir, state)
        except OSError as e:
            raise SaveError(f"{self._workdir / STATE}: could not be saved: {e.strerror}; make room") from e

    def close(self) -> None:
        """Releases the workdir, and clears it if it is still in the stage "building"."""
        if self._state.stage == "building":
            _clear(self._workdir, self._before)
            remove_folders(self._made)
        self._lock.close()


def _clear(workdir: pathlib.Path, spared: set[str]) -> None:
    """Removes everything from a workdir except the names in `spared`."""
    with contextlib.suppress(OSError):
        # The state is removed last, so that after a kill here the next command can still clear the workdir.
        for path in sorted(workdir.iterdir(), key=lambda path: path.name in (STATE, _LOCK)):
            if path.name in spared or is_litter(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_unused(workdir: pathlib.Path) -> bool:
    """Returns whether a new run can use the workdir: it is free, or holds only what an early kill has left."""
    if is_free(workdir):
        return True
    if not workdir.is_dir():
        return False
    if all(path.name in _EARLY or is_litter(path.name) for path in workdir.iterdir()):
        return True
    state = read_state(workdir)
    return state is not None and state.stage == "building"


def claim_workdir(workdir: pathlib.Path, config: Config) -> Claim:
    """Returns a claim on a workdir, which is made if it does not exist. The claim ends with the process at the latest.

    This writes the config.json of a new workdir, so that the command can be run again if it is killed later.

    Raises:
        BusyError: another process writes there.
        FlagError: the folder is not a run's workdir.
        ConfigMismatchError: the workdir belongs to a run with another config.
        DataError: its config.json or state.json cannot be read.
    """
    unused = is_unused(workdir)
    if not unused:
        if not (workdir / CONFIG).exists():
            raise FlagError(
                f"--workdir={workdir} exists and holds no run of lmjax (no {CONFIG}); choose another or empty it"
            )
        _compare(workdir, config)
    try:
        made = make_folders(workdir)
    except OSError as e:
        raise FlagError(f"--workdir={workdir}: cannot be written to: {e.strerror}; choose another") from e
    try:
        lock = lock_workdir(workdir)
    except FlagError:
        remove_folders(made)
        raise
    if not unused:
        return Claim(workdir, lock, [], set(), read_state(workdir) or State("training"))
    _clear(workdir, {_LOCK})
    claim = Claim(workdir, lock, made, {path.name for path in workdir.iterdir()} - {_LOCK}, State("building"))
    try:
        write_state(workdir, State("building"))
        write_json(workdir / CONFIG, config.to_json())
    except OSError as e:
        claim.close()
        raise FlagError(f"--workdir={workdir}: cannot be written to: {e.strerror}; choose another") from e
    return claim


def lock_workdir(workdir: pathlib.Path) -> TextIO:
    """Returns the locked file of a workdir; raises BusyError if another process has locked it."""
    try:
        lock = (workdir / _LOCK).open("w")
    except OSError as e:
        raise FlagError(f"--workdir={workdir}: cannot be written to: {e.strerror}; choose another") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise BusyError(f"--workdir={workdir}: another process trains there; wait, or use another") from e
    except OSError:
        # Some network file systems have no locks; the user must then make sure that there is only one writer.
        pass
    return lock


def _compare(workdir: pathlib.Path, config: Config) -> None:
    """Warns of changed fields that only change rounding; raises ConfigMismatchError for other changed fields."""
    fields = changed(_without_paths(from_json(workdir / CONFIG)), _without_paths(config))
    fields = {path: values for path, values in fields.items() if not path.startswith(MAY_CHANGE)}
    lines = {path: f"{path}: {there!r} there, {here!r} here" for path, (there, here) in fields.items()}
    other = [line for path, line in lines.items() if not path.startswith(ROUNDING)]
    if other:
        raise ConfigMismatchError(
            f"--workdir={workdir} belongs to another config: {'; '.join(other[:5])}"
            f"{' ...' if len(other) > 5 else ''}; use its config or another --workdir"
        )
    if lines:
        logging.warning(
            "--workdir=%s continues with %s: from here on the steps equal those of the old config except for rounding, "
            "dropout masks and what the objectives sample", workdir, "; ".join(lines.values()),
        )  # fmt: skip


def _without_paths(config: Config) -> Config:
    """Returns a config without paths of what is compared by content: data, tokenizer (data.json), teacher."""
    data = config.data
    names = {
        field: tuple(item.model_copy(update={"path": "by content"}) for item in getattr(data, field))
        for field in ("mixture", "eval")
    }
    tokenizer = config.tokenizer.model_copy(update={"path": config.tokenizer.path and "by content"})
    data = data.model_copy(update={**names, "train": "by content"})
    teacher = config.teacher.model_copy(update={"place": config.teacher.place and "by content"})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer, "teacher": teacher})


def check_nothing_lost(workdir: pathlib.Path, start: int | None) -> None:
    """Warns if the newest checkpoint that the run has saved is missing.

    Args:
        workdir: the run's workdir.
        start: the step that was restored; None: there is no checkpoint.

    Raises:
        CheckpointError: all checkpoints are missing; the run must not start over and remove its metrics unnoticed.
    """
    state = read_state(workdir)
    saved = state and state.saved
    if saved is None:
        return
    if start is None:
        raise CheckpointError(
            f"{workdir / 'checkpoints'}: the checkpoint of step {saved} was saved there and is missing; restore it "
            "from a copy, or start over in another --workdir"
        )
    if start < saved:
        logging.warning(
            "%s: the newest checkpoint, of step %d, is missing; resuming from step %d", workdir, saved, start
        )
