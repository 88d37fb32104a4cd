"""The report of a sweep as Markdown, HTML, CSV and SVG files; the same results give the same bytes."""

from __future__ import annotations

import math
import pathlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from absl import logging

from lmjax.errors import FlagError, SaveError, UserError
from lmjax.evaluation.seeds import DRAWS, LEVEL, Interval, mean_interval
from lmjax.paths import write_durably
from lmjax.runs.documents import score_documents
from lmjax.schema import shown
from lmjax.sweep.along import along_fields
from lmjax.sweep.arms import Arm, arms_of, sweep_runs, with_shared
from lmjax.sweep.cautions import other_tasks, shared_seeds, single_runs, unpaired_documents
from lmjax.sweep.charts import Bar, Curve, alone, bars, curves
from lmjax.sweep.csv_table import pair_label, table_csv
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.origins import with_origins
from lmjax.sweep.render import Framed, Section, markdown, page
from lmjax.sweep.statistics import Analysis, Pair, analyse

# Of more pairs than this, only those with the best arm are shown; the CSV file has all.
_MOST_PAIRS = 30
# Arms beside each other in a table.
_MOST_COLUMNS = 6
# The bands and lines of so many arms can be told apart.
_MOST_CURVES = 12


def write_report(directory: str | pathlib.Path, metric: str | None = None) -> pathlib.Path:
    """Returns the path of `report.md` of a sweep, after writing it, `report.html` and `report.csv`.

    It first scores the documents of runs whose documents are not scored yet.

    Args:
        directory: of the sweep.
        metric: what arms are compared by; None: that of the sweep, or else a loss or bits per byte.

    Raises:
        FlagError: no run has ended, or the runs have no such metric.
        DataError: a file of a run is damaged.
        SaveError: a file cannot be written.
    """
    ledger = Ledger(pathlib.Path(directory))
    settings, _ = ledger.read()
    runs = sweep_runs(ledger)
    unscored = [run.name for run in runs if run.counts and not run.documents]
    if score([ledger.directory / "runs" / name for name in unscored]):
        runs = sweep_runs(ledger)
    found = analyse(arms_of(with_shared(run) for run in with_origins(runs)), metric or settings.get("metric"))
    return write_files(ledger.directory, found)


def report_page(directory: str | pathlib.Path) -> Framed:
    """Returns the written report of a sweep, or of `lmjax compare --report`, for a notebook; its charts are in it.

    Raises:
        FlagError: there is none.
    """
    path = pathlib.Path(directory) / "report.html"
    if not path.is_file():
        raise FlagError(f"{path}: there is no such file; lmjax sweep writes it when its runs have ended")
    return Framed(path.read_text())


def write_files(directory: pathlib.Path, found: Analysis, title: str = "A sweep") -> pathlib.Path:
    """Returns the path of `report.md` after writing the files of a report; raises SaveError if one cannot be written.

    Each chart of the page is a file too, such as `report-learning-curves.svg`.

    Args:
        directory: where they are written; it is made if it does not exist.
        found: what they say.
        title: of the report.
    """
    parts = sections(found)
    files = {
        "report.md": markdown(title, parts),
        "report.html": page(title, parts),
        "report.csv": table_csv(found),
    }
    files |= {f"report-{_slug(part.title)}.svg": alone(part.chart) for part in parts if part.chart}
    for name, text in files.items():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_durably(directory / name, text)
        except OSError as e:
            raise SaveError(f"{directory / name}: cannot be written ({e.strerror}); make room") from e
    return directory / "report.md"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def summary(path: pathlib.Path) -> str:
    """Returns the first part of a written report: the results of the arms and their differences."""
    return path.read_text().partition("## Learning curves")[0].partition("\n\n")[2].strip()


def score(workdirs: Sequence[pathlib.Path]) -> int:
    """Returns in how many workdirs the documents were scored; a run that cannot be scored gives a warning."""
    done = 0
    for workdir in workdirs:
        try:
            score_documents(workdir)
            done += 1
        except UserError as e:
            logging.warning("%s: its documents are not compared: %s", workdir, e)
    return done


def sections(found: Analysis) -> list[Section]:
    """Returns the parts of a report."""
    return [
        _results(found),
        _differences(found),
        *along_fields(found),
        _curves(found),
        _noise(found),
        *_metrics(found),
        _spent(found),
        _made_of(found),
    ]


