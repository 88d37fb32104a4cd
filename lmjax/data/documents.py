"""The unit that all sources give: a document."""

from typing import Any, NamedTuple


class Document(NamedTuple):
    """A text in sentences, a pair of texts, or a record of named columns.

    Attributes:
      segments: the sentences, which joined are the text exactly; of a pair, its source and its target; of a
        record, the texts of its tokenised columns, one after the other.
      group: documents of one group stay on one side of the held-out split.
      pair: whether the segments are a source and a target.
      counts: of a record, how many segments each tokenised column has.
      values: of a record, what its other columns hold.
    """

    segments: tuple[str, ...]
    group: str
    pair: bool = False
    counts: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        """The running text; of a pair or a record, its texts with line feeds between them."""
        return "\n".join(self.segments) if self.pair or self.counts else "".join(self.segments)
