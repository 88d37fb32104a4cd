"""What all pipelines have in common: one input gives one result, a list gives a list, and rows are batched."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.forward import ModelOutput
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.predict import predict
from lmjax.inference.row_lengths import row_length
from lmjax.objectives.records import Prediction


class Pipeline(abc.ABC):
    """Computes a result for each input.

    Attributes:
        loaded: the model.
        batch_size: rows that are computed together at most.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int = 32):
        """Checks that the model is for this task.

        Raises:
            FlagError: it is not.
        """
        self.loaded, self.batch_size = loaded, batch_size
        self.check()

    @abc.abstractmethod
    def check(self) -> None:
        """Raises FlagError if the model is not for this task."""

    @abc.abstractmethod
    def results(self, inputs: list[Any], **options: Any) -> list[Any]:
        """Returns a result for each input."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Returns the result for an input, or a list of results for a list of inputs, with options of the task."""
        several = isinstance(inputs, Sequence) and not isinstance(inputs, str | Mapping)
        return self.results(list(inputs), **options) if several else self.results([inputs], **options)[0]

    def need_task(self, name: str) -> None:
        """Raises FlagError unless the model was fine-tuned for the objective of this name."""
        if not self.loaded.has_task or self.loaded.task.name != name:
            has = self.loaded.task.name if self.loaded.has_task else "no task"
            raise FlagError(
                f"this {self.loaded.config.family.label} was fine-tuned for {has}; take a model of --objective={name}"
            )

    def predicted(self, records: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Returns what the model's own task predicts for records."""
        documents = as_documents(records, self.loaded.task, gold=False)
        return predict(self.loaded, encoded(self.loaded, documents, gold=False), self.size(len(records)))

    def size(self, rows: int) -> int:
        """Returns the rows of a batch: not all `batch_size` if there are few, and a power of two of them."""
        return min(self.batch_size, 1 << max(0, rows - 1).bit_length())

    def outputs(self, rows: Sequence[Sequence[int]]) -> list[tuple[ModelOutput, int]]:
        """Returns for each row of ids the output of a forward pass, and the number of the row in it."""
        lengths = [row_length(len(row)) for row in rows]
        found: list[Any] = [None] * len(rows)
        for length in sorted(set(lengths)):
            places = [i for i, other in enumerate(lengths) if other == length]
            for start in range(0, len(places), self.batch_size):
                part = places[start : start + self.batch_size]
                made = [list(rows[i]) for i in part]
                made += made[:1] * (self.size(len(part)) - len(part))
                output = self.loaded(made)
                for number, i in enumerate(part):
                    found[i] = (output, number)
        return found


def check_texts(inputs: Sequence[Any], what: str = "a text") -> None:
    """Raises FlagError for an input that is no text."""
    for i, text in enumerate(inputs):
        if not isinstance(text, str):
            raise FlagError(f"inputs[{i}]: {str(text)[:80]!r} is a {type(text).__name__}; give {what}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns float64 probabilities over the last axis."""
    from scipy.special import softmax as of

    return of(np.asarray(logits, np.float64), axis=-1)
