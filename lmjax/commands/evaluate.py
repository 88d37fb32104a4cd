"""`lmjax evaluate`: scores texts, pairs and questions with a trained model, or runs tasks of lm-evaluation-harness."""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Mapping

import jax
from absl import flags
from pydantic import ValidationError

from lmjax import __version__, strict_json
from lmjax.commands.contaminated import check_training_data, parted
from lmjax.commands.evaluate_flags import NUMBERS, SWITCHES
from lmjax.commands.evaluate_long import long_config, long_results
from lmjax.commands.evaluate_own import check_new, check_own_flags, generation_config, generation_results, own_results
from lmjax.commands.flags import set_name
from lmjax.commands.models import described, in_processes, named, opened, places, prepare
from lmjax.commands.prompts import new_file
from lmjax.commands.table import aligned
from lmjax.data.files import find_files
from lmjax.data.records import FieldNames
from lmjax.data.sources import STDLIB
from lmjax.errors import FlagError
from lmjax.evaluation.intervals import BOUNDS, Measured
from lmjax.evaluation.long_context import LONG
from lmjax.evaluation.tasks import GENERATION, OWN, evaluate, read
from lmjax.inference.ensemble import joined
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.texts import ScoreConfig
from lmjax.phases import phase

_INSTALL = 'lm-eval is not installed: pip install "lmjax[harness]", or pip install lm-eval'


@in_processes
def main(values: flags.FlagValues) -> dict[str, dict[str, float]]:
    """Returns the metrics of every set of data, or of every task of the harness, by name."""
    place, config, output = _checked(values)
    fields = FieldNames(**{name: values[f"{name}_field"].value for name in FieldNames._fields})
    sets = _sets(values)
    for path in sets.values():
        # A missing file is told before the model is looked for.
        _ = path == STDLIB or find_files(path)
    prepare()
    start, own = time.perf_counter(), None
    first, *others = places(place)
    task = values["task"].value or "perplexity"
    if values["task"].value in (None, OWN) and not values["harness"].value:
        # Which columns are read depends on what the model was fine-tuned for.
        known = described(values, first)
        if values["task"].value == OWN or known.has_task:
            task, own = OWN, known.task
    if own is None:
        check_own_flags(values, place, others, task)
    generation, suite = generation_config(values, task), long_config(values, task)
    with phase("reading the data"):
        data = {name: read(task, path, fields, own, values["column_names"].value) for name, path in sets.items()}
    if values["training_data"].value:
        data = parted(values, data, fields)
    loaded = opened(values, first)
    if values["harness"].value:
        with phase(f"running {values['harness'].value}"):
            results = _harness(loaded, values, config)
    elif own is not None:
        models = [loaded, *(opened(values, other) for other in others)]
        results = own_results(values, models, {name: found.records for name, found in data.items()})
    elif task == LONG:
        results = long_results(values, loaded, data, suite)
    elif task == GENERATION:
        models = joined([loaded, *(opened(values, other) for other in others)])
        results = generation_results(values, models, data, generation)
    else:
        results = {}
        for name, found in data.items():
            with phase(f"scoring {len(found.records):,} text(s) of {name}"):
                results[name] = evaluate(loaded, found, config, task=task)
    print(table(results))
    kind = "log-likelihoods" if loaded.config.family.causal else "pseudo-log-likelihoods"
    if loaded.unmasks:
        kind = f"upper bounds of nats and bits, from {config.draws} sets of masks for each text"
    kind = "generated targets, 95 % intervals over the pairs" if task == GENERATION else kind
    kind = "shares of right answers by depth, and loss by position" if task == LONG else kind
    kind = f"{own.name}, 95 % intervals over the records" if own else kind
    print(f"\n{place}: {loaded.config.family.label}, {kind}, {time.perf_counter() - start:.1f} s")
    if output is not None and not jax.process_index():
        said = {"model": place, "lmjax": __version__, "task": values["harness"].value or task}
        content = said | {"config": config.model_dump(), "results": results}
        for part, of in (("intervals", _ends), ("signatures", _signature)):
            found = {name: {k: of(x) for k, x in metrics.items() if of(x)} for name, metrics in results.items()}
            content |= {part: found} if any(found.values()) else {}
        with output.open("x") as file:
            file.write(strict_json.dumps(content, indent=2) + "\n")
        print(f"written to {output}")
    return results


