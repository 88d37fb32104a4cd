"""The base class of position schemes, which itself is the scheme "none"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

import jax

from lmjax.model.positions.by_distance import ByDistance

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig

# A function from the positions of queries, `[batch or 1, queries]`, and of keys, `[batch or 1, keys]` (None: they are
# the tokens of one row), to the bias on attention scores, float32 `[batch or 1, heads, queries, keys]`, or None. Where
# the mesh axis `sequence` splits rows, the bias between the tokens of one row may be a ByDistance.
Bias = Callable[[jax.Array, jax.Array | None], jax.Array | ByDistance | None]


class Turns(Protocol):
    """How a scheme changes queries or keys at given positions; a pytree."""

    def turn(self, x: jax.Array) -> jax.Array:
        """Returns queries or keys `x` `[batch, length, heads, head_dim]`, changed by their positions."""


class Scheme:
    """How a model gets the order of tokens. This base class gives no positions; only a causal mask depends on order.

    Attributes:
        table: whether the scheme has a table with a row for each of `max_length` positions.
        counts_heads: whether what it does in a head depends on the number of heads.
        fields: names of the config fields that only this scheme reads.
    """

    table: ClassVar[bool] = False
    counts_heads: ClassVar[bool] = False
    fields: ClassVar[tuple[str, ...]] = ()

    def problems(self, config: ModelConfig, used: bool) -> tuple[tuple[bool, str], ...]:
        """Returns the rules on its fields as (whether it is broken, error message).

        Args:
            config: of the model.
            used: whether the model has this scheme; if not, its fields should have their defaults.
        """
        del config, used
        return ()

    def remark(self, config: ModelConfig) -> str:
        """Returns what speaks against the config when a model begins to learn, with a remedy; empty: nothing."""
        del config
        return ""

    def limit(self, config: ModelConfig) -> int | None:
        """Returns the most tokens of a row in generation; None: any number."""
        del config
        return None

    def steady(self, config: ModelConfig) -> int:
        """Returns the length up to which rows can be padded without a change of the result.

        This is `max_length` unless the scheme depends on the length of a row.
        """
        return config.max_length

    def embed(self, config: ModelConfig, positions: jax.Array) -> jax.Array | None:
        """Returns `[batch or 1, length, table width]`, to be added to the token embeddings; None: nothing.

        Called in a compact method of the module that owns the scheme's parameters.
        """
        del config, positions
        return None

    def per_layer(self, config: ModelConfig) -> bool:
        """Returns whether each layer has its own bias, instead of one for all layers of a stack."""
        del config
        return False

    def bias(self, config: ModelConfig, name: str, *, causal: bool) -> Bias:
        """Returns a function from positions to the bias on attention scores.

        Called in a compact method of the module that owns the scheme's parameters.

        Args:
            config: of the model.
            name: of the parameters.
            causal: whether queries attend only to themselves and to earlier keys.
        """
        del config, name, causal
        return lambda queries, keys=None: None

    def turns(
        self, config: ModelConfig, positions: jax.Array, *, local: bool = False, length: int | None = None
    ) -> Turns | None:
        """Returns the change of queries or keys at the given positions; None: no change.

        Args:
            config: of the model.
            positions: `[batch or 1, length]`, counted from the start of each segment.
            local: for a layer with a window.
            length: of the row in tokens; None: the number of positions.
        """
        del config, positions, local, length
        return None
