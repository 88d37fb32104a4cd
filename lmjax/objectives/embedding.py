"""Embedding: vectors of texts whose cosine is the similarity of the texts (Reimers, Gurevych 2019, arXiv:1908.10084).

| form | columns | loss |
|---|---|---|
| pairs | text, text2 | the second text of each row is found among those of the batch |
| triplets | text, text2, negative | the same, and the negatives of all rows are candidates too |
| scored | text, text2, score | cosines have the order of the scores |
| texts | text | pairs of a text with itself, which differ in dropout (Gao et al. 2021, arXiv:2104.08821, section 3) |
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, field_validator

from lmjax.data.columns import Column
from lmjax.data.store import Store
from lmjax.errors import DataError, FlagError
from lmjax.objectives.base import Batch, Features, Forward, ObjectiveConfig
from lmjax.objectives.contrastive import in_batch_loss, score_order_loss
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordTask, TokenRecord
from lmjax.objectives.regression import SCORE
from lmjax.objectives.rows import separate_texts
from lmjax.objectives.sums import LossSum
from lmjax.objectives.text_task import SECOND, TEXT, TextTask

NEGATIVE = "negative"


class EmbeddingConfig(ObjectiveConfig):
    """Settings of the embedding objective."""

    form: Literal["pairs", "triplets", "scored", "texts"] | None = Field(
        None,
        description="what a record is; none: scored, triplets, pairs or texts, by the columns of the training data",
    )
    temperature: float = Field(0.05, gt=0, description="divides cosines; 0.05 as in SimCSE and in CoSENT")
    symmetric: bool = Field(False, description="pairs, triplets, texts: also find the first text, given the second")
    widths: tuple[int, ...] = Field(
        (),
        description="Matryoshka: the first so many numbers of a vector are trained as vectors of their own, with the"
        " same loss (Kusupati et al. 2022, arXiv:2205.13147, section 3)",
    )

    @field_validator("widths")
    @classmethod
    def _positive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(widths)) < len(widths) or any(width < 1 for width in widths):
            raise ValueError(f"widths={widths}: give numbers from 1 to the width of the model, each once")
        return widths


@dataclasses.dataclass(frozen=True)
class Embedding(RecordTask):
    """Trains the vectors of texts, by comparing those of a whole batch.

    The texts of a record share a row, each as a segment of its own: an encoder reads [CLS] text [SEP] for each, and a
    decoder BOS text EOS, so that the last token has read the whole text.
    """

    config: EmbeddingConfig
    name: ClassVar[str] = "embedding"
    architectures: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    heads: ClassVar[tuple[str, ...]] = ("embedding",)
    compares_rows: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (
        Column(TEXT),
        Column(SECOND, optional=True, uniform=True),
        Column(NEGATIVE, optional=True, uniform=True),
        Column(SCORE, "number", optional=True, uniform=True),
    )
    gold: ClassVar[tuple[str, ...]] = (SCORE,)
    # Rate and warm-up of Reimers and Gurevych 2019, section 3.1; the linear decay and the 4 epochs are those of their
    # code for scored pairs. The batch is SimCSE's (Gao et al. 2021, appendix A): its rows are negatives.
    recipe: ClassVar[Mapping[str, Any]] = {
        **TextTask.recipe,
        "epochs": 4.0,
        "batch_size": 64,
        "optimizer.learning_rate": 2e-5,
        "evaluation.every": 250,
    }

    @classmethod
    def learn(cls, config: EmbeddingConfig, stores: Sequence[Store]) -> EmbeddingConfig:
        """Returns the settings with the form that the training data have.

        Raises:
            FlagError: `symmetric` with scores.
            DataError: they lack what the form needs, or some files have scores, negatives or second texts and others
                do not.
        """
        found = {_form(store) for store in stores}
        if config.form is None and len(found) > 1:
            raise DataError(f"--data: some sets are {' and others '.join(sorted(found))}; give all the same columns")
        form = config.form or found.pop()
        if config.symmetric and form == "scored":
            raise FlagError(
                f"--config.task.{cls.name}.symmetric=true: texts with scores are not searched for one another; leave it"
                " out"
            )
        needed = {"triplets": (SECOND, NEGATIVE), "scored": (SECOND, SCORE), "pairs": (SECOND,), "texts": ()}[form]
        for store in stores:
            if lacking := [name for name in needed if not _has(store, name, all if name == SCORE else any)]:
                raise DataError(f"--data: {form} need {TEXT}, {' and '.join(needed)}, and {lacking[0]!r} is missing")
        return config.with_fields({"form": form})

    @classmethod
    def penalised_by(cls, config: EmbeddingConfig) -> tuple[str, ...]:
        """Returns none: the loss compares cosines, which cannot drift."""
        del config
        return ()

    def prompt_format(self) -> PromptFormat:
        """Returns the tokens around each text: a loaded tokenizer's own, which programs that read its folder add too.

        Otherwise those of [CLS] and [SEP], or of BOS and EOS, that the tokenizer has.
        """
        if (template := self.tokenizer.template()) is not None:
            return PromptFormat(**template._asdict())
        roles = ("bos", "eos") if self.family.causal else ("cls", "sep")
        before, after = (tuple(i for name, i in self.tokenizer.role_ids.items() if name == role) for role in roles)
        return PromptFormat(before=before, after=after)

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns the features of `separate_texts`, for two texts or three."""
        first, second, negative = (record.texts[name][0] for name in (TEXT, SECOND, NEGATIVE))
        texts = [first, first if self.config.form == "texts" else second]
        if self.config.form == "triplets" or (self.config.form is None and len(negative)):
            texts.append(negative)
        return [self.row(texts, form, length)]

    def row(self, texts: Sequence[np.ndarray], form: PromptFormat, length: int) -> Features:
        """Returns the features of a row of texts, given as ids."""
        return separate_texts(form, texts, length=length, pad_id=self.tokenizer.pad_id)

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the score, 0 if there is none, and the weight 1 of the row, as scalars."""
        del rows
        score = record.values[SCORE]
        return [{"scores": np.float32(0 if math.isnan(score) else score), "row_weights": np.float32(1)}]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of records."""
        return {self.name: jnp.sum(batch["row_weights"])}

    def representations(self, forward: Forward, batch: Batch) -> jax.Array:
        """Returns the vectors of the texts of each row, `[rows, texts, embed]`."""
        del batch
        return forward.head("embedding", forward.hidden)

    def compared(self, representations: jax.Array, batch: Batch) -> dict[str, LossSum]:
        """Returns the loss sums of vectors `[rows, texts, embed]`; those of narrower widths are a penalty."""

        def loss(vectors: jax.Array) -> LossSum:
            weights, c = batch["row_weights"], self.config
            if c.form == "scored":
                return score_order_loss(vectors, batch["scores"], weights, c.temperature)
            return in_batch_loss(vectors, weights, c.temperature, symmetric=c.symmetric)

        sums = loss(representations)
        narrow = [loss(representations[..., :width]).loss for width in self.config.widths]
        return {self.name: sums.replace(penalty=sum(narrow, sums.penalty))}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the vectors of the texts of each row."""
        return {"vectors": self.representations(forward, batch)}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the cosine of two texts, and that of the first with the negative if there is one.

        Of a record with one text, it returns the vector.
        """
        del rows
        if not len(record.texts[SECOND][0]) and math.isnan(record.values[SCORE]):
            return {"embedding": outputs[0]["vectors"][0].tolist()}
        vectors = outputs[0]["vectors"]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        cosines = (vectors[1:] @ vectors[0]).tolist()
        return dict(zip(("similarity", "negative similarity"), cosines, strict=False))

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the cosines, or the numbers of a vector, separated by tabs."""
        numbers = prediction.get("embedding") or prediction.values()
        return "\t".join(f"{x:.4f}" for x in numbers)


def _form(store: Store) -> str:
    """Returns the form of the records of a store."""
    if _has(store, SCORE, any):
        return "scored"
    return "triplets" if _has(store, NEGATIVE, any) else "pairs" if _has(store, SECOND, any) else "texts"


def _has(store: Store, name: str, quantifier: Any) -> bool:
    """Returns whether all, or any, of the records have a column."""
    records = range(store.num_documents)
    if name == SCORE:
        return quantifier(not math.isnan(store.value(i, SCORE)) for i in records)
    return quantifier(len(store.texts(i, name)[0]) > 0 for i in records)
