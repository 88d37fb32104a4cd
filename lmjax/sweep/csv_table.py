"""A report as a table of numbers for other programs: CSV with a line for every run and every pair of arms."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from lmjax.schema import shown
from lmjax.sweep.arms import Arm, RunResult, is_control
from lmjax.sweep.statistics import Analysis, Pair


def pair_label(found: Analysis, pair: Pair) -> str:
    """Returns which arm is subtracted from which."""
    return f"{found.arms[pair.first].label} less {found.arms[pair.second].label}"


def table_csv(found: Analysis) -> str:
    """Returns a line for every run, with its fields, what it spent and all its metrics, and one for every pair."""
    runs = [(arm, run) for arm in found.arms for run in (*arm.runs, *arm.others)]
    fields = list(dict.fromkeys(name for _, run in runs for name in run.fields))
    metrics = sorted({name for _, run in runs for name in run.metrics})
    cost = ("steps", "tokens", "flops", "seconds")
    differs = ("difference", "low", "high", "effect", "p", "p_holm", "detectable", "control")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "name", "arm", "status", *fields, *cost, *metrics, *differs])
    for arm, run in runs:
        writer.writerow(_run_cells(arm, run, fields, cost, metrics) + [""] * len(differs))
    before = [""] * (1 + len(fields) + len(cost) + len(metrics))
    for pair in found.pairs:
        numbers = (pair.value, pair.low, pair.high, pair.effect, pair.p, pair.corrected, pair.detectable)
        cells = ["" if math.isnan(x) else repr(x) for x in numbers]
        label = pair_label(found, pair)
        writer.writerow(["pair", found.metric, label, *before, *cells, pair.control])
    return text.getvalue()


def _run_cells(
    arm: Arm, run: RunResult, fields: Sequence[str], cost: Sequence[str], metrics: Sequence[str]
) -> list[Any]:
    values = [shown(run.fields[name]) if name in run.fields else "" for name in fields]
    spent = [getattr(run, name) for name in cost]
    kind = "control" if is_control(run.fields) else "run"
    return [kind, run.name, arm.label, run.status, *values, *spent, *(run.metrics.get(name, "") for name in metrics)]
