"""Labels of the tokens of a text, and the entities that they mark."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np

from lmjax.errors import FlagError
from lmjax.objectives.tagging import Tagging
from lmjax.pipelines.base import Pipeline, check_texts, softmax


class TokenClassification(Pipeline):
    """The label of each token of a text, or the entities of labels such as B-LOC and I-LOC."""

    def check(self) -> None:
        """Raises FlagError unless the model is a tagger."""
        self.need_task(Tagging.name)

    def results(
        self,
        inputs: list[str],
        *,
        aggregation_strategy: Literal["none", "simple"] = "none",
        ignore_labels: Any = ("O",),
    ) -> list[list[dict[str, Any]]]:
        """Returns for each text the labels of its tokens, or its entities.

        Args:
            inputs: the texts.
            aggregation_strategy: none: {"entity", "score", "index", "word", "start", "end"} for each token, whose index
                counts special tokens; simple: {"entity_group", "score", "word", "start", "end"} for each entity, the
                tokens in a row with one label, apart from what is before "-"; a label B- begins a new one.
            ignore_labels: labels that are left out.
        """
        check_texts(inputs)
        if aggregation_strategy not in ("none", "simple"):
            raise FlagError(f"aggregation_strategy={aggregation_strategy!r}: choose none or simple")
        located = self.loaded.tokenizer.locate_batch(inputs)
        before = len(self.loaded.prompts.before)
        rows = [self.loaded.prompts.around(ids.tolist()) for ids, _ in located]
        labels = [self.loaded.shown.get(label, label) for label in self.loaded.task.config.labels]
        results = []
        head = Tagging.heads[0]
        for text, (ids, starts), (output, row) in zip(inputs, located, self.outputs(rows), strict=True):
            scores = softmax(output.heads[head][row, before : before + len(ids)])
            found = [
                {
                    "entity": labels[each.argmax()],
                    "score": float(each.max()),
                    "index": before + i,
                    "word": self.loaded.tokenizer.pieces[token].decode(errors="replace"),
                    "start": start,
                    "end": end,
                }
                for i, (token, (start, end), each) in enumerate(
                    zip(ids.tolist(), spans(text, starts), scores, strict=True)
                )
            ]
            if aggregation_strategy == "simple":
                results.append([e for e in _entities(text, found) if e["entity_group"] not in ignore_labels])
            else:
                results.append([each for each in found if each["entity"] not in ignore_labels])
        return results


def spans(text: str, starts: np.ndarray) -> list[tuple[int, int]]:
    """Returns the first character of each token and the one after its last, without white space on either side."""
    found = []
    for start, end in itertools.pairwise([*starts.tolist(), len(text)]):
        part = text[start:end]
        found.append(
            (start + len(part) - len(part.lstrip()), start + len(part.rstrip())) if part.strip() else (start, end)
        )
    return found


def _entities(text: str, tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the entities of labelled tokens."""
    groups: list[list[dict[str, Any]]] = []
    for token in tokens:
        begins, kind = _parts(token["entity"])
        if groups and not begins and _parts(groups[-1][-1]["entity"])[1] == kind:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        {
            "entity_group": _parts(group[0]["entity"])[1],
            "score": float(np.mean([token["score"] for token in group])),
            "word": text[group[0]["start"] : group[-1]["end"]],
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _parts(label: str) -> tuple[bool, str]:
    """Returns whether a label begins an entity, and the entity's type."""
    if label[:2] in ("B-", "I-"):
        return label[0] == "B", label[2:]
    return False, label
