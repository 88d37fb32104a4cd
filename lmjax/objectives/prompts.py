"""What stands around a text in the rows of a model: said by its objective, or by the checkpoint that it comes from."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """What stands around a text in the rows that a model was trained on.

    Attributes:
        before: ids in front of a text.
        after: ids behind it; a decoder's prompt ends with them, if its rows were source and target.
        start: ids that an encoder-decoder's decoder reads first.
        forced: ids that it then writes whatever it thinks, such as the target's language; a decoder forces none.
        stop: ids that end what is written.
        never: ids that are never written: they stand for no text, or the tokenizer does not know them.
        never_first: ids that are not written first, behind those that are forced.
        never_words: several ids each, that are never written behind one another.
        last: ids of which one is written where the limit is reached, whatever the model thinks.
        bidirectional: a decoder's prompt is a prefix, all of which its tokens see (prefix language models).
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    never_words: tuple[tuple[int, ...], ...] = ()
    last: tuple[int, ...] = ()
    bidirectional: bool = False

    def around(self, ids: Sequence[int]) -> list[int]:
        """Returns the ids of a text with what stands around them."""
        return [*self.before, *ids, *self.after]
