"""`lmjax compare`: the table of a sweep's report for runs that exist already, in a sweep or not."""

from __future__ import annotations

import pathlib

from absl import flags

from lmjax.commands.models import prepare
from lmjax.commands.table import aligned
from lmjax.errors import FlagError
from lmjax.paths import expanded
from lmjax.phases import phase
from lmjax.runs.places import local_folder
from lmjax.sweep.arms import arms_of, with_shared, workdir_runs
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.origins import with_origins
from lmjax.sweep.render import Section
from lmjax.sweep.report import score, sections, write_files
from lmjax.sweep.statistics import Analysis, analyse

# Parts of the report that are printed.
_PRINTED = ("Results", "Differences", "Noise by source")


def main(values: flags.FlagValues) -> Analysis:
    """Returns the statistics of the runs that the arguments name, after printing them."""
    workdirs = [workdir for place in values["runs"].value for workdir in _workdirs(place)]
    if not workdirs:
        raise FlagError("lmjax compare needs the workdirs of runs, as in: lmjax compare runs/a runs/b")
    runs = workdir_runs(workdirs)
    unscored = [pathlib.Path(run.name) for run in runs if not run.documents]
    if unscored and values["documents"].value:
        prepare()
        with phase(f"scoring the documents of {len(unscored)} run(s)"):
            if score(unscored):
                runs = workdir_runs(workdirs)
    found = analyse(arms_of(with_shared(run) for run in with_origins(runs)), values["metric"].value)
    parts = sections(found)
    print("\n\n".join(_text(part) for part in parts if part.title in _PRINTED))
    if values["report"].value:
        path = write_files(expanded(values["report"].value), found, "Runs compared")
        print(f"\nreport       {path.with_suffix('.html')}  (and .md, .csv)")
    return found


def _workdirs(place: str) -> list[str]:
    """Returns the workdirs of a place: itself, or those of the runs of a sweep that have ended."""
    folder = local_folder(place)
    ledger = Ledger(folder)
    if not ledger.exists:
        return [place]
    _, targets = ledger.read()
    results = ledger.results()
    good = [target for target in targets if results.get(target.name, {}).get("status") in ("done", "stopped")]
    if not good:
        raise FlagError(f"{place}: no run of this sweep has ended; lmjax sweep --workdir={place} --run trains them")
    return [str(ledger.workdir(target)) for target in good]


def _text(part: Section) -> str:
    return "\n".join([part.title, *part.text, *([""] if part.table else []), *aligned(part.table or [("",)])]).rstrip()
