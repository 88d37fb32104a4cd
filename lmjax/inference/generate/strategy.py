"""What the decode loop tells whoever chooses the next tokens, and what it gets back.

A row is what the model continues. A request has `rows` of them: one, or its beams, next to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

PyTree = Any

# In the place of an id, where none is allowed: it ends the text, and is no part of it.
NOTHING = -1


@flax.struct.dataclass
class Moment:
    """What is known when every row gets its next token.

    Attributes:
        logits: float32 `[rows, vocab]`; minus infinity where an id is not allowed.
        tokens: int32 `[rows, room]`: the prompt (of an encoder-decoder: what its decoder starts with), then what has
            been written, then nothing yet.
        written: bool `[rows, room]`: where `tokens` holds a token of the prompt or of what was written; a short prompt
            has padding in front.
        count: int32 `[rows]`: tokens written behind the prompt, forced ones included.
        limit: int32 `[rows]`: the most that may be.
        stop: int32 `[stops]`: ids that end a text; -1 is none.
    """

    logits: jax.Array
    tokens: jax.Array
    written: jax.Array
    count: jax.Array
    limit: jax.Array
    stop: jax.Array


@flax.struct.dataclass
class Choice:
    """The next token of every row.

    Attributes:
        ids: int32 `[rows]`; NOTHING where no id is allowed.
        parents: int32 `[rows]`: the row that each goes on from; None: each from itself.
        state: of the strategy, for its next choice.
    """

    ids: jax.Array
    parents: jax.Array | None
    state: PyTree


class Strategy(Protocol):
    """Chooses tokens. Frozen and hashable: it is a static argument; what is a number or changes is in its state."""

    @property
    def rows(self) -> int:
        """Returns the rows of a request."""
        ...

    def start(self, seeds: Sequence[int], room: int) -> PyTree:
        """Returns the state before the first choice.

        Args:
            seeds: one of each request.
            room: columns of `Moment.tokens`.
        """
        ...

    def choose(self, moment: Moment, state: PyTree) -> Choice:
        """Returns the next token of every row; pure, traced by jit."""
        ...

    def put(self, state: PyTree, other: PyTree, request: jax.Array) -> PyTree:
        """Returns the state with the requests of another one in the place of those from int32 `request` on."""
        ...

    def finished(self, state: PyTree) -> jax.Array:
        """Returns bool `[requests]`: those that no further choice would change."""
        ...


def put_requests(state: PyTree, other: PyTree, request: jax.Array, names: Sequence[str]) -> PyTree:
    """Returns a state in which the fields that have a row for each request hold another's from `request` on.

    Args:
        state: a dataclass.
        other: of the same kind.
        request: int32 scalar, the first that is replaced.
        names: of the fields; the others stay.
    """

    def put(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(jnp.asarray(x), y, request, axis=0)

    return state.replace(**{name: jax.tree.map(put, getattr(state, name), getattr(other, name)) for name in names})
