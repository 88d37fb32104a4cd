"""Cross entropy over a vocabulary, in float32 and in chunks, and over a few classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.objectives.base import LossSum


def class_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> LossSum:
    """Returns the cross-entropy sums of `logits`.

    Args:
        logits: float32 `[..., classes]`.
        targets: int `[...]`, below `classes`.
        weights: float32 `[...]`; a position of weight 0 is left out, whatever its logits hold.
    """
    counted = weights > 0
    # Before the softmax, not only behind it: the gradient at a NaN is NaN even where nothing asks for it.
    logits = jnp.where(counted[..., None], logits.astype(jnp.float32), 0.0)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    correct = jnp.argmax(logits, axis=-1) == targets
    return LossSum(
        loss=jnp.sum(jnp.where(counted, losses * weights, 0.0)),
        weight=jnp.sum(weights),
        correct=jnp.sum(jnp.where(correct, weights, 0.0)),
    )


def vocab_loss(
    hidden: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
) -> LossSum:
    """Returns the cross-entropy sums over the vocabulary, with few logits in memory at a time.

    The logits of a whole batch are often the largest array of a step. Here they exist for `chunk` positions of every
    row at a time: a scan goes over the chunks, and the backward pass computes each chunk's logits again.

    Args:
        hidden: `[batch, length, embed]`.
        logits: the vocabulary head, `[batch, chunk, embed] -> [batch, chunk, vocab]`.
        targets: int `[batch, length]`.
        weights: float32 `[batch, length]`.
        chunk: positions of a row per chunk; 0 or at least `length` takes the row in one piece, with nothing recomputed.
    """
    length = hidden.shape[1]
    if chunk == 0 or chunk >= length:
        return class_loss(logits(hidden), targets, weights)

    def split(x: jax.Array) -> jax.Array:
        # Chunks are cut from the length, so that the batch dimension stays sharded as it is.
        padding = [(0, 0), (0, -length % chunk)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
        return jnp.swapaxes(x, 0, 1)

    @jax.checkpoint
    def add_chunk(sums: LossSum, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[LossSum, None]:
        h, t, w = part
        return sums + class_loss(logits(h), t, w), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(add_chunk, LossSum(zero, zero, zero), (split(hidden), split(targets), split(weights)))
    return sums