def _checked(values: flags.FlagValues) -> tuple[str, ScoreConfig, pathlib.Path | None]:
    """Checks the flags, and returns where the model is, how texts are scored, and the output file if there is one."""
    place = values[named(values, "evaluate", several=True)].value
    if values["harness"].value and values["data"].value:
        raise FlagError("--harness and --data: a task of the harness brings its own data; give one of them")
    if not values["harness"].value and not values["data"].value:
        raise FlagError("lmjax evaluate needs --data=FILE, or --harness=TASKS")
    for name in ("include_path", "limit"):
        if values[name].value is not None and not values["harness"].value:
            raise FlagError(f"--{name}={values[name].value}: is for --harness; give that too, or leave it out")
    output = new_file(values["output"].value)
    check_new(values)
    check_training_data(values)
    try:
        config = ScoreConfig(**{name: values[name].value for name in (*NUMBERS, *SWITCHES)})
    except ValidationError as e:
        error = e.errors()[0]
        raise FlagError(f"--{error['loc'][0]}={error['input']}: {error['msg'][0].lower()}{error['msg'][1:]}") from e
    return place, config, output


def _sets(values: flags.FlagValues) -> dict[str, str]:
    """Returns the paths of --data by name; a path without a name is its own name."""
    found: dict[str, str] = {}
    for spec in values["data"].value:
        name = set_name(spec)
        name, path = (name, spec.partition("=")[2]) if name else (spec, spec)
        if name in found:
            raise FlagError(f"--data={spec}: two sets are called {name!r}; write --data=NAME={path}")
        found[name] = path
    return found


def _harness(loaded: LoadedModel, values: flags.FlagValues, config: ScoreConfig) -> dict[str, dict[str, float]]:
    """Returns the metrics of the tasks of lm-evaluation-harness."""
    try:
        from lmjax.evaluation.harness import run_tasks
    except ImportError as e:
        if (e.name or "").partition(".")[0] != "lm_eval":
            raise
        raise FlagError(f"--harness={values['harness'].value}: {_INSTALL}") from e
    return run_tasks(
        loaded, values["harness"].value.split(","), config, values["include_path"].value, values["limit"].value
    )


def table(results: dict[str, dict[str, float]]) -> str:
    """Returns the metrics of several sets as text, a row for each; adjacent sets with equal columns share a table.

    Metrics with intervals have a row each.
    """
    if any(_ends(x) for metrics in results.values() for x in metrics.values()):
        rows = [row for name, metrics in results.items() for row in _with_intervals(name, metrics)]
        notes = [f"{k}: {_signature(x)}" for metrics in results.values() for k, x in metrics.items() if _signature(x)]
        return "\n".join(aligned(rows) + list(dict.fromkeys(notes)))
    lines: list[str] = []
    for columns, names in itertools.groupby(results, lambda name: tuple(results[name])):
        rows = [("", *columns)]
        rows += [(name, *map(_cell, results[name].values())) for name in names]
        lines += aligned(rows)
    return "\n".join(lines)


def _with_intervals(name: str, metrics: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Returns the rows of a table with the metrics of one set and their intervals."""
    rows = [(name, "", *(f"{percent:g}%" for percent in BOUNDS))]
    rows += [(metric, _cell(x), *(map(_cell, _ends(x)) if _ends(x) else ("", ""))) for metric, x in metrics.items()]
    return rows


def _signature(value: float) -> str:
    """Returns the library and settings of a metric; empty: it has none."""
    return getattr(value, "signature", "")


def _cell(value: float) -> str:
    """Returns a number as it is printed in a table."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _ends(value: float) -> list[float]:
    """Returns the ends of a metric's interval; none: it has no interval."""
    return [value.low, value.high] if isinstance(value, Measured) and value.low is not None else []
