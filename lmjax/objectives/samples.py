"""What an objective shows of a trained model: a held-out text, what the model is given of it, what it makes of it."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary

WORDS = 48


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row for a model, and how it is printed with what the model makes of it.

    Attributes:
        shown: lines that are printed above.
        ids: what the model is given, without what its prompt format puts around it.
        answer: from the ids that the model wrote, or filled in, to the lines that are printed below.
        count: the most tokens that are written; 0: masks are filled in.
        sampled: whether tokens are drawn; else the likeliest one is written at each step.
    """

    shown: str
    ids: tuple[int, ...]
    answer: Callable[[Sequence[int]], str]
    count: int = 0
    sampled: bool = False


def framed(title: str, text: str) -> str:
    """Returns a title and, below it, a text whose lines are set off."""
    return f"{title}\n{textwrap.indent(text, '  | ', lambda line: True)}"


def long_document(store: Store) -> int:
    """Returns the first document that is long enough to show a sample, or else the longest."""
    return int(np.argmax(store.lengths >= min(WORDS, store.lengths.max())))


def beginning(store: Store, room: int) -> np.ndarray:
    """Returns int32 tokens of a document's beginning: a third of a row of `room`, for the model writes behind it."""
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
