"""`lmjax evaluate` of predictions: ensembles, paired comparisons, files of predictions, figures, generated targets."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
from absl import flags

from lmjax.commands.generate import configure
from lmjax.commands.models import opened, places
from lmjax.commands.prompts import new_file, write_records
from lmjax.commands.table import aligned
from lmjax.data.documents import Document
from lmjax.errors import FlagError
from lmjax.evaluation.long_context import LONG
from lmjax.evaluation.predicted import Evaluated, compared, evaluate_models
from lmjax.evaluation.tasks import GENERATION, Data, generated, generation_metrics
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase

_FLAGS = ("predictions", "figures", "against")


def check_new(values: flags.FlagValues) -> None:
    """Raises FlagError if the file of predictions exists, or the folder of figures cannot be made."""
    new_file(values["predictions"].value, "predictions")
    if values["figures"].value:
        try:
            pathlib.Path(values["figures"].value).expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FlagError(f"--figures={values['figures'].value}: cannot be made ({e.strerror}); name another") from e


def check_own_flags(values: flags.FlagValues, place: str, others: Sequence[str], task: str) -> None:
    """Raises FlagError for what only fine-tuned models have, apart from what the task has too."""
    generating = task == GENERATION
    also = {GENERATION: ("predictions",), LONG: ("predictions", "figures")}.get(task, ())
    names = [name for name in _FLAGS if name not in also]
    given = [f"--{name}={values[name].value}" for name in names if values[name].value]
    if others and not generating:
        given.insert(0, f"the ensemble {place}")
    if given:
        raise FlagError(f"{given[0]}: is for models that were fine-tuned for a task on records (--task=own)")


def own_results(
    values: flags.FlagValues, models: Sequence[LoadedModel], data: Mapping[str, Sequence[Document]]
) -> dict[str, dict[str, float]]:
    """Returns the metrics of each set; prints the comparison with --against, and writes predictions and figures.

    Args:
        values: the flags.
        models: the models of the ensemble, or one.
        data: the records of each set by its name.
    """
    batch_tokens = values["batch_tokens"].value
    rivals = [opened(values, place) for place in places(values["against"].value)] if values["against"].value else []
    results, lines = {}, []
    for name, documents in data.items():
        with phase(f"predicting for {len(documents):,} record(s) of {name}"):
            found = evaluate_models(models, documents, batch_tokens)
        results[name] = found.metrics()
        if rivals:
            with phase(f"predicting with {values['against'].value}"):
                other = evaluate_models(rivals, documents, batch_tokens)
            print("\n".join([*_comparison(name, values["against"].value, found, other), ""]))
        lines += [({"set": name} if len(data) > 1 else {}) | line for line in found.lines()]
        if values["figures"].value:
            save_figures(found, pathlib.Path(values["figures"].value).expanduser(), name if len(data) > 1 else "")
    if values["predictions"].value:
        write_records(pathlib.Path(values["predictions"].value), lines)
        print(f"{len(lines):,} prediction(s) written to {values['predictions'].value}\n")
    return results


def generation_config(values: flags.FlagValues, task: str) -> GenerateConfig | None:
    """Returns the settings of generation that the flags give; None: none is given, and the model's own count.

    Raises:
        FlagError: one is given for another task, or has an impossible value.
    """
    names = ("beams", "length_penalty", "max_new_tokens")
    given = {name: values[name].value for name in names if values[name].value is not None}
    if given and task != GENERATION:
        name, value = next(iter(given.items()))
        raise FlagError(f"--{name}={value}: is for --task={GENERATION}; give that too, or leave it out")
    if "length_penalty" in given and "beams" not in given:
        raise FlagError(f"--length_penalty={given['length_penalty']}: is for beams; give --beams too")
    return configure(given) if given else None


def generation_results(
    values: flags.FlagValues, loaded: LoadedModel, data: Mapping[str, Data], config: GenerateConfig | None
) -> dict[str, dict[str, float]]:
    """Returns the metrics of the targets that are generated for each set, and writes them with --predictions."""
    results, lines = {}, []
    for name, pairs in data.items():
        with phase(f"generating {len(pairs.records):,} target(s) of {name}"):
            found = generated(loaded, pairs, config)
        results[name] = generation_metrics(pairs, found)
        mark = {"set": name} if len(data) > 1 else {}
        for (source, target), text in zip(pairs.records, found, strict=True):
            lines.append(mark | {"source": source, "gold": target, "text": text})
    if values["predictions"].value:
        write_records(pathlib.Path(values["predictions"].value), lines)
    return results


def save_figures(found: Evaluated, folder: pathlib.Path, prefix: str = "") -> None:
    """Writes each figure of an evaluation to a PNG file; of several processes, the first one writes."""
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', prefix)}_" if prefix else ""
    for name, figure in found.figures().items():
        figure.savefig(folder / f"{prefix}{name}.png", dpi=120)


def _comparison(name: str, rival: str, first: Evaluated, second: Evaluated) -> list[str]:
    """Returns the lines of a table with the differences of all metrics, and McNemar's test."""
    differences, test = compared(first, second)
    other = second.measurement.values
    rows = [(f"{name}, less {rival}", "first", "second", "difference", "2.5%", "97.5%", "p")]
    for metric, found in differences.items():
        pair = (first.measurement.values[metric], other[metric])
        rows.append((metric, *(f"{x:.4f}" for x in (*pair, found.value, found.low, found.high)), f"{found.p:.3f}"))
    lines = [*aligned(rows), "differences on the same records: paired bootstrap, 95 % intervals"]
    if test is not None:
        lines.append(
            f"right by the first alone: {test.first}, by the second alone: {test.second}; "
            f"McNemar's exact test: p = {test.p:.3g}"
        )
    return lines
