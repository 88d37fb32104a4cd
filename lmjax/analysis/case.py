"""What a page explains: a row that a model reads, and what was given beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.analysis.attention import self_weights, tokens_of
from lmjax.analysis.attribution import AttributionConfig
from lmjax.analysis.subject import Subject
from lmjax.analysis.values import HIDDEN, VECTOR
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel


class Push(NamedTuple):
    """A direction by which a model is steered.

    Attributes:
        name: the activation that it is added to.
        vector: float32 `[embed]`.
        strengths: by which it is multiplied, one after the other.
        prompt: what a model that generates continues; empty: it generates nothing.
        max_new_tokens: of what it generates.
    """

    name: str
    vector: np.ndarray
    strengths: Sequence[float]
    prompt: str = ""
    max_new_tokens: int = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """What is explained.

    Attributes:
        loaded: the model.
        fields: of the row that it reads, `[1, length]` each.
        subjects: numbers of its output for this row, such as one for each token of a sentence; empty: the model
            predicts nothing.
        config: settings of attributions.
        corrupted: the row for patching; None: none was given.
        judged: whether attributions are judged.
        texts: that train a tuned lens, as ids; empty: none were given.
        steps: of training it.
        push: of steering; None: it was not given.
    """

    loaded: LoadedModel
    fields: Mapping[str, np.ndarray]
    subjects: Sequence[Subject]
    config: AttributionConfig
    corrupted: Subject | None = None
    judged: bool = False
    texts: Sequence[Sequence[int]] = ()
    steps: int = 250
    push: Push | None = None

    @property
    def subject(self) -> Subject:
        """Returns the first subject; raises FlagError if there is none."""
        if not self.subjects:
            family = self.loaded.config.family.label
            raise FlagError(
                f"--method: this {family} predicts nothing for this text; compare it with another text "
                "(--compare=TEXT), or look at --method=attention,rollout,flow"
            )
        return self.subjects[0]

    def tokens(self, prefix: str) -> list[str]:
        """Returns the tokens of a side, without padding."""
        return tokens_of(self.loaded, self.fields, prefix)

    def weights(self, prefix: str) -> np.ndarray:
        """Returns `[layers, heads, queries, keys]`, the probabilities of the self-attention of a side."""
        return self_weights(self.loaded, self.fields, prefix)


def unit_of(subject: Subject) -> str:
    """Returns the unit of a subject's number in words."""
    if subject.ask.kind in (VECTOR, HIDDEN):
        return "cosine"
    return "difference of logits" if int(subject.ask.against) >= 0 else subject.ask.unit
