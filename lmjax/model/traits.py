"""The families of models and what tells them apart; everything outside asks these traits, never a family's name."""

import dataclasses
from typing import NamedTuple


class Side(NamedTuple):
    """A stack of layers with input embeddings of its own.

    Attributes:
        prefix: of the names of its fields in a batch.
        causal: whether a token sees its segment up to itself alone.
    """

    prefix: str
    causal: bool


@dataclasses.dataclass(frozen=True)
class Family:
    """What every model of a family has in common.

    Attributes:
        label: what messages call it.
        sides: its stacks; the last one predicts, and sees the output of one before it.
        vocabulary_heads: the heads with which it has vocabulary logits; empty: it has them where it has no head.
        token_types: whether its inputs may have token types.
    """

    label: str
    sides: tuple[Side, ...]
    vocabulary_heads: tuple[str, ...]
    token_types: bool = True

    @property
    def paired(self) -> bool:
        """Whether an encoder reads a source, and a decoder predicts a target from it, each in a row of its own."""
        return len(self.sides) > 1

    @property
    def causal(self) -> bool:
        """Whether each token is predicted from those before it, so that the model can write."""
        return self.sides[-1].causal

    @property
    def continues(self) -> bool:
        """Whether what the model writes goes on with the row that it has read."""
        return self.causal and not self.paired

    @property
    def predicts(self) -> str:
        """The prefix of the fields of the side that predicts."""
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
