"""Labels of texts: those that a classifier was trained on, or any labels by a model of entailment."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.predict import row_outputs
from lmjax.objectives.base import Batch, Forward
from lmjax.objectives.classification import Classification
from lmjax.objectives.text_task import SECOND, TEXT
from lmjax.pipelines.base import Pipeline, check_texts, softmax


class TextClassification(Pipeline):
    """The label of each text, or of each pair {"text", "text_pair"}, and its score."""

    def check(self) -> None:
        """Raises FlagError unless the model is a classifier."""
        self.need_task(Classification.name)

    def __call__(self, inputs: Any, *, top_k: int | None = 1) -> Any:
        """Returns a list of {"label", "score"}, the likeliest first.

        For a list of inputs, with `top_k=1`, each has one of them; otherwise each has a list.

        Args:
            inputs: a text, a pair, or a list of them.
            top_k: labels of each input; None: all.
        """
        several = isinstance(inputs, Sequence) and not isinstance(inputs, str | Mapping)
        found = self.results(list(inputs) if several else [inputs], top_k=top_k)
        if not several:
            return found[0]
        return [each[0] for each in found] if top_k == 1 else found

    def results(self, inputs: list[Any], *, top_k: int | None = 1) -> list[list[dict[str, Any]]]:
        """Returns for each input its `top_k` labels."""
        records = []
        for i, given in enumerate(inputs):
            pair = given if isinstance(given, Mapping) else {"text": given}
            check_texts(
                [pair.get("text"), pair.get("text_pair", "")], f"a text or {{'text', 'text_pair'}} in inputs[{i}]"
            )
            records.append({TEXT: pair["text"], SECOND: pair.get("text_pair", "")})
        found = []
        for prediction in self.predicted(records):
            scores = prediction["scores"]
            ranked = sorted(scores, key=lambda label, scores=scores: -scores[label])
            shown = self.loaded.shown
            found.append([{"label": shown.get(label, label), "score": scores[label]} for label in ranked[:top_k]])
        return found


class ZeroShotClassification(Pipeline):
    """Any labels for a text, by a classifier of entailment (Yin et al. 2019, arXiv:1909.00161, section 4.2).

    Each label becomes a hypothesis such as "This example is about sport.", and its score is how likely the text entails
    it.
    """

    def check(self) -> None:
        """Raises FlagError unless the model is a classifier with a label for entailment."""
        self.need_task(Classification.name)
        self._entailment()

    def _entailment(self) -> int:
        labels = self.loaded.task.config.labels
        found = [i for i, label in enumerate(labels) if label.lower().startswith("entail")]
        if not found:
            raise FlagError(
                f"zero-shot-classification needs a classifier with a label 'entailment', and this one has "
                f"{', '.join(labels)}"
            )
        return found[0]

    def results(
        self,
        inputs: list[str],
        *,
        candidate_labels: Sequence[str] | str,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
    ) -> list[dict[str, Any]]:
        """Returns for each text {"sequence", "labels", "scores"}, the likeliest label first.

        Args:
            inputs: the texts.
            candidate_labels: the labels, a list or one text that separates them by commas.
            hypothesis_template: the hypothesis, with {} for the label.
            multi_label: whether several labels can be right; each is then compared with contradiction alone.
        """
        check_texts(inputs)
        labels = candidate_labels
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not labels or hypothesis_template.format("x") == hypothesis_template:
            raise FlagError(
                f"candidate_labels={candidate_labels!r} and hypothesis_template={hypothesis_template!r}: give one "
                "label at least, and {} in the template"
            )
        records = [{TEXT: text, SECOND: hypothesis_template.format(label)} for text in inputs for label in labels]
        logits = self._logits(records).reshape(len(inputs), len(labels), -1)
        at = self._entailment()
        if multi_label or len(labels) == 1:
            contradiction = -1 if at == 0 else 0
            scores = softmax(logits[..., [contradiction, at]])[..., 1]
        else:
            scores = softmax(logits[..., at])
        found = []
        for text, each in zip(inputs, scores, strict=True):
            order = np.argsort(-each, kind="stable")
            found.append({"sequence": text, "labels": [labels[i] for i in order], "scores": each[order].tolist()})
        return found

    def _logits(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Returns the classifier's logits `[records, labels]`."""
        loaded, task = self.loaded, self._task
        documents = as_documents(records, loaded.task, gold=False)
        rows = [task.reads(x, loaded.prompts, task.length)[0] for x in encoded(loaded, documents, gold=False)]
        with loaded.on_devices():
            found = row_outputs(
                task, rows, loaded.model, loaded.params, mesh=loaded.mesh, batch_size=self.size(len(rows))
            )
        return np.array([each["logits"] for each in found])

    @functools.cached_property
    def _task(self) -> _Logits:
        """Returns the task with logits as outputs; one object, so that compiled programs are used again."""
        own = self.loaded.task
        return _Logits(**{field.name: getattr(own, field.name) for field in dataclasses.fields(own)})


@dataclasses.dataclass(frozen=True)
class _Logits(Classification):
    """A classifier whose outputs are its logits, which can be compared between rows; log-probabilities cannot."""

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the logits `[batch, labels]`."""
        del batch
        return {"logits": forward.head(self.heads[0], forward.hidden).astype("float32")}
