"""The document: what all readers of data return, and what stores consist of."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Document(NamedTuple):
    """A text split into sentences, a pair of texts, or a record of named columns.

    Attributes:
        segments: the sentences, whose concatenation is exactly the text; of a pair, the source and the target; of a
            record, the texts of its tokenised columns, one column after the other.
        group: all documents of one group are either training or held-out documents.
        pair: whether the segments are a source and a target.
        counts: of a record, the number of segments of each tokenised column.
        values: of a record, the values of its other columns.
        running: of a record, whether the segments of each tokenised column are parts of one running text, and are
            encoded together; otherwise each segment is encoded by itself.
    """

    segments: tuple[str, ...]
    group: str
    pair: bool = False
    counts: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()
    running: tuple[bool, ...] = ()

    @property
    def text(self) -> str:
        """Returns the running text; of a pair or a record, its texts separated by line feeds."""
        return "\n".join(self.segments) if self.pair or self.counts else "".join(self.segments)


def spaced(words: Sequence[str]) -> tuple[str, ...]:
    """Returns words as segments of a running text: from the second on with a space before each."""
    return tuple(f" {word}" if number else word for number, word in enumerate(words))


def unspaced(segments: Sequence[str]) -> list[str]:
    """Returns the words whose segments `spaced` returns."""
    return [segment[1:] if number else segment for number, segment in enumerate(segments)]
