"""The metrics of tasks on records that a run computes at each evaluation, besides its losses."""

from __future__ import annotations

import itertools
from typing import Any

from absl import logging

from lmjax.evaluation.measures import MEASURES
from lmjax.inference.predict import predictions
from lmjax.objectives.records import RecordTask, TokenRecord
from lmjax.runs.build import Run
from lmjax.training.evaluate import EachBatch, EvalSet, Measured


def measured(run: Run) -> dict[str, Measured]:
    """Returns what a run measures on its evaluation sets, by the name of the set; empty if it trains no such task."""
    tasks = [o for o in run.task.objectives if isinstance(o, RecordTask) and _installed(o)]
    falling = tuple(name for task in tasks for name in MEASURES[task.name].falling)
    return {s.name: Measured(_metrics(run, s, tasks), falling) for s in run.eval_sets} if tasks else {}


def _installed(task: RecordTask) -> bool:
    """Returns whether the libraries for a task's metrics are installed; warns if they are not."""
    if missing := MEASURES[task.name].missing:
        logging.warning(
            "%s is not installed, so evaluations of %s have its loss alone: pip install 'lmjax[evaluate]'",
            ", ".join(missing), task.name,
        )  # fmt: skip
    return not missing


def _metrics(run: Run, evaluated: EvalSet, tasks: list[RecordTask]) -> Any:
    """Returns the function `Measured.metrics` of a set, over as many records as the evaluation has rows at most."""
    limit = evaluated.max_batches * evaluated.batch_size
    stored = ((store, i) for store in evaluated.examples.stores.values() for i in range(store.num_documents))
    records = [TokenRecord.stored(store, i) for store, i in itertools.islice(stored, limit)]

    def metrics(params: Any, each_batch: EachBatch) -> dict[str, float]:
        found = {}
        for task in tasks:
            predicted = predictions(
                task, records, task.form, run.model, params,
                mesh=run.mesh, batch_size=evaluated.batch_size, each_batch=each_batch,
            )  # fmt: skip
            truths = [task.truth(record) for record in records]
            values = MEASURES[task.name].metrics(task, truths, predicted).values
            found |= {f"{task.name}/{name}": value for name, value in values.items()}
        return found

    return metrics
