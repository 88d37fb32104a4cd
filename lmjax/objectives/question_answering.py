"""Question answering: the part of a text that answers a question (Devlin et al. 2019, section 4.2)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.questions import ANSWERS, CONTEXT, ID, QUESTION, STARTS, Questions
from lmjax.data.record_format import RecordFormat
from lmjax.data.store import Store
from lmjax.objectives.answer_spans import Candidate, best_spans, spans_of
from lmjax.objectives.base import Batch, Features, Forward, ObjectiveConfig
from lmjax.objectives.classification import Classification
from lmjax.objectives.divergences import Measure, class_divergence
from lmjax.objectives.losses import class_loss
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordRows, RecordTask, TokenRecord
from lmjax.objectives.rows import pad
from lmjax.objectives.sums import LossSum

CONTEXT_IDS = "context_ids"
# The logit of a position that cannot be an answer.
_NEVER = -1e9


class QuestionAnsweringConfig(ObjectiveConfig):
    """Settings of the question_answering objective."""

    no_answer: bool = Field(False, description="whether a context may leave a question without answer, as in SQuAD 2.0")
    threshold: float = Field(
        0.0, description="with no_answer, none is predicted if its score is so much above that of the best answer"
    )
    overlap: int = Field(128, ge=0, description="tokens that adjacent rows of a context longer than a row share")
    max_question: int = Field(64, ge=1, description="tokens of a question that are read")
    max_answer: int = Field(30, ge=1, description="most tokens of a predicted answer")
    candidates: int = Field(5, ge=1, description="answers that a prediction lists, the best first")

    @model_validator(mode="after")
    def _used(self) -> "QuestionAnsweringConfig":
        if self.threshold and not self.no_answer:
            raise ValueError(f"threshold={self.threshold}: is for no_answer=true; set that too, or leave it out")
        return self


def windows(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Returns the first token of each row of a context and the token after its last one.

    Args:
        tokens: of the context.
        room: the most tokens of a context in a row.
        overlap: tokens that adjacent rows share; at most half of `room`.
    """
    if tokens <= room:
        return [(0, tokens)]
    overlap = min(overlap, room // 2)
    return [(first, min(first + room, tokens)) for first in range(0, tokens - overlap, room - overlap)]


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(RecordTask):
    """Predicts where in a context the answer to a question begins and ends.

    A row is [CLS] question [SEP] context [SEP], with type 1 from the context on. A context that is longer has several
    rows. The start and the end are chosen among the tokens of the context and [CLS], at which both are in rows without
    the answer.
    """

    config: QuestionAnsweringConfig
    name: ClassVar[str] = "question_answering"
    # A causal decoder would judge the start of an answer without the words after it.
    architectures: ClassVar[tuple[str, ...]] = ("encoder",)
    instead: ClassVar[str] = (
        "a decoder or an encoder-decoder can write the answer as a text (--objective=seq2seq, with questions and "
        "contexts as sources)"
    )
    heads: ClassVar[tuple[str, ...]] = ("span",)
    # The context is the first column, so that questions about one context are not divided among training and held-out
    # data. It is kept as text, because answers are given by their characters.
    columns: ClassVar[tuple[Column, ...]] = (
        Column(CONTEXT, "string"),
        Column(QUESTION),
        Column(ID, "string", optional=True),
        Column(ANSWERS, "strings"),
        Column(STARTS, "integers"),
    )
    gold: ClassVar[tuple[str, ...]] = (ANSWERS, STARTS)
    recipe: ClassVar[Mapping[str, Any]] = Classification.recipe

    @classmethod
    def record_format(cls, config: QuestionAnsweringConfig) -> RecordFormat:
        """Returns files of SQuAD and flat records, whose answers are checked."""
        return Questions(config.no_answer)

    @classmethod
    def running_text(cls, config: QuestionAnsweringConfig, document: Document) -> str:
        """Returns the context and the question."""
        del config
        return f"{document.values[0]}\n{document.text}"

    @classmethod
    def penalised_by(cls, config: QuestionAnsweringConfig) -> tuple[str, ...]:
        """Returns no label smoothing: it would spread over the positions that no answer can have."""
        del config
        return ("z_loss", "r_drop")

    @functools.cached_property
    def _contexts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns the contexts that were tokenised last."""
        return {}

    def _located(self, record: TokenRecord) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of the context of a record and the characters at which its tokens begin."""
        text, kept = str(record.values[CONTEXT]), self._contexts
        if text not in kept:
            if len(kept) >= 1024:
                kept.clear()
            kept[text] = self.tokenizer.locate_batch([text])[0]
        return kept[text]

    def rows(self, store: Store, seed: int) -> RecordRows:
        """Returns the rows of all records; a context that is longer than a row has several."""
        del seed
        records = (TokenRecord.stored(store, i) for i in range(store.num_documents))
        counts = [len(self._windows(record, self.form, self.length)[1]) for record in records]
        return RecordRows(store, self, np.array(counts))

    def _between(self, form: PromptFormat) -> tuple[int, ...]:
        """Returns the ids between a question and its context."""
        return (form.after or (self.tokenizer.eos_id,)) if form.between is None else form.between

    def _windows(
        self, record: TokenRecord, form: PromptFormat, length: int
    ) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Returns the ids of a question that are read, and the rows of its context."""
        room = max(2, length - len(form.before) - len(self._between(form)) - len(form.after))
        # At least half of the row is for the context.
        question = record.texts[QUESTION][0][: min(self.config.max_question, room // 2)]
        return question, windows(len(self._located(record)[0]), room - len(question), self.config.overlap)

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns the features of `text_row` and `context_ids`, int32 `[length]`.

        `context_ids` are at each token of the context its number from 1, and 0 elsewhere.
        """
        ids, _ = self._located(record)
        question, parts = self._windows(record, form, length)
        between = self._between(form)
        before = np.zeros(len(form.before) + len(question) + len(between))
        rows = []
        for first, end in parts:
            texts = [question, ids[first:end]]
            row = self.text_row(form, texts, length)
            numbers = np.concatenate([before, np.arange(first, end) + 1])[:length]
            rows.append(row | {CONTEXT_IDS: pad(numbers, length)})
        return rows

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the positions of the first and last token of the first answer, and the weight 1, as scalars.

        In a row that does not contain the whole answer both are 0.
        """
        answers, tokens, span = record.values[ANSWERS], self._located(record)[1], (-1, -1)
        if answers and len(tokens):
            begin = record.values[STARTS][0]
            span = spans_of(tokens, begin, begin + len(answers[0]))
        found = []
        for row in rows:
            at = [np.flatnonzero(row[CONTEXT_IDS] == token + 1) if token >= 0 else [] for token in span]
            first, last = (int(each[0]) for each in at) if all(map(len, at)) else (0, 0)
            found.append({"first": np.int32(first), "last": np.int32(last), "span_weights": np.float32(1)})
        return found

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of rows."""
        return {self.name: jnp.sum(batch["span_weights"])}

    def _logits(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of start and end, `[batch, length]`, with `_NEVER` where no answer can be."""
        positions = jax.lax.broadcasted_iota(jnp.int32, batch[CONTEXT_IDS].shape, 1)
        allowed = (batch[CONTEXT_IDS] > 0) | (positions == 0)
        start, end = forward.head("span", forward.hidden)
        return tuple(jnp.where(allowed, x.astype(jnp.float32), _NEVER) for x in (start, end))

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the mean of the cross-entropy sums of start and end over the rows; labels are not smoothed."""
        penalties, half = forward.penalties.replace(label_smoothing=None), batch["span_weights"] / 2
        start, end = self._logits(forward, batch)
        return {self.name: class_loss(start, batch["first"], half, penalties)
                + class_loss(end, batch["last"], half, penalties)}  # fmt: skip

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns the mean of the sums of start and end over the rows."""
        pairs = zip(self._logits(forward, batch), self._logits(other, batch), strict=True)
        return {self.name: sum(class_divergence(one, two, batch["span_weights"] / 2, measure) for one, two in pairs)}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the logits of start and end, `[batch, length]`."""
        return dict(zip(("start", "end"), self._logits(forward, batch), strict=True))

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the best answer over all rows: its text, its probability, and its first and last character (+ 1).

        The score of an answer is the sum of the logits of its start and end, and its probability is normalised over
        all pairs of positions of all rows, [CLS] included. The score of no answer is the lowest at [CLS] of all rows;
        `margin` is that score minus the score of the best answer. `candidates` are the best answers of different texts.
        """
        context, starts = str(record.values[CONTEXT]), self._located(record)[1]
        scores = [
            (row[CONTEXT_IDS][: len(output["start"])], output["start"], output["end"])
            for row, output in zip(rows, outputs, strict=True)
        ]
        total = sum(np.logaddexp.reduce(np.concatenate([each[side] for each in scores])) for side in (1, 2))
        nothing = min(float(start[0] + end[0]) for _, start, end in scores)
        found = best_spans(scores, context, starts, self.config.max_answer, self.config.candidates)
        empty = Candidate("", nothing, 0, 0)
        best = found[0] if found else empty
        prediction: Prediction = {}
        if self.config.no_answer and found:
            prediction["margin"] = nothing - best.score
            best = empty if nothing - best.score > self.config.threshold else best
        candidates = [{**each._asdict(), "score": float(np.exp(each.score - total))} for each in (best, *found)]
        chosen, *listed = ({"answer": each.pop("text"), **each} for each in candidates)
        return {**chosen, **prediction, "candidates": listed}

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the answer and its probability, separated by a tab."""
        return f"{prediction['answer']}\t{prediction['score']:.4f}"
