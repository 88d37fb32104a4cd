"""Moves the tokens of a batch into the packed rows that layers read, and their states back (`lmjax.data.unpadding`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lmjax.model.families import Batch

# The fields of an encoder's or a decoder's batch (`lmjax.model.families`).
_FIELDS = ("tokens", "positions", "segment_ids", "type_ids", "prefix")


def packed(batch: Batch, source: jax.Array) -> dict[str, jax.Array]:
    """Returns the fields that layers read, `[packed rows, packed length]`.

    Args:
        batch: fields `[rows, length]`, among them `segment_ids`.
        source: int32 `[packed rows, packed length]`, the place in the flattened batch of each token; -1 for padding.
    """
    rows, length = batch["tokens"].shape
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    real, at = source >= 0, jnp.maximum(source, 0)
    fields = {"positions": positions} | {name: batch[name] for name in _FIELDS if name in batch}
    moved = {name: jnp.where(real, x.reshape(-1)[at], 0) for name, x in fields.items()}
    # Segments of different rows stay apart; those of one row keep their order.
    number = at // length * (length + 1)
    return moved | {"segment_ids": jnp.where(real, moved["segment_ids"] + number, 0)}


@jax.custom_vjp
def restored(states: jax.Array, source: jax.Array, place: jax.Array) -> jax.Array:
    """Returns the states `[rows, length, embed]` at the places of their tokens, and 0 where there is none.

    Args:
        states: `[packed rows, packed length, embed]`.
        source: as for `packed`.
        place: int32 `[rows, length]`, the place in the flattened packed rows of each token; -1 for padding.
    """
    del source
    return _moved(states, place)


def _moved(states: jax.Array, at: jax.Array) -> jax.Array:
    """Returns the states of the flattened rows at the given places; 0 for a negative place."""
    flat = states.reshape(-1, states.shape[-1])
    return jnp.where((at >= 0)[..., None], flat[jnp.maximum(at, 0)], 0)


def _forward(states: jax.Array, source: jax.Array, place: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return restored(states, source, place), (source, place)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    # Each state goes to one place at most, so its gradient is read there, where JAX would add at random places.
    return _moved(gradient, kept[0]), None, None


restored.defvjp(_forward, _backward)
