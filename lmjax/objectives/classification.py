"""Classification: the label of a text or of a pair of texts (Devlin et al. 2019, arXiv:1810.04805, section 4.1)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Batch, Features, Forward, LossSum, Objective, ObjectiveConfig, Rows
from lmjax.objectives.losses import class_loss
from lmjax.objectives.rows import text_row

TEXT, SECOND, LABEL = "text", "text2", "label"


class ClassificationConfig(ObjectiveConfig):
    """Settings of the classification objective."""

    labels: tuple[str, ...] = Field(
        (), description="names of the labels in the order of the logits; none: those of the training data, sorted"
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> "ClassificationConfig":
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1 or not all(map(str.strip, self.labels)):
            raise ValueError(f"labels={self.labels}: give two labels or more, each once, none of them empty")
        return self


@dataclasses.dataclass(frozen=True)
class LabelledTexts(Rows):
    """One record in each row, in the order of the file: rows are not packed.

    Attributes:
        store: the records.
        objective: makes the rows.
    """

    store: Store
    objective: "Classification"

    def __len__(self) -> int:
        return self.store.num_documents

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features of `text_row`, and the label and its weight 1 as scalars."""
        del rng
        o = self.objective
        texts = [self.store.texts(index, name)[0] for name in (TEXT, SECOND)]
        row = text_row(o.form, texts, between=o.between, length=o.length, pad_id=o.tokenizer.pad_id)
        label = o.numbers[str(self.store.value(index, LABEL))]
        return row | {"labels": np.int32(label), "label_weights": np.float32(1)}


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Predicts the label of one or two texts, from an encoder's [CLS] or from a decoder's last token.

    An encoder reads [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with type 1 from B on. A decoder reads BOS A, or
    BOS A EOS B (Radford et al. 2018, section 3.3, with EOS as the delimiter).
    """

    config: ClassificationConfig
    name: ClassVar[str] = "classification"
    architectures: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column(TEXT),
        Column(SECOND, optional=True),
        Column(LABEL, "string", classes=()),
    )
    learned: ClassVar[tuple[str, ...]] = ("labels",)
    # Devlin et al. 2019, appendix A.3: rates from 2e-5 to 5e-5, 2 to 4 epochs, batches of 16 or 32; the warm-up and
    # the linear decay to 0 are those of the code of its authors.
    recipe: ClassVar[Mapping[str, Any]] = {
        "epochs": 3.0,
        "batch_size": 32,
        "optimizer.learning_rate": 3e-5,
        "optimizer.schedule": "linear",
        "optimizer.final_ratio": 0.0,
        "optimizer.warmup_share": 0.1,
        "optimizer.weight_decay": 0.01,
        "evaluation.every": 500,
        "evaluation.batches": 200,
    }

    @classmethod
    def learn(cls, config: ClassificationConfig, stores: Sequence[Store]) -> ClassificationConfig:
        """Returns the settings with the labels of the training data; whole numbers are sorted as numbers.

        Raises:
            DataError: there are fewer than two labels.
        """
        if config.labels:
            return config
        found = {str(store.value(i, LABEL)) for store in stores for i in range(store.num_documents)}
        if len(found) < 2:
            raise DataError(f"--data: the only {LABEL!r} of all records is {min(found)!r}; give records of two or more")
        return config.with_fields({"labels": tuple(sorted(found, key=_place))})

    @classmethod
    def known_columns(cls, config: ClassificationConfig) -> tuple[Column, ...]:
        """Returns the columns; if the labels are known, a record with another label is refused."""
        return (*cls.columns[:-1], cls.columns[-1]._replace(classes=config.labels))

    @classmethod
    def model_fields(cls, config: ClassificationConfig) -> dict[str, Any]:
        """Returns the number of classes of the head."""
        return {"head.labels": len(config.labels)} if config.labels else {}

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Returns the number of each label."""
        return {label: number for number, label in enumerate(self.config.labels)}

    @functools.cached_property
    def form(self) -> Any:
        """Returns the prompt format, computed once."""
        return self.prompt_format()

    @property
    def between(self) -> tuple[int, ...]:
        """Returns the ids between two texts: what follows a text, or else EOS."""
        return self.form.after or (self.tokenizer.eos_id,)

    def rows(self, store: Store, seed: int) -> LabelledTexts:
        """Returns one row for each record."""
        del seed
        return LabelledTexts(store, self)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of records."""
        return {self.name: jnp.sum(batch["label_weights"])}

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the cross-entropy sums over the records; label smoothing spreads over the labels."""
        logits = forward.head("classifier", forward.hidden)
        return {self.name: class_loss(logits, batch["labels"], batch["label_weights"], forward.penalties)}

    def sample(self, store: Store, room: int) -> None:
        """Returns None: a classifier continues no text."""
        del store, room


def _place(label: str) -> tuple[int, int, str]:
    """Returns what labels are sorted by: whole numbers first, as numbers."""
    whole = label.removeprefix("-")
    return (0, int(label), label) if whole.isascii() and whole.isdigit() else (1, 0, label)
