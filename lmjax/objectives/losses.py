"""Cross entropy over a vocabulary, in float32 and in chunks, and over a few classes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.objectives.base import NO_PENALTIES, LossSum, Penalties


def _classes(logits: jax.Array) -> jax.Array:
    """Returns the number of every class, int32 of the logits' shape."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


@jax.custom_vjp
def _log_normalizer(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the logarithm of the softmax's denominator, the target's logit, and whether the target is the argmax.

    All are `[...]`. Its backward pass writes the gradient in one pass over the exponentials; the general one scatters
    into an array of zeros first.
    """
    return _forward(logits, targets)[0]


def _forward(logits: jax.Array, targets: jax.Array) -> tuple[Any, Any]:
    largest = jnp.max(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    exponentials = jnp.exp(logits - largest[..., None])
    total = jnp.sum(exponentials, axis=-1)
    return (jnp.log(total) + largest, picked, _is_argmax(logits, targets, picked, largest)), (
        exponentials,
        total,
        targets,
    )


def _is_argmax(logits: jax.Array, targets: jax.Array, picked: jax.Array, largest: jax.Array) -> jax.Array:
    """Returns bool `[...]`: no logit is larger than the target's, and none in front of it equals it.

    A second maximum costs a CPU less than half of what `jnp.argmax` does, and nothing is gathered where the classes are
    split over devices.
    """
    in_front = jnp.max(jnp.where(_classes(logits) < targets[..., None], logits, -jnp.inf), axis=-1)
    # Where all logits are minus infinity the first class is the argmax, and nothing is in front of it.
    return (picked >= largest) & ((in_front < largest) | (targets == 0))


def _backward(residuals: Any, cotangents: Any) -> tuple[jax.Array, None]:
    exponentials, total, targets = residuals
    to_normalizer, to_picked = (g[..., None] for g in cotangents[:2])
    gradient = exponentials * (to_normalizer / total[..., None])
    gradient += jnp.where(_classes(exponentials) == targets[..., None], to_picked, 0.0)
    # A position that nothing depends on may hold a NaN, and 0 times NaN is NaN.
    return jnp.where((to_normalizer == 0) & (to_picked == 0), 0.0, gradient), None


_log_normalizer.defvjp(_forward, _backward)


def class_loss(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    penalties: Penalties = NO_PENALTIES,
    num_ids: int | None = None,
) -> LossSum:
    """Returns the cross-entropy sums of `logits`.

    A prediction is correct if its target is the argmax: of equally likely classes the first, the one that greedy
    decoding writes. A model that tells no classes apart is correct only where the first is the target.

    Args:
        logits: float32 `[..., classes]`.
        targets: int `[...]`, below `classes`.
        weights: float32 `[...]`, or `[..., parts]` for the sums of several parts at once, each `[parts]`. A position of
            weight 0 is left out, whatever its logits hold.
        penalties: what is added in training.
        num_ids: the classes that are something's; label smoothing gives those behind them nothing. None: all are.
    """
    logits = logits.astype(jnp.float32)
    split = weights.ndim > targets.ndim
    counted = jnp.any(weights > 0, axis=-1) if split else weights > 0

    def weighted(values: jax.Array) -> jax.Array:
        return jnp.sum((values[..., None] if split else values) * weights, axis=tuple(range(targets.ndim)))

    # Before anything is computed of them: the gradient at a NaN is NaN even where nothing asks for it.
    normalizer, picked, correct = (jnp.where(counted, x, 0) for x in _log_normalizer(logits, targets))
    penalty = jnp.zeros(targets.shape, jnp.float32)
    if penalties.z_loss is not None:
        penalty += penalties.z_loss * jnp.square(normalizer)
    if penalties.label_smoothing is not None:
        ids = logits.shape[-1] if num_ids is None else min(num_ids, logits.shape[-1])
        used = counted[..., None] & (_classes(logits) < ids)
        mean = jnp.sum(jnp.where(used, logits, 0.0), axis=-1) / ids
        # (1 - s) * (normalizer - picked) + s * (normalizer - mean), less the plain cross entropy.
        penalty += penalties.label_smoothing * (picked - mean)
    return LossSum(
        loss=weighted(normalizer - picked),
        weight=jnp.sum(weights, axis=tuple(range(targets.ndim))),
        correct=weighted(correct.astype(jnp.float32)),
        penalty=weighted(penalty),
    )


def binary_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> LossSum:
    """Returns the cross-entropy sums of yes/no predictions; where both are equally likely, no is predicted.

    Args:
        logits: float32 `[...]`, of yes.
        targets: bool `[...]`.
        weights: float32 `[...]`; a position of weight 0 is left out, whatever its logits hold.
    """
    counted = weights > 0
    logits = jnp.where(counted, logits.astype(jnp.float32), 0.0)
    return LossSum(
        loss=jnp.sum(weights * jax.nn.softplus(jnp.where(targets, -logits, logits))),
        weight=jnp.sum(weights),
        correct=jnp.sum(jnp.where((logits > 0) == targets, weights, 0.0)),
        penalty=jnp.zeros((), jnp.float32),
    )


def split_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """Returns `[chunks, batch, chunk, ...]` for `[batch, length, ...]`, filled up with zeros.

    Chunks are cut from the length, so that the batch dimension stays sharded as it is.
    """
    padding = [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding)
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)


def vocab_loss(
    hidden: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
    penalties: Penalties = NO_PENALTIES,
    num_ids: int | None = None,
) -> LossSum:
    """Returns the cross-entropy sums over the vocabulary, with few logits in memory at a time.

    The logits of a whole batch are often the largest array of a step. Here they exist for `chunk` positions of every
    row at a time: a scan goes over the chunks, and the backward pass computes each chunk's logits again.

    Args:
        hidden: `[batch, length, embed]`.
        logits: the vocabulary head, `[batch, chunk, embed] -> [batch, chunk, vocab]`.
        targets: int `[batch, length]`.
        weights: float32 `[batch, length]`, or `[batch, length, parts]` for the sums of several parts at once.
        chunk: positions of a row per chunk; 0 or at least `length` takes the row in one piece, with nothing recomputed.
        penalties: what is added in training.
        num_ids: of the tokenizer, whose ids label smoothing spreads over: padding of the vocabulary gets nothing. None:
            every row of the vocabulary is an id.
    """
    if chunk == 0 or chunk >= hidden.shape[1]:
        return class_loss(logits(hidden), targets, weights, penalties, num_ids)

    @jax.checkpoint
    def add_chunk(sums: LossSum, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[LossSum, None]:
        h, t, w = part
        return sums + class_loss(logits(h), t, w, penalties, num_ids), None

    zero = jnp.zeros(weights.shape[2:], jnp.float32)
    parts = tuple(split_chunks(x, chunk) for x in (hidden, targets, weights))
    sums, _ = jax.lax.scan(add_chunk, LossSum(zero, zero, zero, zero), parts)
    return sums