def _number(value: float | None) -> str:
    """Returns a number with four digits, or a dash for one that is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def _range(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{_number(low)} to {_number(high)}"


def _mean(interval: Interval | None) -> str:
    """Returns a mean and half the width of its interval."""
    if interval is None:
        return "-"
    half = interval.high - interval.value
    return _number(interval.value) if math.isnan(half) else f"{_number(interval.value)} ± {half:.2g}"


def _results(found: Analysis) -> Section:
    order = sorted(range(len(found.arms)), key=lambda i: _rank(found, i))
    header = ("arm", "runs", found.metric.removeprefix("eval/"), "best of a run")
    rows = []
    for i in order:
        arm = found.arms[i]
        ended = Counter(run.status for run in arm.others)
        count = " ".join([str(len(arm.runs)), *(f"({n} {status})" for status, n in sorted(ended.items()))])
        rows.append((arm.label, count, _mean(found.interval(i)), _mean(found.best[i])))
    better = "lower" if found.falling else "higher"
    text = (
        f"Means over seeds with 95 % intervals (Student's t), the best first; {better} is better. The last column has "
        "the best evaluation of each run, which is optimistic.",
        *shared_seeds(found),
        *other_tasks(found),
    )
    marks = [
        Bar(found.arms[i].label, interval.value, interval.low, interval.high, i)
        for i in order
        if (interval := found.interval(i))
    ]
    return Section("Results", text, (header, *rows), bars(marks, found.metric))


def _rank(found: Analysis, arm: int) -> tuple[bool, float]:
    interval = found.interval(arm)
    return interval is None, (interval.value if found.falling else -interval.value) if interval else 0.0


def _differences(found: Analysis) -> Section:
    if not found.pairs:
        return Section("Differences", ("There is one arm, so there are no differences.",))
    best = min(range(len(found.arms)), key=lambda i: (bool(found.arms[i].control), _rank(found, i)))
    pairs = found.pairs
    if len(pairs) > _MOST_PAIRS:
        pairs = [pair for pair in pairs if best in (pair.first, pair.second)]
    header = ("difference of", "", "difference", "95 % interval", "effect", "p", "p (Holm)", "detectable")
    rows = [
        (
            pair_label(found, pair),
            _verdict(pair),
            _number(pair.value),
            _range(pair.low, pair.high),
            _number(pair.effect),
            _probability(pair.p),
            _probability(pair.corrected),
            _number(pair.detectable),
        )
        for pair in pairs
    ]
    over = f"{found.documents:,} held-out documents, resampled in pairs, and seeds" if found.documents else "seeds"
    text = [
        f"Intervals are over {over} ({DRAWS:,} draws). Effect: in standard deviations of a single run (Hedges' g). "
        f"p: of no difference; after Holm, that of any of {len(found.pairs)} pair(s). Detectable: the smallest true "
        "difference that this pair would have shown in 80 % of such sweeps.",
    ]
    text += [*unpaired_documents(found), *single_runs(found)]
    marks = [Bar(pair_label(found, pair), pair.value, pair.low, pair.high, pair.first) for pair in pairs]
    return Section("Differences", tuple(text), (header, *rows), bars(marks, f"difference of {found.metric}", zero=True))


def _probability(p: float) -> str:
    return f"< {1.5 / DRAWS:.2g}" if p <= 1.5 / DRAWS else f"{p:.2g}"


def _verdict(pair: Pair) -> str:
    if pair.control:
        return f"also under {pair.control}"
    if pair.corrected < LEVEL:
        return "real" if pair.real else "of these runs"
    return "not shown"


def _curves(found: Analysis) -> Section:
    order = sorted(range(len(found.arms)), key=lambda i: _rank(found, i))[:_MOST_CURVES]
    given = [curve for i in sorted(order) if (curve := curve_of(found.arms[i], found.metric)) is not None]
    return Section(
        "Learning curves",
        (f"{found.metric} over steps: means over seeds, with 95 % intervals as bands.",),
        (),
        curves(given, "step", found.metric),
    )


def curve_of(arm: Arm, metric: str) -> Curve | None:
    """Returns the mean of a metric over the runs of an arm at the steps that all of them evaluated."""
    by_step: dict[int, list[float]] = {}
    for run in arm.runs:
        for line in run.lines:
            if metric in line:
                by_step.setdefault(int(line["step"]), []).append(line[metric])
    whole = {step: mean_interval(x) for step, x in sorted(by_step.items()) if len(x) == len(arm.runs)}
    if not whole:
        return None
    columns = zip(*((x.value, x.low, x.high) for x in whole.values()), strict=True)
    return Curve(arm.label, list(whole), *columns)


def _noise(found: Analysis) -> Section:
    rows = [
        (noise.source, _number(deviation.value), _range(deviation.low, deviation.high))
        for noise in found.noise
        for deviation in [noise.deviation]
    ]
    design = (
        f"Before a sweep, with these seeds and pairs, a difference of {found.planned:.2g} standard deviations of a run "
        "can be detected (80 % power)."
        if not math.isnan(found.planned)
        else "With one seed, it is not known what the design can detect."
    )
    known = [pair.detectable for pair in found.pairs if not math.isnan(pair.detectable)]
    after = f" In this sweep it is {_number(float(np.median(known)))} for the median pair." if known else ""
    text = (f"Standard deviation of {found.metric} between runs that differ in one seed alone. {design}{after}",)
    header = ("source", "standard deviation", "95 % interval")
    return Section("Noise by source", text, (header, *rows) if rows else ())


def _metrics(found: Analysis) -> list[Section]:
    """Returns the table of all metrics that the runs share, the clearest first."""
    shown_arms = [i for i, arm in enumerate(found.arms) if arm.runs][:_MOST_COLUMNS]
    header = ("metric", "signal to noise", "noise", *(found.arms[i].label for i in shown_arms))
    ranked = sorted(found.table.items(), key=lambda item: -(0.0 if math.isnan(item[1][0]) else item[1][0]))
    rows = [
        (
            name.removeprefix("eval/"),
            _number(signal),
            _number(noise and noise.value),
            *(_mean(means[i]) for i in shown_arms),
        )
        for name, (signal, noise, means) in ranked
    ]
    text = [
        "Signal to noise: the largest difference between arms in standard deviations of a seed (Heineman et al. 2025, "
        "arXiv:2508.13144). By a metric with less than about 2, these arms cannot be told apart."
    ]
    if len(shown_arms) < len(found.arms):
        text.append(f"The first {len(shown_arms)} of {len(found.arms)} arms are shown; report.csv has all runs.")
    return [Section("All metrics", tuple(text), (header, *rows))]


def _spent(found: Analysis) -> Section:
    header = ("arm", "steps", "tokens", "FLOPs", "seconds")
    rows = []
    for arm in found.arms:
        runs = (*arm.runs, *arm.others)
        means = (
            float(np.mean([getattr(run, name) for run in runs])) for name in ("steps", "tokens", "flops", "seconds")
        )
        rows.append((arm.label, *(f"{x:.4g}" for x in means)))
    runs = [run for arm in found.arms for run in (*arm.runs, *arm.others)]
    total = [sum(getattr(run, name) for run in runs) for name in ("steps", "tokens", "flops", "seconds")]
    return Section(
        "What was spent",
        ("Means over the runs of an arm.",),
        (header, *rows, ("all runs", *(f"{x:.4g}" for x in total))),
    )


def _made_of(found: Analysis) -> Section:
    """Returns what the results depend on: commit, versions, data and commands."""
    runs = [run for arm in found.arms for run in (*arm.runs, *arm.others)]
    lines = []
    for name in ("lmjax", "commit", "python", "devices"):
        values = dict.fromkeys(shown(run.environment[name]) for run in runs if run.environment.get(name) is not None)
        lines.append(f"{name}: {', '.join(values) or 'not known'}")
    packages = {f"{k} {v}" for run in runs for k, v in (run.environment.get("packages") or {}).items()}
    lines.append(f"packages: {', '.join(sorted(packages))}")
    prints = {shown(run.data.get(name)) for run in runs for name in ("train", "evals") if run.data.get(name)}
    lines.append(f"data: {'; '.join(sorted(prints))}")
    return Section(
        "What it was made of", tuple(lines), (("run", "command"), *((run.name, run.command) for run in runs))
    )
