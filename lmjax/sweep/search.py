"""A search over the points of a space by Optuna, whose trials are runs of a sweep.

Optuna keeps the trials in `search.db` of the sweep's folder, a SQLite file that its dashboard can open. A trial stays
open until its run has ended, and a run that was cut off resumes, so that nothing is lost by a kill. Heartbeats, by
which Optuna gives up trials of dead processes, are not used: they are for `Study.optimize`, and our runs go on.

| search | chooses |
|---|---|
| tpe | by a tree-structured Parzen estimator (Bergstra et al. 2011, section 4) |
| random | at random (Bergstra and Bengio 2012) |
| hyperband | as tpe, and each round of runs is halved from another rung on (Li et al. 2018, arXiv:1603.06560) |
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lmjax.errors import BusyError, ConfigMismatchError, FlagError
from lmjax.schema import shown
from lmjax.streams import subseed
from lmjax.sweep.space import Between, Point, Space, point_text

SEARCHES = ("tpe", "random", "hyperband")
DATABASE = "search.db"
_LOCK = ".search"


class Search:
    """A search over a space, by one process at a time."""

    def __init__(self, folder: pathlib.Path | None, space: Space, kind: str, trials: int, *, falling: bool):
        """Opens the search in the folder of a sweep.

        Args:
            folder: the folder; None: nothing is kept.
            space: what is chosen from.
            kind: one of SEARCHES.
            trials: the number of runs.
            falling: whether lower values are better.

        Raises:
            FlagError: Optuna is not installed.
            ConfigMismatchError: the folder holds a search over another space.
        """
        self._optuna = _optuna()
        self._kind, self._trials, self._choices = kind, trials, _Choices(space)
        self._storage = self._optuna.storages.RDBStorage(f"sqlite:///{folder / DATABASE}") if folder else None
        self._study = self._optuna.create_study(
            study_name="lmjax",
            storage=self._storage,
            load_if_exists=True,
            direction="minimize" if falling else "maximize",
        )
        said = str(self._choices)
        if (before := self._study.user_attrs.get("space", said)) != said:
            self.close()
            raise ConfigMismatchError(
                f"--workdir={folder} holds a search over {before}, and now it is over {said}; use another --workdir"
            )
        self._study.set_user_attr("space", said)

    def close(self) -> None:
        """Closes the file of the trials."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()

    def ask(self, count: int) -> dict[int, Point]:
        """Returns the points of the next runs by the numbers of their trials: first of trials whose runs did not end.

        Args:
            count: the most new trials; there are fewer at the end of the search, and then none.
        """
        before = self._study.get_trials(deepcopy=False)
        # Each round has another seed, since a sampler begins anew in each process and must not draw the same points.
        seed = subseed(0, "search", len(before)) % 2**32
        samplers = self._optuna.samplers
        if self._kind == "random":
            self._study.sampler = samplers.RandomSampler(seed=seed)
        else:
            self._study.sampler = samplers.TPESampler(seed=seed, constant_liar=True)
        trials = [self._trial(trial) for trial in before if not trial.state.is_finished()]
        trials += [self._study.ask() for _ in range(min(count - len(trials), self._trials - len(before)))]
        return {trial.number: self._choices.point(trial) for trial in trials}

    def tell(self, number: int, result: Mapping[str, Any], metric: str) -> None:
        """Ends a trial.

        Args:
            number: of the trial.
            result: of its run, from the record of the sweep.
            metric: what is searched for.
        """
        states = self._optuna.trial.TrialState
        trial = self._trial(self._study.get_trials(deepcopy=False)[number])
        trial.set_user_attr("run", result["name"])
        value, status = result["metrics"].get(metric), result["status"]
        if value is None or status not in ("done", "stopped"):
            self._study.tell(trial, state=states.FAIL)
        elif status == "stopped":
            trial.report(value, result["steps"])
            self._study.tell(trial, state=states.PRUNED)
        else:
            self._study.tell(trial, value)

    def rungs(self, number: int, rungs: Sequence[int]) -> tuple[int, ...]:
        """Returns the rungs of a round: with hyperband each begins to halve at another rung, one of them at none."""
        return tuple(rungs[number % (len(rungs) + 1) :] if self._kind == "hyperband" else rungs)

    def _trial(self, frozen: Any) -> Any:
        """Returns a trial of the storage as one that can be changed."""
        return self._optuna.trial.Trial(self._study, frozen._trial_id)


class _Choices:
    """What a search chooses, so that it has a point of a space.

    If the points are all combinations of the fields' values, the value of each field is chosen; else which point.
    """

    def __init__(self, space: Space):
        """Takes the space."""
        self._points = space.points
        names = list(dict.fromkeys(name for point in space for name in point))
        self._values = {n: {shown(p[n]): p[n] for p in space if n in p} for n in names}
        self._product = len(space) == math.prod(map(len, self._values.values())) and all(
            point.keys() == self._values.keys() for point in space
        )

    def __str__(self) -> str:
        if self._product:
            return "; ".join(f"{name}={'|'.join(values)}" for name, values in self._values.items())
        return " or ".join(map(point_text, self._points))

    def point(self, trial: Any) -> Point:
        """Returns the point that a trial chooses; the same, if it has chosen before."""
        if self._product:
            values = {name: values[self._one_of(trial, name, values)] for name, values in self._values.items()}
        else:
            texts = [point_text(point) for point in self._points]
            values = dict(self._points[texts.index(self._one_of(trial, "point", texts))])
        return {name: self._number(trial, name, value) for name, value in values.items()}

    @staticmethod
    def _one_of(trial: Any, name: str, texts: Collection[str]) -> str:
        return trial.suggest_categorical(name, list(texts)) if len(texts) > 1 else next(iter(texts))

    def _number(self, trial: Any, name: str, value: Any) -> Any:
        """Returns the value, or a number of the range that it is."""
        if not isinstance(value, Between):
            return value
        # A field with several ranges has a parameter for each.
        name = name if len(self._values[name]) == 1 else f"{name} in {value}"
        if isinstance(value.low, int) and isinstance(value.high, int):
            return trial.suggest_int(name, value.low, value.high, log=value.log)
        # Four digits are enough, and give runs readable names.
        return float(f"{trial.suggest_float(name, value.low, value.high, log=value.log):.4g}")


def has_ranges(space: Space) -> bool:
    """Returns whether a space has ranges, so that only a search can choose its runs."""
    return any(isinstance(value, Between) for point in space for value in point.values())


@contextlib.contextmanager
def searching(folder: pathlib.Path) -> Iterator[None]:
    """Claims the search of a folder while the context runs; raises BusyError if another process has it."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise BusyError(f"--workdir={folder}: another process searches there; it can train by --processes") from e
        yield


def _optuna() -> Any:
    """Returns the library, quiet; raises FlagError if it is not installed."""
    try:
        import optuna
    except ImportError as e:
        raise FlagError("--search needs Optuna: pip install 'lmjax[search]'") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
