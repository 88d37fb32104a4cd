"""Samples, which show what a trained model does: the input made from a held-out text, and how to print the output."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary

WORDS = 48


@dataclasses.dataclass(frozen=True)
class Sample:
    """An input for a model, and how to print it together with the model's output.

    Attributes:
        shown: lines to print before the output.
        ids: the input, without the tokens that the prompt format adds around it.
        answer: makes the lines to print from the ids that the model generated or filled in.
        count: the most tokens to generate; 0: the masks in `ids` are filled in instead.
        sampled: whether tokens are sampled; otherwise the most likely token is taken at each step.
    """

    shown: str
    ids: tuple[int, ...]
    answer: Callable[[Sequence[int]], str]
    count: int = 0
    sampled: bool = False


def framed(title: str, text: str) -> str:
    """Returns a title and, below it, a text with a mark at the beginning of each line."""
    return f"{title}\n{textwrap.indent(text, '  | ', lambda line: True)}"


def long_document(store: Store) -> int:
    """Returns the number of the first document of at least `WORDS` tokens, or else of the longest document."""
    return int(np.argmax(store.lengths >= min(WORDS, store.lengths.max())))


def beginning(store: Store, room: int) -> np.ndarray:
    """Returns the first tokens of a document, int32: at most a third of `room`, to leave space for generated tokens."""
    document = long_document(store)
    return store.tokens(document, 0, min(WORDS, int(store.lengths[document]), max(4, room // 3)))


def continuation(tokens: np.ndarray, tokenizer: Vocabulary, *, sampled: bool) -> Sample:
    """Returns a sample that shows how a model continues the first third of `tokens`."""
    prompt = tokens[: max(1, len(tokens) // 3)].tolist()
    return Sample(
        framed("a held-out prompt:", tokenizer.decode(prompt)),
        tuple(prompt),
        lambda ids: framed("continued:", tokenizer.decode(ids)),
        count=2 * WORDS,
        sampled=sampled,
    )
