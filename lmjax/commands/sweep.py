"""`lmjax sweep`: resolves the runs of a sweep, prints the plan, and trains them."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from lmjax.commands.points import canonical, given, resolve_points
from lmjax.commands.search import Searcher, check_search
from lmjax.commands.sweep_plan import check, check_metric, counted, plan
from lmjax.commands.train import train_run
from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.errors import DivergedError, FlagError, PreemptedError, UserError
from lmjax.parallel.compilation_cache import cache_compilations
from lmjax.parallel.malloc import keep_freed_memory
from lmjax.phases import phase, tell
from lmjax.python_file import run_file
from lmjax.sweep import slurm
from lmjax.sweep.cost import Costs, Unit, matched_steps
from lmjax.sweep.grid import parse_grid
from lmjax.sweep.launch import Launcher, TrainGroup, groups
from lmjax.sweep.ledger import Ledger, now
from lmjax.sweep.loop import Rung
from lmjax.sweep.manifests import printed
from lmjax.sweep.outcome import Outcome, outcome
from lmjax.sweep.population import train_population
from lmjax.sweep.processes import Pool, shares
from lmjax.sweep.program import program
from lmjax.sweep.progress import View
from lmjax.sweep.report import summary, write_report
from lmjax.sweep.space import Point, Space, Sweep
from lmjax.sweep.targets import Target, name_targets

# What a sweep is besides its runs and what they are given.
_CHOSEN = ("metric", "match", "control")
SETTINGS = (*_CHOSEN, "rungs")


class CrashedError(UserError):
    """Runs of a sweep crashed; the others have ended."""

    exit_code = 70


def main(values: flags.FlagValues, overrides: Mapping[str, str]) -> pathlib.Path | None:
    """Returns the folder of the sweep that the flags describe after its runs have ended; None: it was only planned."""
    workdir = values["workdir"].value and pathlib.Path(values["workdir"].value)
    kind = values["print"].value
    if (values["run"].value or kind) and not workdir:
        given_flag = "--run" if values["run"].value else f"--print={kind}"
        raise FlagError(f"{given_flag}: give --workdir=DIR, the folder of the sweep, too")
    ledger, costs = workdir and Ledger(workdir), Costs()
    if values["worker"].value:
        return _work(ledger, values["since"].value, values["members"].value)
    processes = values["processes"].value
    cluster = values["launcher"].value == "slurm"
    if values["slurm"].value and not cluster:
        raise FlagError(f"--slurm={values['slurm'].value[0]}: is for --launcher=slurm; give that too")
    slurm.settings(values["slurm"].value)
    if processes > 1 and not (cluster or kind):
        shares(processes)
        # The processes need the memory of the devices, so the plan may not take it.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    asked = _asked(values, overrides, ledger)
    sweep, base = asked.sweep, asked.base
    searcher = Searcher(sweep, base, ledger, values["members"].value) if sweep.search else None
    targets = searcher.first_round() if searcher else _targets(asked, costs)
    if ledger:
        ledger.check(base, () if searcher else targets)
    settings = {name: getattr(sweep, name) for name in SETTINGS}
    if kind:
        if searcher:
            raise FlagError(f"--print={kind}: the runs of a search are not known before it begins; leave --search out")
        ledger.write(base, settings, targets)
        print(printed(kind, str(ledger.directory.absolute()), processes, now()))
        return ledger.directory
    with phase("counting what the runs will spend"):
        check(targets, program)
        spent = counted(targets, costs)
        check_metric(sweep.metric, spent)
        told = plan(targets, program, spent, ledger.results() if ledger else {})
    print(f"{searcher.opening()}\n{told}" if searcher else told)
    if not values["run"].value:
        print("nothing is trained yet: give --run and --workdir=DIR")
        return None
    tell(False)
    if searcher:
        table = searcher.run(settings, functools.partial(_launch, values, ledger, costs))
        print(f"\n{table}\n\nlmjax sweep --workdir={ledger.directory} --run writes the report of all runs")
        return ledger.directory
    ledger.write(base, settings, targets)
    _launch(values, ledger, costs, sweep, targets)
    tell()
    return _ended(ledger, targets, sweep.metric)


def _launch(values: flags.FlagValues, ledger: Ledger, costs: Costs, sweep: Sweep, targets: Sequence[Target]) -> None:
    """Trains the runs, by this process or by those that the flags name, and shows their progress."""
    processes, most, since = values["processes"].value, values["members"].value, now()
    cluster = values["launcher"].value == "slurm"
    if cluster or processes > 1:
        largest = max(map(len, groups(targets, program).values()))
        # Runs that a rung compares stay together.
        most = most or (None if sweep.rungs else -(-largest // processes))
    # Without epochs, the config has the number.
    steps = {x.name: costs(x.config).steps if x.config.epochs else x.config.steps for x in targets}
    with View(ledger, targets, steps, sweep.metric, values["progress"].value):
        if cluster:
            job = slurm.submit(ledger, processes, values["slurm"].value, since, most)
            slurm.follow(job, lambda: ledger.ended(targets, since))
        elif processes > 1:
            Pool(ledger, targets, processes, since, most).run()
        else:
            if values["keep_memory"].value:
                keep_freed_memory()
            Launcher(ledger, targets, program, _trainer(sweep.rungs), since, most).run()


def _work(ledger: Ledger | None, since: str | None, most: int | None) -> pathlib.Path:
    """Returns the folder of a sweep after training what is left of it; the command that launched it reports."""
    there, targets = ledger.read() if ledger else ({}, ())
    if not targets:
        raise FlagError("--worker: give --workdir=DIR, the folder of a sweep that was launched with --run")
    tell(False)
    keep_freed_memory()
    Launcher(ledger, targets, program, _trainer(there.get("rungs", ())), since, most).run()
    return ledger.directory


def _ended(ledger: Ledger, targets: Sequence[Target], metric: str | None) -> pathlib.Path:
    """Returns the folder of a sweep that has ended, after writing its report.

    Raises:
        PreemptedError: runs are left, because a process was asked to stop.
        CrashedError: runs crashed.
    """
    results = ledger.results()
    if left := [target.name for target in targets if target.name not in results]:
        raise PreemptedError(f"{len(left)} of {len(targets)} runs are left; run the same command again")
    if any(result["metrics"] for result in results.values() if result["status"] in ("done", "stopped")):
        cache_compilations(DataConfig().cache_path)
        with phase("scoring documents and writing the report"):
            path = write_report(ledger.directory, metric)
        print(f"\n{summary(path)}\n\nreport       {path.with_suffix('.html')}  (and .md, .csv)")
    if crashed := [target.name for target in targets if results[target.name]["status"] == "crashed"]:
        raise CrashedError(
            f"{len(crashed)} of {len(targets)} runs crashed: {crashed[0]}: {results[crashed[0]]['error']}\n"
            "The same command tries them again"
        )
    return ledger.directory


def _trainer(rungs: Sequence[int]) -> TrainGroup:
    """Returns a function that trains runs as one population, of which the worse half stops at each rung."""

    def train(configs: Sequence[Config], workdirs: Sequence[pathlib.Path]) -> Sequence[Outcome]:
        if len(configs) > 1 and program(configs[0]) is not None:
            return train_population(configs, workdirs, rungs=[Rung(step) for step in rungs], progress=False)
        return _train_each(configs, workdirs)

    return train


def _train_each(configs: Sequence[Config], workdirs: Sequence[pathlib.Path]) -> list[Outcome]:
    """Returns the outcomes of runs that are trained one after the other."""
    outcomes = []
    for config, workdir in zip(configs, workdirs, strict=True):
        try:
            train_run(config, workdir, progress=False)
        except DivergedError as e:
            outcomes.append(outcome(workdir, "diverged", str(e)))
        else:
            found = outcome(workdir, "done")
            early = config.minutes is None and config.epochs is None and found.step < config.steps
            outcomes.append(found._replace(status="stopped") if early else found)
    return outcomes


class _Asked(NamedTuple):
    """What a command line asks for: the sweep, what all runs are given, the points, and the runs that exist already."""

    sweep: Sweep
    base: dict[str, Any]
    points: list[Point]
    known: tuple[Target, ...]


def _asked(values: flags.FlagValues, overrides: Mapping[str, str], ledger: Ledger | None) -> _Asked:
    """Returns what a command line asks for; without points, if it goes on with the runs that exist."""
    file, grid, flagged = values["sweep"].value, values["grid"].value, given(values, overrides)
    if file and grid:
        raise FlagError(f"--sweep={file} and --grid={grid}: both say which runs there are; give one of them")
    there, known = ledger.read() if ledger else ({}, ())
    if not file and not grid:
        if not known:
            raise FlagError("give the runs: --sweep=FILE.py or --grid='FIELD=VALUE,VALUE;seed=0:3' (--help)")
        if flagged:
            raise FlagError(f"--{next(iter(flagged))}: --workdir={ledger.directory} says what its runs are given; "
                            "give --sweep or --grid too, or leave it out")  # fmt: skip
        base = there.pop("base")
        sweep = Sweep(Space(({},)), base, **there | {"rungs": tuple(there.get("rungs", ()))})
        return _Asked(dataclasses.replace(sweep, metric=values["metric"].value or sweep.metric), base, [], known)
    where = f"--sweep={file}" if file else f"--grid={grid}"
    sweep = load_sweep(file) if file else Sweep(parse_grid(grid))
    points = [canonical(point, where) for point in sweep.space]
    base = canonical(sweep.base, where) | canonical(flagged, "the flags")
    for key in base:
        if any(key in point for point in points):
            raise FlagError(f"{where}: {key} is given to all runs too, as {base[key]}; leave one of the two out")
    chosen = {name: values[name].value or getattr(sweep, name) for name in (*_CHOSEN, "search", "trials")}
    chosen["rungs"] = _rungs(values["rungs"].value) or tuple(sweep.rungs)
    sweep = dataclasses.replace(sweep, space=Space(tuple(points)), **chosen)
    check_search(sweep, where)
    return _Asked(sweep, base, points + _controls(points, base, sweep.control), known)


def _targets(asked: _Asked, costs: Costs) -> tuple[Target, ...]:
    """Returns the runs of a sweep that is no search."""
    sweep, base, points, known = asked
    if not points:
        return known
    configs, told = resolve_points(points, base)
    if sweep.match:
        configs, told = _matched(points, base, configs, sweep.match, costs)
    return name_targets(points, configs, told, {each.name: each.config for each in known})


def _rungs(texts: Sequence[str]) -> tuple[int, ...]:
    """Returns the values of --rungs as steps."""
    if odd := [text for text in texts if not text.strip().isdecimal()]:
        raise FlagError(f"--rungs={','.join(texts)}: {odd[0]!r} is not a number of steps")
    return tuple(int(text) for text in texts)


def _controls(points: Sequence[Point], base: Point, control: str | None) -> list[Point]:
    """Returns the points of a negative control: each point again, on data without what could be learned."""
    if control in (None, "none"):
        return []
    if any("data.control" in each for each in (base, *points)):
        raise FlagError(f"--control={control}: the runs are given data.control too; leave one of the two out")
    return [{**point, "data.control": control} for point in points]


def _matched(
    points: Sequence[Point], base: Point, configs: Sequence[Config], unit: Unit, costs: Costs
) -> tuple[list[Config], list[list[str]]]:
    """Returns the configs and arguments of the points, with the steps by which all spend what the first one spends."""
    ends = {"steps", "epochs", "minutes"}
    if varied := sorted(ends & {key for point in points for key in point}):
        raise FlagError(f"--match={unit}: {varied[0]} differs between the runs, and matching sets it; leave one out")
    with phase("counting what a step of each run spends"):
        steps = matched_steps(configs, unit, costs)
    if None in steps:
        return resolve_points(points, base)
    rest = {key: value for key, value in base.items() if key not in ends}
    return resolve_points([{**point, "steps": n} for point, n in zip(points, steps, strict=True)], rest)


def load_sweep(name: str) -> Sweep:
    """Returns the sweep from `get_sweep` of a file. The file is Python and is run, so trust it first.

    Raises:
        FlagError: there is no such file, or `get_sweep` returns no Sweep.
    """
    module = run_file(name, missing=f"--sweep={name}: there is no such Python file", otherwise="give FILE.py")
    if not hasattr(module, "get_sweep"):
        raise FlagError(f"--sweep={name}: the file defines no get_sweep() -> lmjax.sweep.space.Sweep")
    sweep = module.get_sweep()
    if not isinstance(sweep, Sweep):
        raise FlagError(f"--sweep={name}: get_sweep returned {type(sweep).__name__}, not lmjax.sweep.space.Sweep")
    return sweep
