"""Classification as text to text: the name of the label is predicted from a text or a pair of texts.

Raffel et al. 2020, arXiv:1910.10683, section 2.4. It reads the records of `classification`, so that all families can be
compared on one file. The prediction for a record is its likeliest label: the probabilities that the model gives to the
texts of all labels, normalised. So a model always predicts one of the labels.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.packing import pack
from lmjax.data.store import Store
from lmjax.errors import FlagError
from lmjax.objectives.base import Batch, Features, Forward, Rows
from lmjax.objectives.classification import LABEL, Classification, ClassificationConfig, likeliest, mean_scores
from lmjax.objectives.losses import target_log_probs
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordTask, TokenRecord
from lmjax.objectives.rows import PackedPieces, fitted
from lmjax.objectives.text_task import SECOND, TEXT
from lmjax.objectives.token_prediction import SourceToTarget

Pair = tuple[np.ndarray, np.ndarray]


class TextToTextConfig(ClassificationConfig):
    """Settings of the text-to-text objective."""

    prefix: str = Field("", description="words before each text, such as 'mnli hypothesis: '")
    between: str = Field(" ", description="words between two texts, such as ' premise: '")

    @model_validator(mode="after")
    def _one_label(self) -> "TextToTextConfig":
        if self.kind != "single" or self.balanced or self.class_weights:
            raise ValueError("kind, balanced and class_weights are settings of classification; leave them out")
        return self


@dataclasses.dataclass(frozen=True)
class PackedRecords(PackedPieces, Rows):
    """Packed records, each a source and the name of its label."""

    objective: "TextToText"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        del rng
        o = self.objective
        records = [TokenRecord.stored(self.store, number) for number, _, _ in self.bounds(index)]
        return o.row([o.pair(record, str(record.values[LABEL])) for record in records])


@dataclasses.dataclass(frozen=True)
class TextToText(SourceToTarget, RecordTask):
    """Predicts the name of the label of one or two texts."""

    config: TextToTextConfig
    name: ClassVar[str] = "text_to_text"
    columns: ClassVar[tuple[Column, ...]] = Classification.columns
    gold: ClassVar[tuple[str, ...]] = (LABEL,)
    learned: ClassVar[tuple[str, ...]] = Classification.learned
    # The rate and the schedule for AdamW; T5's own are those of Adafactor (section 3.1.2).
    recipe: ClassVar[Mapping[str, Any]] = {**Classification.recipe, "optimizer.learning_rate": 3e-4}

    @classmethod
    def default_target_length(cls, config: TextToTextConfig, length: int) -> int:
        """Returns a quarter of `length`, because the name of a label is much shorter than a text."""
        del config
        return max(8, length // 4)

    @classmethod
    def learn(cls, config: TextToTextConfig, stores: Sequence[Store]) -> TextToTextConfig:
        """Returns the settings with the labels of the training data, as `Classification.learn`."""
        return Classification.learn(config, stores)

    @classmethod
    def known_columns(cls, config: TextToTextConfig) -> tuple[Column, ...]:
        """Returns the columns; if the labels are known, a record with another label is refused."""
        return Classification.known_columns(config)

    @classmethod
    def running_text(cls, config: TextToTextConfig, document: Document) -> str:
        """Returns the texts of a record, the words around them, and the name of its label."""
        return "\n".join((config.prefix, config.between, *document.segments, str(document.values[0])))

    def prompt_format(self) -> PromptFormat:
        """Returns the format of a source that begins with the prefix."""
        return self.prefixed(self.config.prefix)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Returns the number of each label."""
        return {label: number for number, label in enumerate(self.config.labels)}

    @functools.cached_property
    def answers(self) -> dict[str, np.ndarray]:
        """Returns the ids of each label's name, with EOS.

        Raises:
            FlagError: two names have the same ids, so that no model can tell them apart.
        """
        names = self.tokenizer.encode_batch(self.config.labels)
        seen: dict[tuple[int, ...], str] = {}
        for label, ids in zip(self.config.labels, names, strict=True):
            if (other := seen.setdefault(tuple(ids), label)) != label:
                raise FlagError(
                    f"tokenizer.path: the labels {other!r} and {label!r} have the same ids; choose a tokenizer that "
                    "knows their characters, such as one with byte fallback"
                )
        ends = (np.array([*ids, self.tokenizer.eos_id], np.int32) for ids in names)
        return dict(zip(self.config.labels, ends, strict=True))

    @functools.cached_property
    def _words(self) -> Pair:
        """Returns the ids of the words before and between texts."""
        before, between = (self.tokenizer.encode(words) for words in (self.config.prefix, self.config.between))
        return np.array(before, np.int32), np.array(between, np.int32)

    def pair(self, record: TokenRecord, label: str) -> Pair:
        """Returns the ids of a record's source and of a label; of texts that do not fit, the longer loses its end.

        The room is that beside the longest label, so the source is the same for each.
        """
        (first, second), target = (record.texts[name][0] for name in (TEXT, SECOND)), self.answers[label]
        before, between = self._words
        between = between if len(second) else between[:0]
        longest = max(map(len, self.answers.values()))
        room = (self.length if self.family.paired else self.length - longest) - len(before) - len(between) - 1
        first, second = fitted(first, second, room)
        return np.concatenate([before, first, between, second, [self.tokenizer.eos_id]]).astype(np.int32), target

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns packed records.

        Raises:
            FlagError: the name of a label, or the words around the texts, do not fit a row.
        """
        longest, words = max(map(len, self.answers.values())), sum(map(len, self._words))
        if longest > self.target_length or words + longest >= self.length:
            raise FlagError(
                f"--config.task.length={self.length} and target_length={self.target_length}: too short for a label of "
                f"{longest} tokens and {words} tokens of prefix and between; raise them"
            )
        records = (TokenRecord.stored(store, i) for i in range(store.num_documents))
        pairs = [tuple(map(len, self.pair(record, str(record.values[LABEL])))) for record in records]
        costs = self.row_positions(*np.array(pairs, np.int64).reshape(-1, 2).T)
        plan = pack(costs, max_piece=self.length, cost=lambda n: n, capacity=self.length, seed=seed)
        return PackedRecords(store, plan, self)

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns a row for each label: the record's source, and the label as `targets`."""
        del form  # the format is that of training
        return [self.row([self.pair(record, label)], target_length=length) for label in self.config.labels]

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns nothing for each row: in training a record has one row, made by `rows`."""
        del record
        return [{} for _ in rows]

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the log-probability of each row's `targets`, `[batch]`."""
        weights = batch["weights"][..., None]
        found = target_log_probs(forward.hidden, forward.logits, batch["targets"], weights, chunk=self.vocab_chunk)
        return {"log_probs": found[:, 0]}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the likeliest label, its probability, and the probabilities of all labels by name."""
        del record, rows
        found = np.array([each["log_probs"] for each in outputs])
        found -= found.max() + np.log(np.exp(found - found.max()).sum())
        return likeliest(self.config.labels, np.exp(found).tolist())

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the prediction by the mean of the probabilities."""
        return likeliest(self.config.labels, mean_scores(self.config.labels, predictions))

    def right(self, truth: Prediction, prediction: Prediction) -> bool:
        """Returns whether the label is the gold one."""
        return str(truth[LABEL]) == prediction["label"]

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the label and its probability, separated by a tab."""
        return f"{prediction['label']}\t{prediction['score']:.4f}"
