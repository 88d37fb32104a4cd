"""Classification of a text or of a pair of texts (Devlin et al. 2019, arXiv:1810.04805, section 4.1).

| kind | a record has | loss | predicted |
|---|---|---|---|
| single | one `label` | cross entropy | the likeliest label |
| multiple | any number of `labels` | binary cross entropy of each label | the labels above `threshold` |
| ordered | one `label` of classes in an order | divergence from shares around the label | the likeliest label |

All kinds have one logit for each label, so that all of them can be exported.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.store import Store
from lmjax.errors import DataError, FlagError
from lmjax.objectives.base import Batch, Features, Forward, ObjectiveConfig
from lmjax.objectives.divergences import Measure, binary_divergence, class_divergence
from lmjax.objectives.losses import class_loss, labels_loss, shares_loss
from lmjax.objectives.records import Prediction, TokenRecord, in_order
from lmjax.objectives.sums import LossSum
from lmjax.objectives.text_task import TextTask

LABEL, LABELS = "label", "labels"


class ClassificationConfig(ObjectiveConfig):
    """Settings of the classification objective."""

    kind: Literal["single", "multiple", "ordered"] = Field(
        "single", description="each record has one label, a list of any number of labels, or one of ordered classes"
    )
    labels: tuple[str, ...] = Field(
        (), description="names of the labels in the order of the logits; none: those of the training data, sorted"
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="of kind=multiple: the probability from which a label is predicted"
    )
    falloff: float = Field(
        1.0,
        gt=0,
        description="of kind=ordered: the shares that the loss compares with fall as exp(-falloff * distance**2) with "
        "the distance in classes from the label (Diaz and Marathe 2019)",
    )
    balanced: bool = Field(
        False, description="class_weights follow from the training data, so that rare labels count as much as others"
    )
    class_weights: tuple[float, ...] = Field(
        (), description="factor on the loss of each label, in the order of labels; none: 1, or as balanced says"
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> "ClassificationConfig":
        few = len(self.labels) == 1 and self.kind != "multiple"
        if len(set(self.labels)) < len(self.labels) or few or not all(map(str.strip, self.labels)):
            raise ValueError(f"labels={self.labels}: give two labels or more, each once, none of them empty")
        for name, kind in (("threshold", "multiple"), ("falloff", "ordered")):
            if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)}: is for kind={kind}; set that too, or leave it out")
        if self.class_weights and (len(self.class_weights) != len(self.labels) or min(self.class_weights) < 0):
            raise ValueError(
                f"class_weights={self.class_weights}: name the labels, and give one weight of at least 0 for each"
            )
        return self


@dataclasses.dataclass(frozen=True)
class Classification(TextTask):
    """Predicts the label or the labels of one or two texts."""

    config: ClassificationConfig
    name: ClassVar[str] = "classification"
    columns: ClassVar[tuple[Column, ...]] = (*TextTask.texts, Column(LABEL, "string", classes=()))
    learned: ClassVar[tuple[str, ...]] = ("labels",)
    of_head: ClassVar[tuple[str, ...]] = ("kind",)

    @property
    def gold(self) -> tuple[str, ...]:
        """Returns the name of the column with the label or the labels."""
        return (LABELS if self.several else LABEL,)

    @property
    def several(self) -> bool:
        """Returns whether a record may have several labels."""
        return self.config.kind == "multiple"

    @classmethod
    def learn(cls, config: ClassificationConfig, stores: Sequence[Store]) -> ClassificationConfig:
        """Returns the settings with the labels of the training data, whole numbers sorted as numbers, and weights.

        The weights of `balanced` are records / (labels * records with the label), which are 1 on average (King and
        Zeng 2001); with kind=multiple, records without the label / records with it.

        Raises:
            FlagError: `balanced` and `class_weights` are both given.
            DataError: there are fewer than two labels, or their order is not known.
        """
        if config.balanced and config.class_weights:
            raise FlagError(
                f"--config.task.{cls.name}.balanced=true and class_weights={config.class_weights}: both are weights of "
                "the labels; give one"
            )
        if config.labels and not config.balanced:
            return config
        column = LABELS if config.kind == "multiple" else LABEL
        given = (store.value(i, column) for store in stores for i in range(store.num_documents))
        found = Counter(name for labels in given for name in (set(labels) if column == LABELS else (str(labels),)))
        if not config.labels:
            config = config.with_fields({"labels": _sorted(found, config.kind)})
        if config.balanced:
            records, counts = sum(store.num_documents for store in stores), [found[x] for x in config.labels]
            number = len(config.labels)
            others = [records - n if config.kind == "multiple" else records / number for n in counts]
            # A label that none or all of the records have is not weighted.
            weights = [x / n if n and x else 1.0 for x, n in zip(others, counts, strict=True)]
            config = config.with_fields({"class_weights": tuple(weights)})
        return config

    @classmethod
    def known_columns(cls, config: ClassificationConfig) -> tuple[Column, ...]:
        """Returns the columns; if the labels are known, a record with another label is refused."""
        name, kind = (LABELS, "strings") if config.kind == "multiple" else (LABEL, "string")
        return (*cls.texts, Column(name, kind, classes=config.labels))

    @classmethod
    def model_fields(cls, config: ClassificationConfig) -> dict[str, Any]:
        """Returns the number of classes of the head."""
        return {"head.labels": len(config.labels)} if config.labels else {}

    @classmethod
    def penalised_by(cls, config: ClassificationConfig) -> tuple[str, ...]:
        """Returns all penalties; the z-loss is for a softmax, which several labels do not have."""
        return ("label_smoothing", "r_drop") if config.kind == "multiple" else super().penalised_by(config)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Returns the number of each label."""
        return {label: number for number, label in enumerate(self.config.labels)}

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the number of the label, or 1 or 0 for each label, and the weight 1 of the record."""
        del rows
        given = record.values[self.gold[0]]
        if self.several:
            return [{"labels": self.marked(given).astype(np.float32), "label_weights": np.float32(1)}]
        return [{"labels": np.int32(self.numbers[str(given)]), "label_weights": np.float32(1)}]

    def marked(self, labels: Sequence[str]) -> np.ndarray:
        """Returns bool `[labels]`: whether each label is among the given ones."""
        there = {self.numbers[str(label)] for label in labels}
        return np.array([number in there for number in range(len(self.numbers))])

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the loss sums over the records; label smoothing spreads over the labels.

        Class weights multiply the loss of a record, and not what counts as correct. The sum is divided by the number of
        records, so that a record counts alike in any batch.
        """
        config, logits = self.config, self.logits(forward)
        labels, weights = batch["labels"], batch["label_weights"]
        size = len(config.labels)
        factors = jnp.array(config.class_weights or (1.0,) * size, jnp.float32)
        if config.kind == "multiple":
            least = math.log(config.threshold / (1 - config.threshold))
            found = labels_loss(logits, labels, weights, factors, least, forward.penalties)
        elif config.kind == "ordered":
            apart = jnp.arange(size)[None, :] - labels[:, None]
            shares = jax.nn.softmax(-config.falloff * jnp.square(apart.astype(jnp.float32)))
            found = shares_loss(logits, shares, weights, factors[labels], forward.penalties)
        elif config.class_weights:
            parts = jnp.stack([weights, weights * factors[labels]], axis=-1)
            sums = class_loss(logits, labels, parts, forward.penalties)
            found = LossSum(sums.loss[1], sums.weight[0], sums.correct[0], sums.penalty[1])
        else:
            found = class_loss(logits, labels, weights, forward.penalties)
        return {self.name: found}

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the sums over the records, with the class weights of the losses."""
        first, second = self.logits(forward), self.logits(other)
        labels, weights = batch["labels"], batch["label_weights"]
        factors = jnp.array(self.config.class_weights or (1.0,) * len(self.config.labels), jnp.float32)
        if self.several:
            own = weights[:, None] * jnp.where(labels > 0, factors[None], 1.0)
            return {self.name: binary_divergence(first, second, own, measure)}
        return {self.name: class_divergence(first, second, weights * factors[labels], measure)}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the log-probabilities of the labels or, with kind=multiple, their logits, `[batch, labels]`."""
        del batch
        logits = self.logits(forward)
        return {"logits": logits} if self.several else {"log_probs": jax.nn.log_softmax(logits)}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the likeliest label and its probability, or the list of labels; and the probabilities by label."""
        del record, rows
        outputs = outputs[0]
        if self.several:
            return self._prediction((1 / (1 + np.exp(-outputs["logits"]))).tolist())
        return self._prediction(np.exp(outputs["log_probs"]).tolist())

    def _prediction(self, probabilities: Sequence[float]) -> Prediction:
        """Returns a prediction by the probabilities of the labels; of equally likely ones the first."""
        if not self.several:
            return likeliest(self.config.labels, probabilities)
        scores = dict(zip(self.config.labels, probabilities, strict=True))
        return {"labels": [x for x, p in scores.items() if p >= self.config.threshold], "scores": scores}

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the prediction by the mean of the probabilities."""
        return self._prediction(mean_scores(self.config.labels, predictions))

    def right(self, truth: Prediction, prediction: Prediction) -> bool:
        """Returns whether the label is the gold one, or all labels are."""
        if self.several:
            return set(truth[LABELS]) == set(prediction["labels"])
        return str(truth[LABEL]) == prediction["label"]

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns each label and its probability, separated by tabs."""
        labels = prediction["labels"] if self.several else [prediction["label"]]
        return "\t".join(f"{label}\t{prediction['scores'][label]:.4f}" for label in labels)


def likeliest(labels: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    """Returns the likeliest of several labels, the first of equally likely ones, its score, and all scores by label."""
    scores = dict(zip(labels, probabilities, strict=True))
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}


def mean_scores(labels: Sequence[str], predictions: Sequence[Prediction]) -> list[float]:
    """Returns the mean of several predictions' scores for each label."""
    return [math.fsum(each["scores"][label] for each in predictions) / len(predictions) for label in labels]


def _sorted(found: Mapping[str, int], kind: str) -> tuple[str, ...]:
    """Returns the labels of the training data in the order of their numbers.

    Raises:
        DataError: there are too few, or they are names of classes whose order is not known.
    """
    column = LABELS if kind == "multiple" else LABEL
    if len(found) < 2:
        only = f"the only {column!r} of all records is {min(found)!r}" if found else f"no record has {column!r}"
        raise DataError(f"--data: {only}; give records of two or more")
    labels = in_order(found)
    if kind == "ordered" and not all(label.removeprefix("-").isdigit() for label in labels):
        names = ",".join(labels)
        raise DataError(
            f"--data: kind=ordered, and the labels {names[:200]} are names; give them in their order, lowest first, "
            "with --config.task.classification.labels"
        )
    return labels
