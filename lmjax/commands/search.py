"""`lmjax sweep --search`: rounds of runs, whose points Optuna chooses by the results of the earlier ones."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.commands.points import resolve_points
from lmjax.commands.table import aligned
from lmjax.errors import FlagError, PreemptedError
from lmjax.sweep.arms import is_falling
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.search import SEARCHES, Search, has_ranges, searching
from lmjax.sweep.space import Point, Sweep, point_text
from lmjax.sweep.targets import Target, name_targets

# Runs of a round, where no flag says it: few enough that later rounds learn from the earlier ones.
_ROUND, _SHOWN = 4, 10


def check_search(sweep: Sweep, where: str) -> None:
    """Raises FlagError if the settings of a search do not fit together, or ranges are given without a search.

    Args:
        sweep: the sweep, with its flags.
        where: the flag that gives its runs, for messages.
    """
    if sweep.search is None:
        if has_ranges(sweep.space):
            raise FlagError(f"{where}: a range LOW..HIGH is for a search; give --search=tpe and --trials=N too")
        if sweep.trials is not None:
            raise FlagError(f"--trials={sweep.trials}: is for a search; give --search=tpe too, or leave it out")
        return
    if sweep.search not in SEARCHES:
        raise FlagError(f"search={sweep.search}: there is no such search; choose from {', '.join(SEARCHES)}")
    if sweep.trials is None or sweep.trials < 1:
        raise FlagError(f"--search={sweep.search}: give the number of runs, as --trials=20")
    for name in ("match", "control"):
        if getattr(sweep, name) not in (None, "none"):
            raise FlagError(f"--{name}={getattr(sweep, name)}: is not for a search; leave one of the two out")
    if sweep.search == "hyperband" and not sweep.rungs:
        raise FlagError("--search=hyperband: give --rungs, the steps at which the worse half of a round stops")


class Searcher:
    """Trains the runs of a search."""

    def __init__(self, sweep: Sweep, base: Point, ledger: Ledger | None, most: int | None):
        """Takes what the flags say.

        Args:
            sweep: the sweep.
            base: what all runs are given.
            ledger: the record of the sweep; None: it is only planned.
            most: the runs of a round; None: a few.
        """
        self._sweep, self._base, self._ledger = sweep, base, ledger
        self._round = most or _ROUND
        self._falling = sweep.metric is None or is_falling(sweep.metric)

    def first_round(self) -> tuple[Target, ...]:
        """Returns the runs with which the search would begin; nothing is kept."""
        points = self._open(None).ask(self._round)
        return self._targets(list(points.values()), ())

    def opening(self) -> str:
        """Returns what the search will do, before the plan of its first round."""
        sweep = self._sweep
        size = min(self._round, sweep.trials)
        return f"a search by {sweep.search}: {sweep.trials} runs in rounds of {size}. The first round would be, say,"

    def run(self, settings: Mapping[str, Any], launch: Callable[[Sweep, Sequence[Target]], None]) -> str:
        """Returns a table of the best runs after training all of them, round by round.

        Args:
            settings: of the sweep, for its record.
            launch: trains runs.

        Raises:
            BusyError: another process searches in this folder.
            ConfigMismatchError: the folder belongs to another search or sweep.
            PreemptedError: this process was asked to stop; the same command goes on.
        """
        ledger, number = self._ledger, 0
        ledger.write(self._base, settings, ())
        with searching(ledger.directory), contextlib.closing(self._open(ledger.directory)) as search:
            while points := search.ask(self._round):
                _, known = ledger.read()
                targets = self._targets(list(points.values()), known)
                rungs = search.rungs(number, self._sweep.rungs)
                ledger.write(self._base, {**settings, "rungs": rungs}, targets)
                launch(dataclasses.replace(self._sweep, rungs=rungs), targets)
                results = ledger.results()
                if left := [target.name for target in targets if target.name not in results]:
                    raise PreemptedError(f"{len(left)} of {len(targets)} runs of this round are left; run it again")
                for trial, target in zip(points, targets, strict=True):
                    search.tell(trial, results[target.name], self._metric(results[target.name]))
                number += 1
        return self._table()

    def _open(self, folder: pathlib.Path | None) -> Search:
        sweep = self._sweep
        return Search(folder, sweep.space, sweep.search, sweep.trials, falling=self._falling)

    def _targets(self, points: Sequence[Point], known: Sequence[Target]) -> tuple[Target, ...]:
        """Returns the runs of a round; two trials with the same point are one run."""
        configs, told = resolve_points(points, self._base)
        named = {each.name: each.config for each in known}
        different = {config: i for i, config in reversed(list(enumerate(configs)))}
        order = sorted(different.values())
        targets = name_targets(*([each[i] for i in order] for each in (points, configs, told)), named)
        by_config = {target.config: target for target in targets}
        return tuple(by_config[config] for config in configs)

    def _metric(self, result: Mapping[str, Any]) -> str:
        """Returns the name of what is searched for in the metrics of a run."""
        if wanted := self._sweep.metric:
            return wanted if wanted.startswith("eval/") else f"eval/{wanted}"
        losses = (name for name in result["metrics"] if name.count("/") == 2 and name.endswith("/loss"))
        return next(losses, "eval/loss")

    def _table(self) -> str:
        """Returns the best runs, one a line."""
        found, points = [], {target.name: target.point for target in self._ledger.read()[1]}
        for name, result in self._ledger.results().items():
            value = result["metrics"].get(self._metric(result))
            if value is not None and name in points:
                found.append(
                    (value, (f"{value:.4f}", result["status"], str(result["steps"]), point_text(points[name])))
                )
        found.sort(key=lambda each: each[0] if self._falling else -each[0])
        what = self._sweep.metric or "the loss of the first set"
        rows = [("", "status", "steps", "point"), *(row for _, row in found[:_SHOWN])]
        return "\n".join([f"the best of {len(found)} runs by {what}:", "", *aligned(rows)])
