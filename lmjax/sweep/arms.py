"""Runs to compare, grouped into arms: the runs of an arm differ in their seeds alone."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmjax.config import Config, from_json
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.documents import DocumentLosses
from lmjax.evaluation.measures import MEASURES
from lmjax.interop.shards import read_json
from lmjax.paths import expanded, shell_quoted
from lmjax.runs.documents import read_documents
from lmjax.runs.identity import IDENTITY
from lmjax.runs.workdir import INERT
from lmjax.schema import shown
from lmjax.streams import SeedsConfig
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.outcome import outcome
from lmjax.training.evaluate import FALLING
from lmjax.training.metrics import METRICS, read_lines

_SEEDS = frozenset({"seed", *(f"seeds.{name}" for name in SeedsConfig.model_fields)})
# Before the fields of the run that a run begins from.
ORIGIN = "init_from."
CONTROL = "data.control"
# Measures that objectives have under names of their own; see `with_shared`.
_BITS = "bits_per_byte"
SHARED = (_BITS, "accuracy")
# Fields that change no result, by the beginning of their paths.
_NO_RESULT = (*INERT, "logging.", "checkpoint.")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a report says of one run.

    Attributes:
        name: of the run.
        fields: the fields that differ between the runs.
        status: how it ended.
        metrics: of its last evaluation, by name.
        lines: of its metrics.jsonl.
        documents: the losses of each document by evaluation set.
        steps: that it made.
        tokens: that it read.
        flops: model FLOPs of its steps.
        seconds: of its steps.
        environment: versions, devices and commit.
        data: what identifies its data.
        command: the command that trains it.
    """

    name: str
    fields: Mapping[str, Any]
    status: str
    metrics: Mapping[str, float]
    lines: Sequence[Mapping[str, float]]
    documents: Mapping[str, DocumentLosses]
    steps: int
    tokens: int
    flops: float
    seconds: float
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    command: str

    @property
    def counts(self) -> bool:
        """Returns whether its results are compared; runs that diverged or crashed are only listed."""
        return self.status in ("done", "stopped") and bool(self.metrics)


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone.

    Attributes:
        label: the fields that differ between arms, as text.
        fields: the same by name.
        runs: those that ended well.
        others: those that diverged or crashed.
    """

    label: str
    fields: Mapping[str, Any]
    runs: tuple[RunResult, ...]
    others: tuple[RunResult, ...]

    def values(self, metric: str) -> list[float]:
        """Returns a metric of the last evaluation of each run that has it."""
        return [run.metrics[metric] for run in self.runs if run.metrics.get(metric) is not None]

    @property
    def control(self) -> str:
        """Returns the name of its negative control; empty: it is none."""
        return str(self.fields[CONTROL]) if is_control(self.fields) else ""


def sweep_runs(ledger: Ledger) -> list[RunResult]:
    """Returns the results of the runs of a sweep that have ended, in the order of the sweep.

    Raises:
        DataError: a file of a run is damaged.
        FlagError: no run has ended.
    """
    _, targets = ledger.read()
    results = ledger.results()
    found = []
    for target in targets:
        if target.name in results:
            line = results[target.name]
            cost = {name: line[name] for name in ("steps", "tokens", "flops", "seconds")}
            command = f"lmjax train {' '.join(map(shell_quoted, target.arguments))}"
            workdir = ledger.workdir(target)
            found.append(_result(target.name, workdir, target.fields, line["status"], line["metrics"], command, **cost))
    if not found:
        raise FlagError(f"--workdir={ledger.directory}: no run has ended; lmjax sweep --workdir=... --run trains them")
    return found


def workdir_runs(places: Sequence[str | os.PathLike[str]]) -> list[RunResult]:
    """Returns the results of runs by their workdirs; fields are those of the config in which the runs differ.

    Raises:
        FlagError: a folder is no workdir of a run, or is given twice.
        DataError: a file is damaged.
    """
    workdirs = [expanded(place) for place in places]
    for i, workdir in enumerate(workdirs):
        if not (workdir / "config.json").is_file() or not (workdir / METRICS).is_file():
            raise FlagError(f"{places[i]}: is no workdir of a run that was trained; lmjax train makes one")
        if workdir.resolve() in [other.resolve() for other in workdirs[:i]]:
            raise FlagError(f"{places[i]}: is given twice; give each run once")
    configs = [from_json(workdir / "config.json") for workdir in workdirs]
    fields = differing(configs)
    found = []
    for place, workdir, own in zip(places, workdirs, fields, strict=True):
        ended = outcome(workdir, "done")
        command = (_json(workdir / "env.json").get("command") or ["lmjax"])[1:]
        found.append(
            _result(
                str(place),
                workdir,
                own,
                "done",
                ended.metrics,
                f"lmjax {' '.join(map(shell_quoted, command))}",
                steps=ended.step,
                tokens=ended.tokens,
                flops=ended.flops,
                seconds=ended.seconds,
            )
        )
    return found


def _result(
    name: str,
    workdir: pathlib.Path,
    fields: Mapping[str, Any],
    status: str,
    metrics: Mapping[str, float],
    command: str,
    **cost: Any,
) -> RunResult:
    lines = read_lines(workdir) if (workdir / METRICS).is_file() else []
    documents = read_documents(workdir) if workdir.is_dir() else {}
    return RunResult(
        name=name,
        fields=dict(fields),
        status=status,
        metrics={key: value for key, value in metrics.items() if value is not None},
        lines=lines,
        documents=documents,
        **cost,
        environment=_json(workdir / "env.json"),
        data=_json(workdir / IDENTITY),
        command=command,
    )


def _json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a JSON file; empty: there is none."""
    return read_json(path) if path.is_file() else {}


