"""Classification: the label of a text or of a pair of texts (Devlin et al. 2019, arXiv:1810.04805, section 4.1)."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Batch, Features, Forward, LossSum, ObjectiveConfig
from lmjax.objectives.losses import class_loss
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordTask, TokenRecord, in_order
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
class Classification(RecordTask):
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
    gold: ClassVar[tuple[str, ...]] = (LABEL,)
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
        return config.with_fields({"labels": in_order(found)})

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

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns the features of `text_row`."""
        texts = [record.texts[name][0] for name in (TEXT, SECOND)]
        # What follows a text separates two texts too; a decoder has EOS there.
        between = form.after or (self.tokenizer.eos_id,)
        return [text_row(form, texts, between=between, length=length, pad_id=self.tokenizer.pad_id)]

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the number of the label and its weight 1, as scalars."""
        del rows
        return [{"labels": np.int32(self.numbers[str(record.values[LABEL])]), "label_weights": np.float32(1)}]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of records."""
        return {self.name: jnp.sum(batch["label_weights"])}

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the cross-entropy sums over the records; label smoothing spreads over the labels."""
        logits = forward.head("classifier", forward.hidden)
        return {self.name: class_loss(logits, batch["labels"], batch["label_weights"], forward.penalties)}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the log-probabilities of the labels, `[batch, labels]`."""
        del batch
        return {"log_probs": jax.nn.log_softmax(forward.head("classifier", forward.hidden).astype(jnp.float32))}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the likeliest label, its probability, and the probabilities of all labels by name."""
        del record, rows
        return _likeliest(dict(zip(self.config.labels, np.exp(outputs[0]["log_probs"]).tolist(), strict=True)))

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the prediction by the mean of the probabilities."""
        count = len(predictions)
        return _likeliest({x: math.fsum(each["scores"][x] for each in predictions) / count for x in self.config.labels})

    def right(self, truth: Prediction, prediction: Prediction) -> bool:
        """Returns whether the label is the gold one."""
        return str(truth[LABEL]) == prediction["label"]

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the label and its probability, separated by a tab."""
        return f"{prediction['label']}\t{prediction['score']:.4f}"


def _likeliest(scores: dict[str, float]) -> Prediction:
    """Returns a prediction with the likeliest label, the first of equally likely ones."""
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}
