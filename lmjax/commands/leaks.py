"""The checks of `lmjax audit` that read training data: what a model repeats of it, and what else stands in it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from lmjax.audit import contamination, memory
from lmjax.audit.continuations import Written
from lmjax.audit.findings import Section
from lmjax.audit.published import files_of
from lmjax.config import from_json
from lmjax.data.records import FieldNames
from lmjax.data.sources import read_unsplit
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.tasks import OWN, read
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.texts import ScoreConfig
from lmjax.phases import phase
from lmjax.runs.data import OpenData, open_data
from lmjax.runs.identity import IDENTITY


def check_leaks(values: flags.FlagValues) -> None:
    """Raises FlagError for flags of training data that do not fit together."""
    if values["memorised"].value and not values["workdir"].value:
        raise FlagError("--memorised: needs the training data of a run; name the model by --workdir=DIR")
    evaluation, training = values["evaluation"].value, values["training_data"].value
    if training and not evaluation:
        raise FlagError(f"--training_data={training}: is searched for the examples of --evaluation=FILE; give that too")
    if evaluation and not training and not values["workdir"].value:
        raise FlagError(
            f"--evaluation={evaluation}: is looked for in training data; name it by --training_data=FILE, or the model "
            "by --workdir=DIR, whose own is searched"
        )
    if evaluation:
        files_of(evaluation, "evaluation")


def memorised(values: flags.FlagValues, written: Sequence[Written], against: Sequence[Written] | None) -> Section:
    """Returns how much of what a run writes stands in its training data.

    Args:
        values: the flags.
        written: what the run of --workdir wrote.
        against: what the model of --against wrote after the same prompts; None: there is none. Only of a run the
            training data is known, in which its texts are looked up.
    """
    span, place = values["span"].value, values["against"].value
    found = _repeated(written, _data_of(values["workdir"].value), span)
    other = None
    if against is not None and (pathlib.Path(place) / IDENTITY).exists():
        other = _repeated(against, _data_of(place), span)
    return memory.section(written, found, span, other)


def _repeated(written: Sequence[Written], data: OpenData, span: int) -> list[memory.Repeated]:
    """Returns for each text how many of its spans stand in the training data of a run."""
    documents = (store.document(i) for store in data.train.values() for i in range(store.num_documents))
    with phase("looking up spans in the training data"):
        return memory.repeated([ids for each in written for ids in each.ids], documents, span)


def contaminated(values: flags.FlagValues, loaded: LoadedModel, config: ScoreConfig) -> Section:
    """Returns how much of --evaluation stands in the training data, and the metrics with and without that.

    The metrics are those of the task that the model was fine-tuned for, or else the likelihood of the texts.

    Raises:
        DataError: a file cannot be read.
    """
    spec, size = values["evaluation"].value, values["ngram"].value
    names, header = FieldNames(text=values["text_field"].value), values["column_names"].value
    task, own = (OWN, loaded.task) if loaded.has_task else ("perplexity", None)
    try:
        data = read(task, spec, names, own, header)
    except DataError as e:
        raise DataError(str(e).replace("--data:", "--evaluation:")) from e
    files = files_of(spec, "evaluation")
    with phase(f"looking for {spec} in the training data"):
        return contamination.section(
            loaded, data, _training(values, names, header), task=task, files=files, size=size, config=config
        )


def _training(values: flags.FlagValues, names: FieldNames, header: Sequence[str]) -> Iterator[str]:
    """Yields the texts of --training_data, or else those on which the run of --workdir was trained."""
    if spec := values["training_data"].value:
        try:
            yield from (each.text for each in read_unsplit(spec, False, "error", "auto", names, header=header))
        except DataError as e:
            raise DataError(str(e).replace("--data:", "--training_data:")) from e
        return
    data = _data_of(values["workdir"].value)
    for store in data.train.values():
        for i in range(store.num_documents):
            # A pair or a record has several texts.
            segments = np.split(store.document(i), store.segments(i)[1:-1])
            yield "\n".join(data.tokenizer.decode(ids.tolist()) for ids in segments)


def _data_of(place: str) -> OpenData:
    """Returns the data of a run."""
    workdir = pathlib.Path(place)
    return open_data(from_json(workdir / "config.json"), workdir)
