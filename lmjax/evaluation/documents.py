"""The held-out losses of each document: the sums of an evaluation, taken apart by the document that each target is in.

Every loss is a sum of weights times losses of single targets. So a target's share of the sum is its weight times the
derivative of the sum by this weight, which holds for every objective without code of its own.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.errors import DataError, SaveError
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.base import Batch, Features
from lmjax.objectives.task import Examples, Task
from lmjax.parallel.mesh import to_device
from lmjax.training.evaluate import EvalSet
from lmjax.training.forward import evaluation_forward

PyTree = Any
# By loss sum: the derivatives of its loss, weight and correct (if it has one) by each feature of weights.
Derivatives = dict[str, tuple[dict[str, jax.Array], ...]]


@dataclasses.dataclass(frozen=True)
class DocumentLosses:
    """The loss sums of each document of an evaluation set, in the order of the documents.

    Documents of which no row was evaluated have zeros. Each loss is `sum(nats) / sum(weights)` over any set of
    documents, so that it can be computed for a bootstrap's draws of documents.

    Attributes:
        names: of the loss sums.
        loss_weights: float64 `[losses]`, the weight of each in the total loss.
        nats: float64 `[losses, documents]`.
        weights: float64 `[losses, documents]`; for a loss over tokens, the number of targets.
        correct: float64 `[losses, documents]`; NaN for a loss without predictions.
        num_bytes: float64 `[losses, documents]`, UTF-8 bytes of the targets; 0 for a loss that is not over tokens.
        fingerprint: of the documents as texts: equal for runs whose documents can be paired.
        tokenizer: fingerprint of the tokenizer; runs with different ones compare in bits per byte alone.
        step: of the parameters.
    """

    names: tuple[str, ...]
    loss_weights: np.ndarray
    nats: np.ndarray
    weights: np.ndarray
    correct: np.ndarray
    num_bytes: np.ndarray
    fingerprint: str
    tokenizer: str
    step: int

    @property
    def loss(self) -> float:
        """Returns the loss over all documents, as an evaluation does."""
        return float(self.loss_weights @ (self.nats.sum(1) / np.maximum(self.weights.sum(1), 1.0)))

    def ratios(self, measure: str, name: str | None = None) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """Returns the parts of a measure: the sum of factor * sum(part) / sum(whole) over documents is its value.

        Args:
            measure: loss, bits_per_byte or accuracy.
            name: of the loss sum; None: the total loss, or the others of the first loss by name that has them.

        Raises:
            DataError: no loss has it.
        """
        if measure == "loss" and name is None:
            return list(zip(self.loss_weights.tolist(), self.nats, self.weights, strict=True))
        has = {
            "loss": np.ones(len(self.names), bool),
            "bits_per_byte": self.num_bytes.any(1),
            "accuracy": ~np.isnan(self.correct).any(1),
        }[measure]
        known = sorted(each for each, there in zip(self.names, has, strict=True) if there and name in (None, each))
        if not known:
            raise DataError(f"{name or ', '.join(self.names)} has no {measure}; compare the loss")
        i = self.names.index(known[0])
        part, whole = {
            "loss": (self.nats, self.weights),
            "bits_per_byte": (self.nats / math.log(2), self.num_bytes),
            "accuracy": (self.correct, self.weights),
        }[measure]
        return [(1.0, part[i], whole[i])]

    def shares(self, measure: str = "loss", among: np.ndarray | None = None, name: str | None = None) -> np.ndarray:
        """Returns float64 `[documents]` whose mean is a measure, and which say how much each document changes it.

        A ratio of sums is no mean of ratios. The value of a document is that of the linear approximation at the sums,
        so that the variance of the mean is that of the ratio (Cochran 1977, section 2.11).

        Args:
            measure: as for `ratios`.
            among: bool `[documents]`, those that are counted; None: all.
            name: as for `ratios`.
        """
        among = np.ones(self.nats.shape[1], bool) if among is None else among
        found = np.zeros(int(among.sum()))
        for factor, part, whole in self.ratios(measure, name):
            part, whole = part[among], whole[among]
            ratio = part.sum() / max(whole.sum(), 1e-300)
            found += factor * (ratio + (part - ratio * whole) * len(found) / max(whole.sum(), 1e-300))
        return found

    def save(self, path: pathlib.Path) -> None:
        """Writes the file whole or not at all; the same losses give the same bytes.

        Raises:
            SaveError: it cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: np.asarray(getattr(self, field.name)) for field in dataclasses.fields(self)})
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())
            os.replace(temporary, path)
        except OSError as e:
            raise SaveError(f"{path}: cannot be written ({e.strerror}); make room, and run the command again") from e

    @classmethod
    def load(cls, path: pathlib.Path) -> DocumentLosses:
        """Returns the losses in a file; raises DataError if it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {field.name: arrays[field.name] for field in dataclasses.fields(cls)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise DataError(f"{path}: cannot be read ({str(e)[:80]}); remove it, and it is computed again") from e
        texts = {name: str(found[name]) for name in ("fingerprint", "tokenizer")}
        return cls(**found | texts | {"names": tuple(found["names"].tolist()), "step": int(found["step"])})


def make_target_step(model: LanguageModel, task: Task) -> Callable[[PyTree, Batch], Derivatives]:
    """Returns the function that computes the derivatives of each loss sum by the weights of the targets.

    Model and random keys are those of the evaluation step, so the shares add up to the sums of that step.
    """

    def step(params: PyTree, batch: Batch) -> Derivatives:
        def sums(weights: Batch) -> dict[str, tuple[jax.Array, ...]]:
            given = batch | weights
            passed = evaluation_forward(model, params, given)
            found = task.losses(passed, given)
            return {name: tuple(x for x in (s.loss, s.weight, s.correct) if x is not None) for name, s in found.items()}

        return jax.jacrev(sums)({name: x for name, x in batch.items() if name.endswith("weights")})

    return step


def document_losses(
    evaluated: EvalSet,
    step: Callable[[PyTree, Batch], Derivatives],
    params: PyTree,
    *,
    mesh: jax.sharding.Mesh,
    token_bytes: np.ndarray,
    loss_weights: Mapping[str, float],
    fingerprint: str = "",
    tokenizer: str = "",
    at: int = 0,
) -> DocumentLosses:
    """Returns the loss sums of each document over the rows that the evaluation reads.

    Args:
        evaluated: the evaluation set.
        step: from `make_target_step`, jitted, with replicated results if there are several processes.
        params: the parameters.
        mesh: of the batches.
        token_bytes: `[vocab]`, UTF-8 bytes of every token.
        loss_weights: weight of each loss sum in the total loss.
        fingerprint: of the documents.
        tokenizer: of the tokenizer.
        at: the step of the parameters.
    """
    examples = evaluated.examples
    (store,) = examples.stores.values()
    names = tuple(loss_weights)
    # Of each loss sum: nats, weight, correct, bytes.
    table = np.zeros((4, len(names), store.num_documents))
    table[2] = np.nan
    share = slice(*(evaluated.batch_size * (jax.process_index() + i) // jax.process_count() for i in (0, 1)))
    for rows, batch in zip(_row_numbers(evaluated), evaluated.batches(), strict=False):
        owners = _owners(examples, rows, batch)
        found = jax.device_get(step(params, to_device({name: x[share] for name, x in batch.items()}, mesh)))
        targets = examples.task.token_targets(batch)
        for i, name in enumerate(names):
            for kind, derivatives in enumerate(found[name]):
                table[kind, i] = np.nan_to_num(table[kind, i])
                for feature, derivative in derivatives.items():
                    _add(table[kind, i], owners[feature], np.float64(batch[feature]) * derivative)
            if name in targets:
                ids, weights = targets[name]
                _add(table[3, i], owners["weights"], np.where(weights > 0, token_bytes[ids], 0) * evaluated.text_bytes)
    return DocumentLosses(names, np.array(list(loss_weights.values())), *table, fingerprint, tokenizer, at)


def _row_numbers(evaluated: EvalSet) -> Iterator[Sequence[int]]:
    """Yields the numbers of the rows of each batch; the rows that only fill up the last batch have that of its last."""
    spread = evaluated.examples.mixture.spread
    for first in itertools.count(0, evaluated.batch_size):
        yield [int(spread[min(i, len(spread) - 1)]) for i in range(first, first + evaluated.batch_size)]


def _owners(examples: Examples, rows: Sequence[int], batch: Features) -> dict[str, np.ndarray]:
    """Returns for each feature of weights the document of every weight, int64 of its shape; -1 at padding."""
    segments = next(batch[name] for name in ("decoder_segment_ids", "segment_ids") if name in batch)
    owners = {name: np.full(x.shape, -1, np.int64) for name, x in batch.items() if name.endswith("weights")}
    for i, index in enumerate(rows):
        number, row = examples.mixture.source(index)
        source = examples.sources[number]
        documents = np.asarray(source.rows.documents(row), np.int64)
        places = [o.predicts_at for o in examples.task.groups[source.group] if o.predicts_at]
        # Padding has segment id 0, and so the last entry.
        by_segment = np.append(documents, -1)[segments[i] - 1] if len(documents) > 1 else None
        for name, owner in owners.items():
            if by_segment is None:
                owner[i] = documents[0]
            elif name == "weights" and places:
                owner[i] = by_segment[batch[places[0]][i]]
            elif owner[i].shape == by_segment.shape:
                owner[i] = by_segment
    return owners


def _add(sums: np.ndarray, owners: np.ndarray, values: np.ndarray) -> None:
    """Adds values to the sums of their documents, and leaves out padding, whose values are 0."""
    there = values != 0
    assert (owners[there] >= 0).all(), "a target without a document"
    sums += np.bincount(owners[there], weights=values[there], minlength=len(sums))
