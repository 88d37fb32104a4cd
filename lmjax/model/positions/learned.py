"""Learned positions: a vector for each position (Gehring et al. 2017, arXiv:1705.03122, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import jax

from lmjax.errors import FlagError
from lmjax.model.layers import Embed
from lmjax.model.positions.scheme import Scheme

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig


class Learned(Scheme):
    """A table of vectors that are added to the token embeddings."""

    table: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("position_offset",)

    def problems(self, config: ModelConfig, used: bool) -> tuple[tuple[bool, str], ...]:
        """Returns the rule on unused rows."""
        return (
            (
                config.position_offset > 0 and not used,
                f"position_offset={config.position_offset} is for learned positions; with positions={config.positions}"
                " set position_offset=0",
            ),
        )

    def limit(self, config: ModelConfig) -> int:
        """Returns the rows of the table."""
        return config.max_length

    def embed(self, config: ModelConfig, positions: jax.Array) -> jax.Array:
        """Returns `[batch or 1, length, table width]`; raises FlagError for more positions than the table has rows."""
        if positions.shape[1] > config.max_length:
            raise FlagError(
                f"rows of {positions.shape[1]} tokens are longer than the learned position table with"
                f" max_length={config.max_length}; raise max_length or shorten the rows"
            )
        table = Embed(config, config.max_length + config.position_offset, "positions", name="positions")
        return table(positions + config.position_offset)
