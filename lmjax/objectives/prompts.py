"""Prompt formats: the tokens around a text in a model's rows, as its objective or its checkpoint defines them."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """The tokens around a text in the rows that a model was trained on, and the rules for generated tokens.

    Attributes:
        before: ids before a text.
        after: ids after it; in a decoder trained on (source, target) rows, the prompt ends with them.
        between: ids between the two texts of a pair; None: those after a text, or EOS if there are none.
        second_type: type id of the second text of a pair and of what follows it.
        start: the first input ids of an encoder-decoder's decoder.
        forced: the first ids that it generates, whatever its logits, such as the target's language; empty for a
            decoder-only model.
        stop: ids that end the generated text.
        never: ids that are never generated: they are not text, or the tokenizer does not have them.
        never_first: ids that are not generated as the first token after the forced ones.
        never_words: sequences of several ids that are never generated.
        last: at the length limit one of these ids is generated, whatever the logits.
        chat: whether a text is a message of the user, which the chat template of the tokenizer puts before an answer.
        bidirectional: whether a decoder's prompt is a prefix in which every token attends to every other (prefix
            language models).
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    between: tuple[int, ...] | None = None
    second_type: int = 1
    start: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    never_words: tuple[tuple[int, ...], ...] = ()
    last: tuple[int, ...] = ()
    chat: bool = False
    bidirectional: bool = False

    def around(self, ids: Sequence[int]) -> list[int]:
        """Returns the ids of a text with `before` and `after` around them."""
        return [*self.before, *ids, *self.after]
