"""Multiple choice: the choice that continues a text or answers a question (Devlin et al. 2019, section 4.4)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.data.choices import CHOICES, CONTEXT, LABEL, QUESTION, Choices
from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.record_format import RecordFormat
from lmjax.data.store import Store
from lmjax.errors import FlagError
from lmjax.objectives.base import Batch, Features, Forward, ObjectiveConfig
from lmjax.objectives.divergences import Measure, class_divergence
from lmjax.objectives.losses import class_loss
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordRows, RecordTask, TokenRecord
from lmjax.objectives.rows import joined, pad, rooms, side
from lmjax.objectives.sums import LossSum
from lmjax.objectives.text_task import TextTask

# The score of a choice that a record does not have.
_NEVER = -1e9
# The fewest tokens of a choice with its context.
_LEAST = 8


class MultipleChoiceConfig(ObjectiveConfig):
    """Settings of the multiple_choice objective."""

    most_choices: int = Field(8, ge=2, le=99, description="choices that a record may have; records may have fewer")


@dataclasses.dataclass(frozen=True)
class MultipleChoice(RecordTask):
    """Predicts the right one of the choices of a record, each of which is scored with its context.

    The choices of a record share a row, each as a segment of its own: an encoder reads [CLS] context [SEP] question
    choice [SEP] for each, and a decoder BOS context EOS question choice. An encoder-decoder reads context EOS question
    choice EOS for each, and scores it by the first token of its decoder.
    """

    config: MultipleChoiceConfig
    name: ClassVar[str] = "multiple_choice"
    architectures: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "encoder_decoder")
    heads: ClassVar[tuple[str, ...]] = ("choice",)
    # Question and choices are kept as texts, because they are tokenised together.
    columns: ClassVar[tuple[Column, ...]] = (
        Column(CONTEXT),
        Column(QUESTION, "string", optional=True),
        Column(CHOICES, "strings"),
        Column(LABEL, "integer"),
    )
    gold: ClassVar[tuple[str, ...]] = (LABEL,)
    # Devlin et al. 2019, section 4.4: 3 epochs, rate 2e-5, batches of 16.
    recipe: ClassVar[Mapping[str, Any]] = {**TextTask.recipe, "batch_size": 16, "optimizer.learning_rate": 2e-5}

    @classmethod
    def record_format(cls, config: MultipleChoiceConfig) -> RecordFormat:
        """Returns lists of choices and tables with a column for each."""
        return Choices(config.most_choices)

    @classmethod
    def running_text(cls, config: MultipleChoiceConfig, document: Document) -> str:
        """Returns the context, the question and the choices."""
        del config
        question, choices, *_ = document.values
        return "\n".join([document.text, question, *choices])

    @classmethod
    def default_target_length(cls, config: MultipleChoiceConfig, length: int) -> int:
        """Returns one token of the decoder for each choice."""
        del length
        return config.most_choices

    @classmethod
    def penalised_by(cls, config: MultipleChoiceConfig) -> tuple[str, ...]:
        """Returns no label smoothing: it would spread over the choices that a record does not have."""
        del config
        return ("z_loss", "r_drop")

    def prompt_format(self) -> PromptFormat:
        """Returns the ids around texts; without a template of its own an encoder-decoder ends each with EOS."""
        if self.family.paired and self.tokenizer.template() is None:
            return PromptFormat(after=(self.tokenizer.eos_id,))
        return super().prompt_format()

    def rows(self, store: Store, seed: int) -> RecordRows:
        """Returns one row for each record.

        Raises:
            FlagError: a row is too short for the choices of a record.
        """
        del seed
        self._check_room(max((len(store.value(i, CHOICES)) for i in range(store.num_documents)), default=0))
        return RecordRows(store, self)

    def _check_room(self, count: int) -> None:
        if self.length < count * _LEAST:
            raise FlagError(
                f"--config.task.length={self.length}: {count} choices share a row, and each needs {_LEAST} tokens with "
                f"its context; give at least {count * _LEAST}"
            )

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns `side` of the choices, each a segment, and `text_ids`, int32 `[most choices]`, 0 for none.

        Choices that do not fit with their contexts lose tokens, the longest ones first. An encoder-decoder has the
        segments in its encoder, and one token for each in its decoder.
        """
        (context,), question = record.texts[CONTEXT], str(record.values[QUESTION])
        choices = record.values[CHOICES]
        self._check_room(len(choices))
        seconds = self.tokenizer.encode_batch([f"{question} {choice}" if question else choice for choice in choices])
        texts = [[context, np.array(second, np.int32)] for second in seconds]
        end_id = self.tokenizer.role_ids.get("eos", self.tokenizer.pad_id)
        whole = [joined(form, pair, end_id=end_id, length=length)[0] for pair in texts]
        kept = rooms([len(each) for each in whole], length)
        made = [joined(form, pair, end_id=end_id, length=size) for pair, size in zip(texts, kept, strict=True)]
        tokens, types = zip(*made, strict=True)
        row = {"text_ids": pad(np.arange(1, len(choices) + 1), max(self.config.most_choices, len(choices)))}
        pad_id = self.tokenizer.pad_id
        if self.family.paired:
            starts = [np.array([pad_id], np.int32)] * len(choices)
            width = max(self.target_length, len(choices))
            return [row | side(list(tokens), length, pad_id, "encoder_") | side(starts, width, pad_id, "decoder_")]
        return [row | side(list(tokens), length, pad_id) | {"type_ids": pad(np.concatenate(types), length)}]

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the number of the right choice, and the weight 1 of the record."""
        del rows
        return [{"labels": np.int32(record.values[LABEL]), "label_weights": np.float32(1)}]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of records."""
        return {self.name: jnp.sum(batch["label_weights"])}

    def _scores(self, forward: Forward, batch: Batch) -> jax.Array:
        """Returns the scores of the choices, float32 `[batch, most choices]`, with `_NEVER` for those that are none."""
        scores = forward.head("choice", forward.hidden).astype(jnp.float32)
        return jnp.where(batch["text_ids"] > 0, scores, _NEVER)

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the cross-entropy sums over the choices of each record."""
        scores, penalties = self._scores(forward, batch), forward.penalties.replace(label_smoothing=None)
        return {self.name: class_loss(scores, batch["labels"], batch["label_weights"], penalties)}

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the sums over the records."""
        first, second = self._scores(forward, batch), self._scores(other, batch)
        return {self.name: class_divergence(first, second, batch["label_weights"], measure)}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the log-probabilities of the choices, `[batch, most choices]`."""
        return {"log_probs": jax.nn.log_softmax(self._scores(forward, batch))}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the choices, the likeliest one, its number and its probability, and the probabilities of all."""
        del rows
        choices = record.values[CHOICES]
        return _prediction(choices, np.exp(outputs[0]["log_probs"][: len(choices)]).tolist())

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the prediction by the mean of the probabilities."""
        columns = zip(*(each["scores"] for each in predictions), strict=True)
        return _prediction(predictions[0][CHOICES], [math.fsum(column) / len(predictions) for column in columns])

    def right(self, truth: Prediction, prediction: Prediction) -> bool:
        """Returns whether the right choice is predicted."""
        return truth[LABEL] == prediction["label"]

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the number of the choice, its text and its probability, separated by tabs."""
        return f"{prediction['label']}\t{prediction['choice']}\t{prediction['score']:.4f}"


def _prediction(choices: Sequence[str], scores: Sequence[float]) -> Prediction:
    """Returns a prediction by the probabilities of the choices; of equally likely ones the first."""
    best = max(range(len(scores)), key=scores.__getitem__)
    made = {"label": best, "choice": choices[best], "score": scores[best], "scores": list(scores)}
    return {CHOICES: list(choices), **made}
