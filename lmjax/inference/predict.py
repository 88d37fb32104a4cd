"""The predictions of a fine-tuned model for records: rows in batches of few lengths, and their outputs on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import row_length
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.base import Batch, Features
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordTask, TokenRecord
from lmjax.objectives.sums import NO_PENALTIES
from lmjax.parallel.mesh import batch_shards, process_rows, to_device
from lmjax.streams import prng_key
from lmjax.training.forward import forward

PyTree = Any


def predict(loaded: LoadedModel, records: Sequence[TokenRecord], batch_size: int = 32) -> list[Prediction]:
    """Returns what a fine-tuned model predicts for each record, as its `RecordTask` defines it.

    The length of a row depends on its own tokens alone, so batches of another size give the same predictions up to
    rounding.

    Args:
        loaded: a fine-tuned model.
        records: their texts encoded by its tokenizer.
        batch_size: rows that are computed together.

    Raises:
        FlagError: the model was not fine-tuned for a task on records.
    """
    task = loaded.task
    of = {"mesh": loaded.mesh, "batch_size": batch_size}
    with loaded.on_devices():
        return loaded.each(
            records, lambda own: predictions(task, own, loaded.prompts, loaded.model, loaded.params, **of)
        )


def predictions(
    task: RecordTask,
    records: Sequence[TokenRecord],
    form: PromptFormat,
    model: LanguageModel,
    params: PyTree,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    each_batch: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """Returns a task's prediction for each record; with several processes, each calls it with the same records.

    Args:
        task: makes the rows, and the predictions from the outputs for them.
        records: the records.
        form: the ids around a text.
        model: the model.
        params: its parameters, on `mesh`.
        mesh: the devices; the caller has activated it.
        batch_size: rows of a batch; raised to a multiple of the parts that the mesh splits a batch into.
        each_batch: called before each batch.
    """
    read = [task.reads(record, form, task.length) for record in records]
    rows = [row for rows in read for row in rows]
    outputs = iter(row_outputs(task, rows, model, params, mesh=mesh, batch_size=batch_size, each_batch=each_batch))
    return [task.predict(record, own, [next(outputs) for _ in own]) for record, own in zip(records, read, strict=True)]


def row_outputs(
    task: RecordTask,
    rows: Sequence[Features],
    model: LanguageModel,
    params: PyTree,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    each_batch: Callable[[], object] = lambda: None,
) -> list[dict[str, np.ndarray]]:
    """Returns a task's float64 outputs for each row, as `predictions` describes."""
    size = max(1, batch_size) + -max(1, batch_size) % batch_shards(mesh)
    short = [shortened(row, task.length) for row in rows]
    # Rows of one shape share a program.
    shapes = [tuple((name, x.shape) for name, x in row.items()) for row in short]
    found: list[dict[str, np.ndarray]] = [{} for _ in rows]
    for shape in sorted(set(shapes)):
        numbers = [i for i, other in enumerate(shapes) if other == shape]
        for start in range(0, len(numbers), size):
            each_batch()
            part = numbers[start : start + size]
            padding = [{name: np.zeros_like(x) for name, x in short[part[0]].items()}] * (size - len(part))
            made = [*(short[i] for i in part), *padding]
            batch = {name: process_rows(np.stack([row[name] for row in made]), mesh) for name in made[0]}
            batch = to_device(batch, mesh)
            for name, values in jax.device_get(_outputs(model, params, batch, task, mesh)).items():
                for i, value in zip(part, values, strict=False):
                    found[i][name] = np.asarray(value, np.float64)
    return found


def shortened(row: Features, length: int) -> Features:
    """Returns a row without the padding after the `row_length` that all of its tokens fit in."""
    longest = max(int(np.max(np.sum(x > 0, axis=-1))) for name, x in row.items() if name.endswith("segment_ids"))
    short = row_length(longest, length)
    return {name: x[..., :short] if x.ndim and x.shape[-1] == length else x for name, x in row.items()}


@functools.partial(jax.jit, static_argnames=("model", "task", "mesh"))
def _outputs(
    model: LanguageModel, params: PyTree, batch: Batch, task: RecordTask, mesh: jax.sharding.Mesh
) -> Mapping[str, jax.Array]:
    """Returns a task's outputs, copied to every device, so that each process can read all of them."""
    passed = forward(
        model, params, batch, key=prng_key(0, "prediction"), dropout_rates=DropoutRates(), penalties=NO_PENALTIES
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.lax.with_sharding_constraint(task.outputs(passed, batch), everywhere)
