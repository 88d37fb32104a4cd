"""Runs what is left of a sweep, group by group, beside other processes that may do the same in the same folder."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Hashable, Sequence

from absl import logging

from lmjax.config import Config
from lmjax.errors import BusyError, PreemptedError, SaveError, UserError
from lmjax.runs.identity import environment
from lmjax.sweep.claims import claimed
from lmjax.sweep.ledger import Ledger, has_ended, now
from lmjax.sweep.outcome import Outcome, outcome
from lmjax.sweep.targets import Target

# Seconds between two looks at runs that other processes train.
_PATIENCE = 1.0

TrainGroup = Callable[[Sequence[Config], Sequence[pathlib.Path]], Sequence[Outcome]]


class Launcher:
    """Trains the runs of a sweep in this process.

    A run is claimed, as of `claimed`. One that has ended is not repeated, by whichever process; one that was
    killed is resumed. A run that crashes or diverges is recorded, and the others go on.
    """

    def __init__(
        self,
        ledger: Ledger,
        targets: Sequence[Target],
        program: Callable[[Config], Hashable | None],
        train_group: TrainGroup,
        since: str | None = None,
        most: int | None = None,
    ):
        """Makes a launcher.

        Args:
            ledger: the record of the sweep.
            targets: the runs.
            program: as of `groups`.
            train_group: trains runs that share a program to their ends; its outcomes may leave out runs that another
                process trains.
            since: when the sweep was launched, as `ledger.now` says it; runs that crashed before are tried again. None:
                now.
            most: the most runs that are trained together; None: all that share a program.
        """
        self._ledger, self._train_group = ledger, train_group
        self._groups = groups(targets, program)
        self._since, self._most = since or now(), most
        self._commit = environment()["commit"]

    def run(self) -> None:
        """Trains until every run has ended, here or in another process.

        Raises:
            PreemptedError: this process was asked to stop; the run is saved, and the same command goes on.
        """
        while left := self._left():
            if not any(self._train_free(name, group) for name, group in left.items()):
                time.sleep(_PATIENCE)

    def _left(self) -> dict[str, list[Target]]:
        """Returns by group the runs that have not ended, nor crashed since the sweep was launched; no empty groups."""
        results = self._ledger.results()
        left = {
            name: [target for target in group if not has_ended(results.get(target.name), self._since)]
            for name, group in self._groups.items()
        }
        return {name: group for name, group in left.items() if group}

    def _train_free(self, name: str, group: Sequence[Target]) -> bool:
        """Returns whether a group had runs that were free, after training them."""
        with claimed(self._ledger, group, self._since, self._most) as members:
            if members:
                self._train(name, members)
        return bool(members)

    def _train(self, name: str, members: Sequence[Target]) -> None:
        """Trains runs of one group and records their outcomes; if they crash together, each half is tried alone."""
        workdirs = [self._ledger.workdir(member) for member in members]
        try:
            with self._ledger.training(members):
                outcomes = self._train_group([member.config for member in members], workdirs)
        except (PreemptedError, SaveError):
            # A full disk ends every run: the command stops, and goes on when there is room.
            raise
        except BusyError:
            time.sleep(_PATIENCE)
            return
        except Exception as e:
            if len(members) > 1:
                half = len(members) // 2
                self._train(name, members[:half])
                self._train(name, members[half:])
                return
            if not isinstance(e, UserError):
                logging.warning("%s crashed", members[0].name, exc_info=e)
            outcomes = [outcome(workdirs[0], "crashed", f"{type(e).__name__}: {str(e).strip()}"[:2000])]
        by_workdir = dict(zip(workdirs, members, strict=True))
        for each in outcomes:
            self._ledger.append(by_workdir[each.workdir], each, group=name, commit=self._commit)


def groups(targets: Sequence[Target], program: Callable[[Config], Hashable | None]) -> dict[str, list[Target]]:
    """Returns the runs that are trained together, by the name of each group: its number from 1 on.

    Args:
        targets: the runs.
        program: equal for configs that are trained together; None: the run is trained by itself.
    """
    found: dict[Hashable, list[Target]] = {}
    for target in targets:
        shared = program(target.config)
        found.setdefault((target.name,) if shared is None else shared, []).append(target)
    return {str(number): members for number, members in enumerate(found.values(), 1)}
