"""Regression: numbers that belong to a text or to a pair of texts, such as how similar two sentences are."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Batch, Features, Forward, ObjectiveConfig
from lmjax.objectives.divergences import Measure, squared_divergence
from lmjax.objectives.losses import squared_loss
from lmjax.objectives.records import Prediction, TokenRecord
from lmjax.objectives.sums import LossSum
from lmjax.objectives.text_task import SECOND, TEXT, TextTask

SCORE = "score"


class RegressionConfig(ObjectiveConfig):
    """Settings of the regression objective."""

    targets: tuple[str, ...] = Field((SCORE,), min_length=1, description="columns of the numbers that are predicted")
    means: tuple[float, ...] = Field(
        (), description="the model predicts (target - mean) / deviation; none: the means of the training data"
    )
    deviations: tuple[float, ...] = Field((), description="the same; none: those of the training data")

    @model_validator(mode="after")
    def _one_each(self) -> "RegressionConfig":
        if len({*self.targets, TEXT, SECOND}) < len(self.targets) + 2:
            raise ValueError(f"targets={self.targets}: name each column once, and none of the texts")
        for name, given in (("means", self.means), ("deviations", self.deviations)):
            if given and len(given) != len(self.targets):
                raise ValueError(f"{name}={given}: give one for each of the targets {self.targets}")
        if self.deviations and min(self.deviations) <= 0:
            raise ValueError(f"deviations={self.deviations}: must be above 0")
        return self


@dataclasses.dataclass(frozen=True)
class Regression(TextTask):
    """Predicts one or several numbers for one or two texts.

    The loss is the mean squared error of standardised targets: 1 is as good as the mean of the training data, whatever
    the unit of the targets. Predictions and metrics are in the data's own units.
    """

    config: RegressionConfig
    name: ClassVar[str] = "regression"
    columns: ClassVar[tuple[Column, ...]] = (*TextTask.texts, Column(SCORE, "number"))
    learned: ClassVar[tuple[str, ...]] = ("means", "deviations")
    of_head: ClassVar[tuple[str, ...]] = ("targets",)

    @property
    def gold(self) -> tuple[str, ...]:
        """Returns the names of the columns of the targets."""
        return self.config.targets

    @classmethod
    def learn(cls, config: RegressionConfig, stores: Sequence[Store]) -> RegressionConfig:
        """Returns the settings with the mean and the standard deviation of each target in the training data.

        Raises:
            DataError: a target has the same value in all records.
        """
        if config.means and config.deviations:
            return config
        means, deviations = [], []
        for name in config.targets:
            values = [float(store.value(i, name)) for store in stores for i in range(store.num_documents)]
            mean = math.fsum(values) / len(values)
            means.append(mean)
            deviations.append(math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values)))
            if min(values) == max(values):
                raise DataError(
                    f"--data: {name!r} is {values[0]:g} in all {len(values):,} records; give records that differ in it"
                )
        learned = {"means": tuple(means), "deviations": tuple(deviations)}
        return config.with_fields({field: x for field, x in learned.items() if not getattr(config, field)})

    @classmethod
    def known_columns(cls, config: RegressionConfig) -> tuple[Column, ...]:
        """Returns the columns, with one for each target."""
        return (*cls.texts, *(Column(name, "number") for name in config.targets))

    @classmethod
    def model_fields(cls, config: RegressionConfig) -> dict[str, Any]:
        """Returns the number of outputs of the head."""
        return {"head.labels": len(config.targets)}

    @classmethod
    def penalised_by(cls, config: RegressionConfig) -> tuple[str, ...]:
        """Returns R-Drop alone: there are no probabilities."""
        del config
        return ("r_drop",)

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the standardised targets, float32 `[targets]`, and the weight 1 of the record."""
        del rows
        given = np.array([record.values[name] for name in self.config.targets], np.float64)
        standardised = (given - np.array(self.config.means)) / np.array(self.config.deviations)
        return [{"scores": standardised.astype(np.float32), "label_weights": np.float32(1)}]

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums of squared errors of standardised targets."""
        return {self.name: squared_loss(self.logits(forward), batch["scores"], batch["label_weights"])}

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the sums of squared differences of standardised predictions, whatever the measure."""
        del measure
        return {self.name: squared_divergence(self.logits(forward), self.logits(other), batch["label_weights"])}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the predicted standardised targets, `[batch, targets]`."""
        del batch
        return {"standardised": self.logits(forward)}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the predicted number of each target by its name, in the data's own units."""
        del record, rows
        config = self.config
        own = np.array(config.means) + np.array(config.deviations) * outputs[0]["standardised"]
        return dict(zip(config.targets, own.tolist(), strict=True))

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the mean of the predicted numbers."""
        names, count = self.config.targets, len(predictions)
        return {name: math.fsum(each[name] for each in predictions) / count for name in names}

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the numbers, separated by tabs."""
        return "\t".join(f"{prediction[name]:.4f}" for name in self.config.targets)
