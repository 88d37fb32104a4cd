"""`lmjax scaling`: a scaling law of the runs of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from absl import flags

from lmjax.commands.table import aligned
from lmjax.errors import FlagError
from lmjax.evaluation.scaling import NAMES, RESAMPLES, Fitted, fit
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.paths import write_durably
from lmjax.phases import phase
from lmjax.runs.places import local_folder
from lmjax.runs.pretrained import open_pretrained
from lmjax.sweep.arms import RunResult, arms_of, sweep_runs, with_shared
from lmjax.sweep.charts import Curve, Dot, curves
from lmjax.sweep.ledger import Ledger
from lmjax.sweep.render import Section, markdown, page
from lmjax.sweep.statistics import analyse

# Points of a curve of the fitted law.
_POINTS = 40


def main(values: flags.FlagValues) -> Fitted:
    """Returns the law that fits the runs of the sweep best, after printing it and writing its report."""
    if not values["sweep"].value:
        raise FlagError("--sweep: name the folder of a sweep over sizes and numbers of tokens")
    ledger = Ledger(local_folder(values["sweep"].value))
    runs = [with_shared(run) for run in sweep_runs(ledger) if run.counts]
    metric = analyse(arms_of(runs), values["metric"].value).metric
    with phase("counting the parameters of the models"):
        sizes = [_parameters(ledger, run) for run in runs]
    tokens = [run.tokens for run in runs]
    with phase("fitting the law"):
        found = fit(sizes, tokens, [run.metrics[metric] for run in runs])
    budgets = _budgets(values["flops"].value, sizes, tokens)
    parts = _sections(found, metric, runs, sizes, budgets)
    print("\n\n".join("\n".join([*part.text, "", *aligned(part.table)]) for part in parts[:2]))
    write_durably(ledger.directory / "scaling.md", markdown("A scaling law", parts))
    write_durably(ledger.directory / "scaling.html", page("A scaling law", parts))
    print(f"\nreport       {ledger.directory / 'scaling.html'}  (and .md)")
    return found


def _parameters(ledger: Ledger, run: RunResult) -> int:
    """Returns the number of parameters of a run's model, embeddings included."""
    opened = open_pretrained(ledger.directory / "runs" / run.name)
    return count_parameters(abstract_params(opened.config, opened.heads))


def _budgets(given: Sequence[str], sizes: Sequence[int], tokens: Sequence[int]) -> list[float]:
    largest = max(6.0 * n * d for n, d in zip(sizes, tokens, strict=True))
    try:
        budgets = [float(text) for text in given] or [largest, 10 * largest, 100 * largest]
    except ValueError as e:
        raise FlagError(f"--flops={','.join(given)}: give numbers, such as 1e18,1e19") from e
    if not all(math.isfinite(x) and x > 0 for x in budgets):
        raise FlagError(f"--flops={','.join(given)}: give numbers above 0")
    return budgets


def _sections(
    found: Fitted, metric: str, runs: Sequence[RunResult], sizes: Sequence[int], budgets: Sequence[float]
) -> list[Section]:
    """Returns the parts of the report: the constants, the allocation of budgets, and the runs beside the law."""
    law = [
        (name, f"{getattr(found.law, name):.4g}", f"{low:.4g} to {high:.4g}")
        for name in NAMES
        for low, high in [found.interval(name)]
    ]
    best = []
    for flops in budgets:
        (n, *ends), (d, *others) = found.allocation(flops)
        ranges = (f"{a:.3g} to {b:.3g}" for a, b in (ends, others))
        loss = float(found.law.loss(n, d))
        best.append((f"{flops:.3g}", f"{n:.3g}", next(ranges), f"{d:.3g}", next(ranges), f"{d / n:.3g}", f"{loss:.4g}"))
    rows = [
        (
            run.name,
            f"{n:.4g}",
            f"{run.tokens:.4g}",
            f"{run.metrics[metric]:.4f}",
            f"{found.law.loss(n, run.tokens):.4f}",
        )
        for run, n in zip(runs, sizes, strict=True)
    ]
    return [
        Section(
            "The law",
            (
                f"{metric} = E + A / N^alpha + B / D^beta for N parameters and D tokens (Hoffmann et al. 2022, "
                f"arXiv:2203.15556, approach 3), fitted to {len(runs)} runs; 95 % intervals from {RESAMPLES} bootstrap "
                f"draws of the runs. The residuals are {100 * found.error:.2g} % of the loss.",
            ),
            (("constant", "value", "95 % interval"), *law),
        ),
        Section(
            "Best use of a budget",
            ("Parameters and tokens with the lowest loss for 6 N D FLOPs; beyond the runs it is an extrapolation.",),
            (("FLOPs", "parameters", "95 % interval", "tokens", "95 % interval", "tokens/parameter", "loss"), *best),
        ),
        Section(
            "The runs",
            ("Lines are the law, points the runs.",),
            (("run", "parameters", "tokens", metric, "by the law"), *rows),
            _chart(found, metric, runs, sizes),
        ),
    ]


def _chart(found: Fitted, metric: str, runs: Sequence[RunResult], sizes: Sequence[int]) -> str:
    """Returns a chart of the loss over sizes, a line for each number of tokens."""
    lengths = sorted({run.tokens for run in runs})
    grid = np.geomspace(min(sizes), max(sizes), _POINTS)
    unknown = [math.nan] * _POINTS
    lines = [
        Curve(f"{d:.3g} tokens", np.log10(grid).tolist(), found.law.loss(grid, d).tolist(), unknown, unknown)
        for d in lengths
    ]
    dots = [
        Dot(math.log10(n), run.metrics[metric], lengths.index(run.tokens)) for run, n in zip(runs, sizes, strict=True)
    ]
    return curves(lines, "log10 of the parameters", metric, dots)
