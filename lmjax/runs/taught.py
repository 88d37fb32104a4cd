"""Writes a teacher's likeliest tokens at each prediction of each training row to a file (`lmjax.data.taught`)."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lmjax.data.taught import Writer
from lmjax.errors import FlagError
from lmjax.model.language_model import LanguageModel
from lmjax.model.parameters import fingerprint, flat
from lmjax.objectives.base import Batch, Features
from lmjax.objectives.token_prediction import TokenPrediction
from lmjax.parallel.mesh import to_device
from lmjax.runs.build import Run
from lmjax.runs.fit import layout
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.teacher import check_teacher
from lmjax.streams import random_stream
from lmjax.training.forward import evaluation_forward

# Rows of which it is checked that they are the same in every epoch.
_TRIED = 8


def write_taught(run: Run, path: pathlib.Path, k: int) -> tuple[int, int]:
    """Writes the file, and returns the number of its rows and of the predictions of each.

    Args:
        run: the run that will read it, whose config names the teacher.
        path: the new file.
        k: tokens of each prediction.

    Raises:
        FlagError: the rows change from epoch to epoch, or the teacher does not fit the run.
    """
    config, (objective, *others) = run.config.teacher, run.task.objectives
    if others or not isinstance(objective, TokenPrediction) or len(run.stages) > 1:
        raise FlagError("lmjax teach: takes one objective that predicts tokens, and a run without stages")
    source = open_pretrained(config.place)
    check_teacher(run, source)
    # Rows of the table that only one of the models has are padding.
    rows = min(run.model.config.vocab_size, source.config.vocab_size)
    if not 1 <= k < rows:
        raise FlagError(f"--top_k={k}: give a number from 1 to {rows - 1}")
    _check_rows(run)
    params = source.params(source.config, run.mesh)
    model = LanguageModel(source.config, source.heads)

    @jax.jit
    def likeliest(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        passed = evaluation_forward(model, params, batch)
        logits = passed.logits(objective.predicting(passed.hidden, batch))[..., :rows]
        return jax.lax.top_k(jax.nn.log_softmax(logits / config.temperature), k)

    note = {"teacher": fingerprint(flat(jax.device_get(params))), "place": config.place, "top_k": k, "rows": rows,
            "tokenizer": run.tokenizer.fingerprint, "objective": objective.name,
            "temperature": config.temperature}  # fmt: skip
    predictions = run.train_examples(0, random_stream(0, "predictions of a row"))["targets"].shape[0]
    with layout(run), Writer(path, len(run.train_examples), predictions, k, note) as writer:
        for batch, count in _batches(run):
            whole = {name: np.stack([row[name] for row in batch]) for name in batch[0]}
            log_probs, ids = jax.device_get(likeliest(params, to_device(whole, run.mesh)))
            for i in range(count):
                writer.add(batch[i], ids[i], log_probs[i])
    return len(run.train_examples), predictions


def _check_rows(run: Run) -> None:
    """Raises FlagError if rows differ from epoch to epoch, as those whose tokens are masked at random."""
    examples = run.train_examples
    for index in range(min(_TRIED, len(examples))):
        one, other = (examples(index, random_stream(seed, "rows drawn anew")) for seed in range(2))
        if any(not np.array_equal(one[name], other[name]) for name in one):
            raise FlagError(
                f"lmjax teach: the rows of {','.join(run.task.names)} are drawn anew in each epoch, so that no file "
                "can hold the predictions for them; name the teacher itself in --config.teacher.place"
            )


def _batches(run: Run) -> Iterator[tuple[list[Features], int]]:
    """Yields all rows in batches of one size, and how many of a batch count: the last is filled up with its first."""
    examples, size = run.train_examples, run.config.batch_size
    for start in range(0, len(examples), size):
        rows = [examples(i, random_stream(0, "taught rows")) for i in range(start, min(start + size, len(examples)))]
        yield rows + rows[:1] * (size - len(rows)), len(rows)
