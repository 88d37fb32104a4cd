"""Negative controls: data from which a part of what could be learned is removed, so that a real effect disappears.

| control | what is changed | what stays |
|---|---|---|
| shuffled_tokens | the order of the tokens in each document, in training and held-out data | which tokens it has |
| shuffled_labels | which label each training record has | the texts, the number of each label, the held-out data |

A difference between two arms that is as large under a control is not an effect of what the control removes. The control
for labels is that of Zhang et al. 2017, arXiv:1611.03530, section 2.2.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.errors import FlagError
from lmjax.streams import random_stream

Control = Literal["none", "shuffled_tokens", "shuffled_labels"]


def check_control(control: Control, objective: str, columns: Sequence[Column]) -> None:
    """Raises FlagError if a control has no meaning for an objective.

    Args:
        control: the control.
        objective: its name.
        columns: of its records; empty: it reads running text or pairs.
    """
    words = any(column.type == "words" for column in columns)
    values = [column for column in columns if not column.tokenised]
    # A label is one of several classes, or a number; other values, such as answers, belong to the text of their record.
    labels = all(column.classes is not None or column.type in ("number", "integer") for column in values)
    if control == "shuffled_tokens" and (words or not labels):
        raise FlagError(
            f"--config.data.control={control}: {objective} needs each token where it stands in its record; the control "
            "is for objectives on running text, pairs, and texts with a label"
        )
    if control == "shuffled_labels" and (words or not values or not labels or any(c.optional for c in values)):
        raise FlagError(
            f"--config.data.control={control}: {objective} has no label of a whole record that could be exchanged; "
            "take shuffled_tokens, or a task such as classification"
        )


class ShuffledTokens(Encoder):
    """Encodes documents as another encoder does, and permutes the tokens of each; of pairs and records, each text's."""

    def __init__(self, encoder: Encoder, seed: int):
        """Takes the encoder, and the seed of the permutations."""
        super().__init__(encoder.tokenizer)
        self._encoder, self._seed = encoder, seed
        self.columns = encoder.columns

    @property
    def parts(self) -> dict:
        """Returns what changes the tokens."""
        return self._encoder.parts | {"control": ["shuffled_tokens", self._seed]}

    def __call__(self, documents: list[Document]) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
        """Yields what the other encoder yields, with each document's tokens in another order."""
        for document, ids, ends in self._encoder(documents):
            # The document decides the order, so that it is the same in whichever set and at whichever place it is.
            random = random_stream(self._seed, "tokens of a control", document.group)
            cuts = ends[:-1] if document.pair or document.counts else []
            yield document, np.concatenate([random.permutation(part) for part in np.split(ids, cuts)]), ends


def shuffled_labels(read: Callable[[], Iterator[Document]], name: str, seed: int) -> Callable[[], Iterator[Document]]:
    """Returns a function that reads the same documents with their values exchanged between them.

    Args:
        read: reads the documents from the beginning.
        name: of the data set.
        seed: decides who gets whose values.
    """

    def exchanged() -> Iterator[Document]:
        values = [document.values for document in read()]
        order = random_stream(seed, "labels of a control", name).permutation(len(values))
        for document, other in zip(read(), order.tolist(), strict=True):
            yield document._replace(values=values[other])

    return exchanged
