"""The unit that all sources give: a document."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text in sentences, or a pair of texts.

    Attributes:
      segments: the sentences, which joined are the text exactly; of a pair, its source and its target.
      group: documents of one group stay on one side of the held-out split.
      pair: whether the segments are a source and a target.
    """

    segments: tuple[str, ...]
    group: str
    pair: bool = False

    @property
    def text(self) -> str:
        """The running text; of a pair, the source, a line feed and the target."""
        return "\n".join(self.segments) if self.pair else "".join(self.segments)