def differing(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Returns for each config its values of the fields in which they differ and that change a result."""
    flats = [config.flat() for config in configs]
    names = [
        name
        for name in dict.fromkeys(name for flat in flats for name in flat)
        if len({shown(flat.get(name)) for flat in flats}) > 1 and not name.startswith(_NO_RESULT)
    ]
    return [{name: flat.get(name) for name in names} for flat in flats]


def is_seed(name: str) -> bool:
    """Returns whether a field is a seed, of the run or of the one that it begins from."""
    return name.removeprefix(ORIGIN) in _SEEDS


def arm_key(fields: Mapping[str, Any]) -> str:
    """Returns what is equal for runs that differ in their seeds alone."""
    return json.dumps({name: shown(value) for name, value in fields.items() if not is_seed(name)}, sort_keys=True)


def is_control(fields: Mapping[str, Any]) -> bool:
    """Returns whether a run is a negative control."""
    return str(fields.get(CONTROL, "none")) != "none"


def arms_of(runs: Iterable[RunResult]) -> list[Arm]:
    """Returns the arms in the order of their first runs.

    A field that is the same in all arms is not in their labels.
    """
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(arm_key(run.fields), []).append(run)
    short = short_names([n for group in groups.values() for n in group[0].fields if not is_seed(n)])
    arms = []
    for group in groups.values():
        fields = {name: value for name, value in group[0].fields.items() if not is_seed(name)}
        label = ", ".join(f"{short[name]}={shown(value)}" for name, value in fields.items()) or "all runs"
        kept, others = (tuple(run for run in group if run.counts is good) for good in (True, False))
        arms.append(Arm(label, fields, kept, others))
    return arms


def task_fields(arms: Sequence[Arm]) -> list[str]:
    """Returns the fields that differ between arms and decide what is predicted: the objective and its own settings."""
    names = dict.fromkeys(name for arm in arms for name in arm.fields)
    decide = (name for name in names if name == "objective" or (name.startswith("task.") and name.count(".") > 1))
    return [name for name in decide if len({shown(arm.fields.get(name)) for arm in arms}) > 1]


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """Returns the last part of each path of a field, or the path where others end alike."""
    names = list(dict.fromkeys(fields))
    last = [name.rpartition(".")[2] for name in names]
    return {name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)}


def is_falling(metric: str) -> bool:
    """Returns whether lower values of a metric are better."""
    return metric.rpartition("/")[2] in {*FALLING, *(name for each in MEASURES.values() for name in each.falling)}


def headline(arms: Sequence[Arm], wanted: str | None = None) -> str:
    """Returns the metric that arms are compared by: the wanted one, or else one that means the same in all of them.

    It is the loss of the first evaluation set if all runs have the same tokenizer and predict the same targets, or
    else its bits per byte, or else the loss all the same.

    Raises:
        FlagError: the runs have no such metric, or nothing in common.
    """
    runs = [run for arm in arms for run in arm.runs]
    if not runs:
        raise FlagError("no run has ended well, so there is nothing to compare")
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    if wanted:
        name = wanted if wanted.startswith("eval/") else f"eval/{wanted}"
        if name not in shared:
            raise FlagError(f"--metric={wanted}: not all runs have it; they share {', '.join(shared[:20]) or 'none'}")
        return name
    losses = [name for name in shared if name.count("/") == 2 and name.endswith("/loss")]
    if not losses:
        raise FlagError("the runs share no evaluation set, so they cannot be compared; give runs on the same data")
    name = losses[0].split("/")[1]
    if same_units(runs, name):
        return losses[0]
    bits = f"eval/{name}/{_BITS}"
    return bits if all(own_metric(run, name, _BITS) is not None for run in runs) else losses[0]


def same_units(runs: Sequence[RunResult], evaluated: str) -> bool:
    """Returns whether the losses of runs on a set are means over the same targets; without documents: not known."""
    documents = [run.documents.get(evaluated) for run in runs]
    if None in documents:
        return all(d is None for d in documents) and len({_kinds(run, evaluated) for run in runs}) == 1
    first = documents[0]
    return all(
        (d.names, d.tokenizer, d.fingerprint) == (first.names, first.tokenizer, first.fingerprint)
        and (d.loss_weights == first.loss_weights).all()
        and (d.weights == first.weights).all()
        for d in documents
    )


def _kinds(run: RunResult, evaluated: str) -> tuple[Any, ...]:
    """Returns the names of a run's metrics on a set, and its tokenizer."""
    return (run.data.get("tokenizer"), *sorted(name for name in run.metrics if name.startswith(f"eval/{evaluated}/")))


def own_metric(run: RunResult, evaluated: str, measure: str) -> str | None:
    """Returns the name of a measure of a run on a set; None: it has none, or accuracies of several objectives.

    Bits per byte of several objectives are those of the first by name.
    """
    names = [n for n in run.metrics if n.startswith(f"eval/{evaluated}/") and n.endswith(f"/{measure}")]
    return min(names, default=None) if measure == _BITS or len(names) < 2 else None


def with_shared(run: RunResult) -> RunResult:
    """Returns a run with `eval/SET/bits_per_byte` and `eval/SET/accuracy` for each set that it has them of.

    So objectives, whose metrics have their own names, can be compared by one.
    """
    sets = dict.fromkeys(name.split("/")[1] for name in run.metrics)
    names = {
        f"eval/{each}/{measure}": own for each in sets for measure in SHARED if (own := own_metric(run, each, measure))
    }

    def added(line: Mapping[str, float]) -> dict[str, float]:
        return {**line, **{name: line[own] for name, own in names.items() if own in line}}

    return dataclasses.replace(run, metrics=added(run.metrics), lines=[added(line) for line in run.lines])


def check_pairs(runs: Sequence[RunResult], evaluated: str) -> str:
    """Returns why the documents of runs cannot be paired; empty: they can.

    Raises:
        DataError: documents of the same fingerprint have other counts, so a file is not what it says.
    """
    documents = [run.documents.get(evaluated) for run in runs]
    if None in documents:
        lacking = runs[documents.index(None)].name
        return f"the documents of {lacking} are not scored"
    if len({d.fingerprint for d in documents}) > 1:
        return "the runs were evaluated on different documents"
    if len({d.nats.shape[1] for d in documents}) > 1:
        raise DataError(f"documents of {evaluated}: equal fingerprints but other counts; remove the documents-*.npz")
    return ""
