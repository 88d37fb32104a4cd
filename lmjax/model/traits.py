"""The families of models and their traits; code elsewhere reads these traits instead of comparing a family's name."""

import dataclasses
from typing import NamedTuple


class Side(NamedTuple):
    """An encoder or a decoder: a stack of layers with its own input embeddings.

    Attributes:
        prefix: with which the names of its fields in a batch begin.
        causal: whether a token attends only to itself and to earlier tokens of its segment.
    """

    prefix: str
    causal: bool


@dataclasses.dataclass(frozen=True)
class Family:
    """The traits that all models of a family share.

    Attributes:
        label: the family's name in messages.
        sides: its encoder, decoder or both; the last one predicts, and has cross-attention to the one before it.
        vocabulary_heads: the heads that give it vocabulary logits; empty: it has these logits if no head is named.
        token_types: whether its inputs may have token types.
    """

    label: str
    sides: tuple[Side, ...]
    vocabulary_heads: tuple[str, ...]
    token_types: bool = True

    @property
    def paired(self) -> bool:
        """Whether an encoder reads a source and a decoder predicts a target, in separate rows."""
        return len(self.sides) > 1

    @property
    def causal(self) -> bool:
        """Whether each token is predicted from the tokens before it, so that the model can generate text."""
        return self.sides[-1].causal

    @property
    def continues(self) -> bool:
        """Whether generated tokens continue the row that the model has read."""
        return self.causal and not self.paired

    @property
    def predicts(self) -> str:
        """The prefix of the fields of the decoder, or of the encoder if there is no decoder."""
        return self.sides[-1].prefix


FAMILIES = {
    "encoder": Family("encoder", (Side("", False),), ("masked_lm",)),
    "decoder": Family("decoder", (Side("", True),), ()),
    "encoder_decoder": Family(
        "encoder-decoder",
        (Side("encoder_", False), Side("decoder_", True)),
        (),
        token_types=False,
    ),
}
