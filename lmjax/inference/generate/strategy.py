"""The interface between the decode loop and the strategies that choose the next tokens.

A row is one sequence that the model continues. A request has `rows` adjacent rows: one, or one for each beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

PyTree = Any

# Chosen instead of an id where no id is allowed: it ends the text and is not part of it.
NOTHING = -1


@flax.struct.dataclass
class ChoiceInput:
    """The input of a choice: the logits and the tokens so far of every row.

    Attributes:
        logits: float32 `[rows, vocab]`; minus infinity where an id is not allowed.
        tokens: int32 `[rows, room]`: the prompt (of an encoder-decoder: the start ids of its decoder), then the
            generated tokens, then unused columns.
        written: bool `[rows, room]`: where `tokens` holds a token of the prompt or a generated one; a short prompt has
            padding before it.
        count: int32 `[rows]`: tokens generated so far, forced ones included.
        limit: int32 `[rows]`: the most tokens that may be generated.
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
        parents: int32 `[rows]`: the row that each row continues; None: each continues itself.
        state: of the strategy, for its next choice.
    """

    ids: jax.Array
    parents: jax.Array | None
    state: PyTree


class Strategy(Protocol):
    """Chooses tokens. Frozen and hashable, as it is a static argument of jit; traced values belong to its state."""

    @property
    def rows(self) -> int:
        """Returns the rows of a request."""
        ...

    def start(self, seeds: Sequence[int], room: int) -> PyTree:
        """Returns the state before the first choice.

        Args:
            seeds: one for each request.
            room: columns of `ChoiceInput.tokens`.
        """
        ...

    def choose(self, inputs: ChoiceInput, state: PyTree) -> Choice:
        """Returns the next token of every row; pure, traced by jit."""
        ...

    def put(self, state: PyTree, other: PyTree, request: jax.Array) -> PyTree:
        """Returns the state with its requests from int32 `request` on replaced by those of `other`."""
        ...

    def finished(self, state: PyTree) -> jax.Array:
        """Returns bool `[requests]`: whether no further choice would change the result of the request."""
        ...


def put_requests(state: PyTree, other: PyTree, request: jax.Array, names: Sequence[str]) -> PyTree:
    """Returns a state whose requests from `request` on are replaced by those of another state.

    Args:
        state: a dataclass.
        other: an instance of the same class.
        request: int32 scalar, the first that is replaced.
        names: the fields that have a row for each request; other fields stay as they are.
    """

    def put(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(jnp.asarray(x), y, request, axis=0)

    return state.replace(**{name: jax.tree.map(put, getattr(state, name), getattr(other, name)) for name in names})
