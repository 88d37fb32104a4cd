"""What a position scheme says of itself; the base class is the scheme that adds nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

import jax

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig

# From the positions `[batch or 1, queries]`, and those `[batch or 1, keys]` of keys that stand elsewhere (None:
# attention within one row), to the bias on attention scores, float32 `[batch or 1, heads, queries, keys]`, or None.
Bias = Callable[[jax.Array, jax.Array | None], jax.Array | None]


class Turns(Protocol):
    """What a scheme does to queries or keys at known positions; a pytree."""

    def turn(self, x: jax.Array) -> jax.Array:
        """Returns queries or keys `[batch, length, heads, head_dim]`, changed by their positions."""


class Scheme:
    """How the order of tokens enters; here not at all, but for what a causal mask tells.

    Attributes:
        table: whether every position has a row of a table, `max_length` of them, and none beyond.
        fields: of the config, those that this scheme alone reads.
    """

    table: ClassVar[bool] = False
    fields: ClassVar[tuple[str, ...]] = ()

    def problems(self, config: ModelConfig, used: bool) -> tuple[tuple[bool, str], ...]:
        """Returns the rules on its fields as (is it broken?, what to say).

        Args:
            config: of the model.
            used: whether the model has this scheme; if not, its fields should say nothing.
        """
        del config, used
        return ()

    def limit(self, config: ModelConfig) -> int | None:
        """Returns the tokens that a row may have while it is written; None: any number."""
        del config
        return None

    def steady(self, config: ModelConfig) -> int:
        """Returns the length up to which padding a row changes nothing; `max_length` unless a scheme reads lengths."""
        return config.max_length

    def embed(self, config: ModelConfig, positions: jax.Array) -> jax.Array | None:
        """Returns what is added to the token embeddings, `[batch or 1, length, table width]`; None: nothing.

        Called by the compact module that owns its parameters.
        """
        del config, positions
        return None

    def per_layer(self, config: ModelConfig) -> bool:
        """Returns whether each layer makes a bias of its own, rather than one for all layers of a stack."""
        del config
        return False

    def bias(self, config: ModelConfig, name: str, *, causal: bool) -> Bias:
        """Returns a function from positions to the bias on attention scores.

        Called by the compact module that owns its parameters.

        Args:
            config: of the model.
            name: of the parameters.
            causal: whether only the past is seen.
        """
        del config, name, causal
        return lambda queries, keys=None: None

    def turns(
        self, config: ModelConfig, positions: jax.Array, *, local: bool = False, length: int | None = None
    ) -> Turns | None:
        """Returns what is done to queries or keys at `[batch or 1, length]` positions; None: nothing.

        Args:
            config: of the model.
            positions: where the tokens stand, counted from the start of each segment.
            local: for a layer with a window.
            length: tokens of the row; None: as many as there are positions.
        """
        del config, positions, local, length
        return None
