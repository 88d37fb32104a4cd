"""One function that evaluates a model on texts, pairs or questions, from a file or a list to metrics."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lmjax.data.records import USUAL_NAMES, FieldNames
from lmjax.data.sources import read_documents
from lmjax.errors import FlagError
from lmjax.evaluation.generated import targets, text_metrics
from lmjax.evaluation.intervals import of_means
from lmjax.evaluation.long_context import LONG, long_shares
from lmjax.evaluation.predicted import as_documents, evaluate_models
from lmjax.evaluation.predicted import read_documents as read_own
from lmjax.evaluation.records import minimal_pair, question, read_task, source_target
from lmjax.evaluation.texts import likelihood
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.loaded import LoadedModel, check_arguments
from lmjax.inference.score.score import DEFAULT, Question, Score, choices_right, pairs_right, rolling, score
from lmjax.inference.score.texts import Item, ScoreConfig
from lmjax.inference.texts import check_list
from lmjax.nearest import nearest
from lmjax.objectives.records import RecordTask

Metrics = dict[str, float]
# The task that a model was fine-tuned for.
OWN = "own"
# The task of generating targets.
GENERATION = "generation"


class Data(NamedTuple):
    """The records (or texts) of a data set, and the name of each in error messages."""

    names: list[str]
    records: list[Any]


def evaluate(
    loaded: LoadedModel,
    data: str | os.PathLike[str] | Data | Sequence[Any],
    config: ScoreConfig = DEFAULT,
    *,
    task: str = "perplexity",
    fields: FieldNames = USUAL_NAMES,
    generation: GenerateConfig | None = None,
) -> Metrics:
    """Returns the metrics of a set of data, by name.

    Args:
        loaded: the model.
        data: a file or a glob of files; or a list: of texts for `perplexity`, of (good, bad) for `minimal_pairs`, of
            (context, choices, index of the right one from 0) for `choices`, of (source, target) for `pairs`
            and `generation`, of mappings from columns to values for `own`.
        config: settings of scoring.
        task: perplexity, minimal_pairs, choices, pairs, generation or long_context; or `own`, the task that the model
            was fine-tuned for.
        fields: the names of the fields of texts and pairs, for files.
        generation: for `generation`, its settings; None: the model's own.

    Raises:
        FlagError: an unknown task, a model that predicts no tokens, or a text that it cannot score.
        DataError: the data cannot be read; the message names file and line.
    """
    check_arguments(loaded, config, ScoreConfig)
    checked(task)
    if isinstance(data, str | os.PathLike):
        data = read(task, os.fspath(data), fields, loaded.task if task == OWN else None)
    elif not isinstance(data, Data):
        check_list(data, "data", f"what {task} takes")
        records = as_documents(data, loaded.task) if task == OWN else list(data)
        data = Data([f"data[{i}]" for i in range(len(data))], records)
    if not data.records:
        raise FlagError("data: is empty; give at least one")
    if generation is not None and task != GENERATION:
        raise FlagError(f"generation={generation}: is for task={GENERATION!r}, and not for {task!r}; leave it out")
    return TASKS[task](loaded, data, generation if task == GENERATION else config)


def checked(task: str) -> str:
    """Returns the name of a task; raises FlagError if it is unknown."""
    if task not in TASKS:
        hint = nearest(str(task), TASKS)
        raise FlagError(f"task={task!r}: no such task; {hint}{' ' if hint else ''}there are {', '.join(TASKS)}")
    return task


def read(
    task: str,
    path: str,
    names: FieldNames = USUAL_NAMES,
    own: RecordTask | None = None,
    header: Sequence[str] = (),
) -> Data:
    """Returns the data of a task, read from a file or a glob of files.

    Args:
        task: as for `evaluate`.
        path: of a file, or a glob.
        names: of the fields of texts and pairs.
        own: for `own`, the task that the model was fine-tuned for.
        header: names of the columns of tables without a header; empty: the first row of a table is its header.

    Raises:
        DataError: the data cannot be read; the message names file and line.
    """
    parsers = {
        "minimal_pairs": minimal_pair,
        "choices": question,
        "pairs": functools.partial(source_target, names=names),
        GENERATION: functools.partial(source_target, names=names),
    }
    if task in parsers:
        return Data(*read_task(path, parsers[task], header))
    if own is not None:
        found = read_own(path, own, names=names._asdict(), header=header)
        return Data([f"{path}, record {i}" for i in range(1, len(found) + 1)], found)
    texts = [document.text for document in read_documents(path, names=names, header=header)]
    return Data([f"{path}, text {i}" for i in range(1, len(texts) + 1)], texts)


def _perplexity(loaded: LoadedModel, data: Data, config: ScoreConfig) -> Metrics:
    """Returns the likelihood of texts of any length."""
    return _likelihood(rolling(loaded, data.records, config, data.names))


def _minimal_pairs(loaded: LoadedModel, data: Data, config: ScoreConfig) -> Metrics:
    """Returns the share of pairs whose good text is likelier."""
    right = pairs_right(loaded, _tuples(data, 2, "a good and a bad text"), config, data.names)
    return of_means({"accuracy": right}).measured() | {"pairs": len(right)}


def _choices(loaded: LoadedModel, data: Data, config: ScoreConfig) -> Metrics:
    """Returns the share of questions whose likeliest choice is right."""
    questions = [Question(*of) for of in _tuples(data, 3, "a context, choices and the number of the right one")]
    right, apart = choices_right(loaded, questions, config, data.names)
    return of_means(right).measured() | {"questions": len(questions), "apart": apart}


def _pairs(loaded: LoadedModel, data: Data, config: ScoreConfig) -> Metrics:
    """Returns the likelihood of targets given their sources, and the share that greedy decoding would generate."""
    items = [Item(*pair) for pair in _tuples(data, 2, "a source and a target")]
    scores = score(loaded, items, config, data.names)
    counts = {"pairs": len(scores), "apart": sum(s.apart for s in scores)}
    return _likelihood(scores) | of_means({"greedy": [s.greedy for s in scores]}).measured() | counts


def _generation(loaded: LoadedModel, data: Data, config: GenerateConfig | None) -> Metrics:
    """Returns the metrics of the targets that are generated for sources."""
    return generation_metrics(data, generated(loaded, data, config))


def generated(loaded: LoadedModel, data: Data, config: GenerateConfig | None) -> list[str]:
    """Returns the text that is generated for the source of each pair."""
    return targets(loaded, [source for source, _ in _tuples(data, 2, "a source and a target")], config, data.names)


def generation_metrics(data: Data, found: Sequence[str]) -> Metrics:
    """Returns the metrics of generated targets, and the number of pairs."""
    return text_metrics([target for _, target in data.records], found).measured() | {"pairs": len(found)}


def _likelihood(scores: Sequence[Score]) -> Metrics:
    """Returns the metrics of `texts.likelihood`, and the numbers of tokens and bytes."""
    nats, tokens, sizes = zip(*((-s.log_likelihood, s.tokens, s.bytes) for s in scores), strict=True)
    return likelihood(nats, tokens, sizes).measured() | {"tokens": sum(tokens), "bytes": sum(sizes)}


def _own(loaded: LoadedModel, data: Data, config: ScoreConfig) -> Metrics:
    """Returns the metrics of the task that the model was fine-tuned for, with intervals."""
    return evaluate_models([loaded], data.records, config.batch_tokens).metrics()


def _long_context(loaded: LoadedModel, data: Data, config: ScoreConfig) -> Metrics:
    """Returns the mean share of right answers of each task of the suite, over all lengths and depths."""
    return long_shares(loaded, data.records)


TASKS: dict[str, Callable[[LoadedModel, Data, Any], Metrics]] = {
    "perplexity": _perplexity,
    "minimal_pairs": _minimal_pairs,
    "choices": _choices,
    "pairs": _pairs,
    GENERATION: _generation,
    LONG: _long_context,
    OWN: _own,
}


def _tuples(data: Data, count: int, what: str) -> list[Sequence[Any]]:
    """Returns the records of a data set; raises FlagError for a record that does not have `count` values."""
    for name, found in zip(*data, strict=True):
        if not isinstance(found, tuple | list) or len(found) != count:
            raise FlagError(f"{name}: {str(found)[:80]!r} is not {what}; give {count} values")
    return data.records
