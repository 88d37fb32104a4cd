"""Tasks on records: objectives that predict something for each record, such as its label, and say what they predict."""

import abc
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from lmjax.data.columns import Column, Value
from lmjax.data.documents import Document
from lmjax.data.encoding import encode_records
from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.objectives.base import Batch, Features, Forward, Objective, Rows
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import text_row

# What is predicted for one record, as JSON values.
Prediction = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TokenRecord:
    """A record whose texts are token ids.

    Attributes:
        texts: by column, the ids of each of its texts, int32; a column of type `text` has one.
        values: by column, what is not tokenised.
    """

    texts: Mapping[str, Sequence[np.ndarray]]
    values: Mapping[str, Value]

    @classmethod
    def stored(cls, store: Store, index: int) -> "TokenRecord":
        """Returns record `index` of a store."""
        texts = {c.name: store.texts(index, c.name) for c in store.columns if c.tokenised}
        return cls(texts, {c.name: store.value(index, c.name) for c in store.columns if not c.tokenised})

    @classmethod
    def encoded(
        cls, documents: Sequence[Document], columns: Sequence[Column], tokenizer: Vocabulary
    ) -> list["TokenRecord"]:
        """Returns records as they were read with `columns`, with their texts encoded as in a store."""
        tokenised = [c.name for c in columns if c.tokenised]
        others = [c.name for c in columns if not c.tokenised]
        found = []
        for document, segments in zip(documents, encode_records(documents, tokenizer), strict=True):
            ids = iter(segments)
            texts = zip(tokenised, document.counts, strict=True)
            values = dict(zip(others, document.values, strict=True))
            found.append(cls({name: [next(ids) for _ in range(count)] for name, count in texts}, values))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class RecordRows(Rows):
    """The rows of all records, in the order of the file: rows are not packed.

    Attributes:
        store: the records.
        task: makes the rows.
        counts: int `[documents]`, the number of rows of each record; None: one each.
    """

    store: Store
    task: "RecordTask"
    counts: np.ndarray | None = None

    def __len__(self) -> int:
        return self.store.num_documents if self.counts is None else int(self._ends[-1])

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Returns int64 `[documents]`, the number of rows of each record and those before it."""
        return np.cumsum(self.counts, dtype=np.int64)

    def documents(self, index: int) -> list[int]:
        """Returns the record of a row."""
        return [index if self.counts is None else int(np.searchsorted(self._ends, index, side="right"))]

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns what is read in a row of a record, and its targets."""
        del rng
        (document,), number = self.documents(index), 0
        if self.counts is not None:
            number = index - int(self._ends[document] - self.counts[document])
        task, record = self.task, TokenRecord.stored(self.store, document)
        rows = task.reads(record, task.form, task.length)
        assert len(rows) == (1 if self.counts is None else self.counts[document]), "counted otherwise than made"
        return rows[number] | task.targets(record, rows)[number]


@dataclasses.dataclass(frozen=True)
class RecordTask(Objective):
    """An objective that predicts something for each record of a file. `lmjax predict` and the metrics call it.

    A record becomes one or several rows (`reads`). The model's outputs for them (`outputs`, on the device) become a
    prediction (`predict`, on the host), which is written to a file and compared with the record's gold columns.

    Attributes:
        gold: the columns that hold what is to be predicted: training and metrics need them, prediction does not.
    """

    gold: ClassVar[tuple[str, ...]]

    @functools.cached_property
    def form(self) -> PromptFormat:
        """Returns the prompt format of the rows of training, computed once."""
        return self.prompt_format()

    def prompt_format(self) -> PromptFormat:
        """Returns the ids around texts: those that the tokenizer of a checkpoint itself adds, else the objective's.

        So a row equals what transformers makes of the same text, or pair of texts, with this tokenizer.
        """
        template = self.tokenizer.template()
        # An encoder reads [CLS] also if its tokenizer adds nothing.
        if template is None or not (self.family.causal or template.before or template.after):
            return super().prompt_format()
        return PromptFormat(**template._asdict())

    def text_row(self, form: PromptFormat, texts: Sequence[np.ndarray], length: int) -> Features:
        """Returns the features of `rows.text_row` for one or two texts."""
        tokenizer = self.tokenizer
        end_id = tokenizer.role_ids.get("eos", tokenizer.pad_id)
        return text_row(form, texts, end_id=end_id, length=length, pad_id=tokenizer.pad_id)

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns one row for each record."""
        del seed
        return RecordRows(store, self)

    @abc.abstractmethod
    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns the features that the model reads, for each row of a record; none depends on its gold columns.

        Arrays over tokens have `length` as their last dimension.
        """

    @abc.abstractmethod
    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns for each of the `rows` of a record its targets and their weights."""

    @abc.abstractmethod
    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns by name the float32 outputs `[batch, ...]` that a prediction is made from."""

    @abc.abstractmethod
    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the prediction for a record, from the features and the float64 outputs of each of its rows."""

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns a prediction as one line for a terminal."""
        return json.dumps(prediction, ensure_ascii=False)

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the prediction of an ensemble for a record, from those of its models.

        Raises:
            FlagError: predictions of this task cannot be combined.
        """
        del predictions
        raise FlagError(f"several models: predictions of {self.name} cannot be combined; give one model")

    def right(self, truth: Prediction, prediction: Prediction) -> bool | None:
        """Returns whether a prediction is right; None if predictions of this task are not right or wrong."""
        del truth, prediction
        return None

    def truth(self, record: TokenRecord) -> Prediction:
        """Returns the gold values of a record by column, as they are compared with predictions."""
        return {name: record.values[name] for name in self.gold}

    def sample(self, store: Store, room: int) -> None:
        """Returns None: a model of this task continues no text."""
        del store, room


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of labels, sorted; whole numbers first, as numbers."""

    def place(label: str) -> tuple[int, int, str]:
        whole = label.removeprefix("-")
        return (0, int(label), label) if whole.isascii() and whole.isdigit() else (1, 0, label)

    return tuple(sorted(set(labels), key=place))
