"""Tagging: a label for each word, such as entities and parts of speech (Devlin et al. 2019, section 5.3)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.record_format import RecordFormat
from lmjax.data.store import Store
from lmjax.data.tag_schemes import Scheme, entities, mark_entities
from lmjax.data.tagged_words import TAGS, WORDS, TaggedWords
from lmjax.errors import DataError
from lmjax.objectives.base import Batch, Features, Forward, ObjectiveConfig
from lmjax.objectives.classification import Classification
from lmjax.objectives.divergences import Measure, class_divergence
from lmjax.objectives.losses import class_loss
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordRows, RecordTask, TokenRecord, in_order
from lmjax.objectives.rows import pad, text_row
from lmjax.objectives.sums import LossSum

WORD_IDS = "word_ids"


class TaggingConfig(ObjectiveConfig):
    """Settings of the tagging objective."""

    labels: tuple[str, ...] = Field(
        (), description="names of the labels in the order of the logits; none: those of the training data, sorted"
    )
    scheme: Scheme = Field("none", description="of labels that mark entities; a tag that it does not allow is an error")
    repair: bool = Field(
        False, description="whether tags that the scheme does not allow are written anew from the entities in them"
    )
    subwords: Literal["first", "all"] = Field(
        "first", description="tokens of a word that have its label in training; its first one predicts it"
    )
    overlap: int = Field(
        16, ge=0, description="tokens of context on both sides of each part of a sentence that is longer than a row"
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> "TaggingConfig":
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1 or not all(map(str.strip, self.labels)):
            raise ValueError(f"labels={self.labels}: give two labels or more, each once, none of them empty")
        if self.repair and self.scheme == "none":
            raise ValueError("repair=true: without a scheme no tag is wrong; set scheme=bio or bioes, or leave it out")
        return self


class Window(NamedTuple):
    """The words of a row: from `first` to `last` - 1. Those from `begin` to `end` - 1 are labelled in this row."""

    first: int
    begin: int
    end: int
    last: int


def windows(sizes: Sequence[int], room: int, overlap: int) -> list[Window]:
    """Returns the rows of a sentence, in which each word is labelled once.

    Args:
        sizes: the number of tokens of each word.
        room: the most tokens of the words of a row.
        overlap: the most tokens of the words before and of those after the labelled ones, if there are several rows.
    """
    if sum(sizes) <= room:
        return [Window(0, 0, len(sizes), len(sizes))]
    overlap = min(overlap, room // 4)
    found, begin = [], 0
    while begin < len(sizes):
        end, total = begin + 1, sizes[begin]
        while end < len(sizes) and total + sizes[end] <= room - 2 * overlap:
            total += sizes[end]
            end += 1
        first, last = begin, end
        while first and sum(sizes[first - 1 : begin]) <= min(overlap, room - total):
            first -= 1
        total += sum(sizes[first:begin])
        while last < len(sizes) and sum(sizes[end : last + 1]) <= min(overlap, room - total):
            last += 1
        found.append(Window(first, begin, end, last))
        begin = end
    return found


@dataclasses.dataclass(frozen=True)
class Tagging(RecordTask):
    """Predicts the label of each word of a sentence from the state of its first token.

    The words are read as one text with a space between them, between [CLS] and [SEP]. A word in which no token begins
    is read as the unknown token, and a sentence that is longer than a row as several rows, so each word has a label.
    Only the first tokens of a word that is longer than a row are read.
    """

    config: TaggingConfig
    name: ClassVar[str] = "tagging"
    # A causal decoder would label a word without the words after it.
    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    instead: ClassVar[str] = (
        "a decoder or an encoder-decoder can write the labels of a sentence as a text (--objective=seq2seq, with "
        "sentences as sources and their labels as targets)"
    )
    heads: ClassVar[tuple[str, ...]] = ("tagger",)
    columns: ClassVar[tuple[Column, ...]] = (Column(WORDS, "words"), Column(TAGS, "strings", classes=()))
    gold: ClassVar[tuple[str, ...]] = (TAGS,)
    learned: ClassVar[tuple[str, ...]] = ("labels",)
    recipe: ClassVar[Mapping[str, Any]] = Classification.recipe

    @classmethod
    def learn(cls, config: TaggingConfig, stores: Sequence[Store]) -> TaggingConfig:
        """Returns the settings with the labels of the training data; whole numbers are sorted as numbers.

        Raises:
            DataError: there are fewer than two labels.
        """
        if config.labels:
            return config
        found = {tag for store in stores for i in range(store.num_documents) for tag in store.value(i, TAGS)}
        if len(found) < 2:
            said = f"the only tag of all words is {min(found)!r}" if found else "no word has a tag"
            raise DataError(f"--data: {said}; give words of two tags or more")
        return config.with_fields({"labels": in_order(found)})

    @classmethod
    def known_columns(cls, config: TaggingConfig) -> tuple[Column, ...]:
        """Returns the columns; if the labels are known, a record with another label is refused."""
        return (cls.columns[0], cls.columns[1]._replace(classes=config.labels))

    @classmethod
    def record_format(cls, config: TaggingConfig) -> RecordFormat:
        """Returns JSON records and CoNLL files, whose tags are checked."""
        return TaggedWords(config.scheme, config.repair)

    @classmethod
    def model_fields(cls, config: TaggingConfig) -> dict[str, Any]:
        """Returns the number of classes of the head."""
        return {"head.labels": len(config.labels)} if config.labels else {}

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Returns the number of each label."""
        return {label: number for number, label in enumerate(self.config.labels)}

    @property
    def marks_entities(self) -> bool:
        """Returns whether the labels mark entities."""
        return mark_entities(self.config.labels)

    def rows(self, store: Store, seed: int) -> RecordRows:
        """Returns the rows of all sentences; a sentence that is longer than a row has several."""
        del seed
        room = self._room(self.form, self.length)
        sizes = (np.maximum(np.diff(store.segments(i)), 1).tolist() for i in range(store.num_documents))
        counts = np.array([len(windows(each, room, self.config.overlap)) for each in sizes])
        return RecordRows(store, self, counts)

    def _room(self, form: PromptFormat, length: int) -> int:
        """Returns the most tokens of words in a row."""
        return max(1, length - len(form.before) - len(form.after))

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns the features of `text_row` and `word_ids`, int32 `[length]`.

        `word_ids` are at each token of a word that is labelled in the row its number from 1, and 0 elsewhere.
        """
        t, room = self.tokenizer, self._room(form, length)
        unknown = np.array([t.role_ids.get("unk", t.pad_id)], np.int32)
        words = [ids if len(ids) else unknown for ids in record.texts[WORDS]]
        rows = []
        for window in windows([len(ids) for ids in words], room, self.config.overlap):
            there = range(window.first, window.last)
            own = [i + 1 if window.begin <= i < window.end else 0 for i in there]
            ids = np.concatenate([np.zeros(0, np.int32), *(words[i] for i in there)])[:room]
            numbers = np.repeat(own, [len(words[i]) for i in there])[:room] if own else own
            row = text_row(form, [ids], end_id=(form.after or unknown)[0], length=length, pad_id=t.pad_id)
            rows.append(row | {WORD_IDS: pad(np.concatenate([np.zeros(len(form.before)), numbers])[:length], length)})
        return rows

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns at each token the number of its word's label and whether it counts, int32 and float32 `[length]`."""
        labels = np.array([0, *(self.numbers[tag] for tag in record.values[TAGS])], np.int32)
        found = []
        for row in rows:
            numbers = row[WORD_IDS]
            counted = numbers > 0 if self.config.subwords == "all" else _begins(numbers)
            found.append({"labels": labels[numbers] * counted, "label_weights": counted.astype(np.float32)})
        return found

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of labelled tokens."""
        return {self.name: jnp.sum(batch["label_weights"])}

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the cross-entropy sums over the labelled tokens; label smoothing spreads over the labels."""
        logits = forward.head("tagger", forward.hidden)
        return {self.name: class_loss(logits, batch["labels"], batch["label_weights"], forward.penalties)}

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the sums over the labelled tokens."""
        first, second = (each.head("tagger", each.hidden) for each in (forward, other))
        return {self.name: class_divergence(first, second, batch["label_weights"], measure)}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the log-probabilities of the labels at each token, `[batch, length, labels]`."""
        del batch
        return {"log_probs": jax.nn.log_softmax(forward.head("tagger", forward.hidden).astype(jnp.float32))}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the likeliest label of each word and its probability, and the entities if labels mark entities.

        An entity has its type, the numbers (from 0) of its first word and of the word after its last one, and the mean
        probability of its labels.
        """
        del record
        log_probs = [output["log_probs"] for output in outputs]
        begins = [_begins(row[WORD_IDS])[: len(each)] for row, each in zip(rows, log_probs, strict=True)]
        found = np.concatenate([each[at] for each, at in zip(log_probs, begins, strict=True)])
        scores = np.exp(found.max(axis=-1)).tolist()
        tags = [self.config.labels[i] for i in found.argmax(axis=-1)]
        prediction: Prediction = {"tags": tags, "scores": scores}
        if self.marks_entities:
            prediction["entities"] = [
                {**each._asdict(), "score": float(np.mean(scores[each.start : each.end]))} for each in entities(tags)
            ]
        return prediction

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the labels of the words, separated by spaces."""
        return " ".join(prediction["tags"])


def _begins(numbers: np.ndarray) -> np.ndarray:
    """Returns whether the first token of a word is at each position, from the number of the word there, or 0."""
    return (numbers > 0) & (np.diff(numbers, prepend=0) != 0)
