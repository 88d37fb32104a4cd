"""Cross entropy in float32: over a vocabulary, computed in chunks, and over a few classes; squared errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.axes import sequence_ways
from lmjax.objectives.sums import NO_PENALTIES, LossSum, Penalties


def _classes(logits: jax.Array) -> jax.Array:
    """Returns the class index of each logit, int32 of the logits' shape."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


@jax.custom_vjp
def _log_normalizer(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the logarithm of the softmax's denominator, the target's logit, and whether the target is the argmax.

    All are `[...]`. The custom backward pass computes the gradient in one pass over the exponentials; the automatic one
    would first scatter the gradient of the targets' logits into an array of zeros.
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
    """Returns bool `[...]`: no logit is larger than the target's, and no class before the target has an equal logit.

    The maximum over the classes before the target takes less than half the time of `jnp.argmax` on a CPU, and needs no
    gather where the classes are sharded over devices.
    """
    in_front = jnp.max(jnp.where(_classes(logits) < targets[..., None], logits, -jnp.inf), axis=-1)
    # If all logits are minus infinity, the first class is the argmax: it has no class before it.
    return (picked >= largest) & ((in_front < largest) | (targets == 0))


def _backward(residuals: Any, cotangents: Any) -> tuple[jax.Array, None]:
    exponentials, total, targets = residuals
    to_normalizer, to_picked = (g[..., None] for g in cotangents[:2])
    gradient = exponentials * (to_normalizer / total[..., None])
    gradient += jnp.where(_classes(exponentials) == targets[..., None], to_picked, 0.0)
    # A position without weight may have a NaN logit, and 0 times NaN is NaN.
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

    A prediction is correct if its target is the argmax. Of equally likely classes this is the first, as in greedy
    decoding, so a model that gives all classes the same logit is correct only where the target is class 0.

    Args:
        logits: float32 `[..., classes]`.
        targets: int `[...]`, below `classes`.
        weights: float32 `[...]`, or `[..., parts]` for several sets of weights at once, which give sums of shape
            `[parts]`. A position of weight 0 is left out, even if its logits are NaN or infinite.
        penalties: what is added in training.
        num_ids: number of classes in use; label smoothing gives no probability to the padding after them. None: all.
    """
    logits = logits.astype(jnp.float32)
    split = weights.ndim > targets.ndim
    counted = jnp.any(weights > 0, axis=-1) if split else weights > 0

    def weighted(values: jax.Array) -> jax.Array:
        return jnp.sum((values[..., None] if split else values) * weights, axis=tuple(range(targets.ndim)))

    # Replaced before they are used further: the gradient at a NaN is NaN even if the weight of the position is 0.
    normalizer, picked, correct = (jnp.where(counted, x, 0) for x in _log_normalizer(logits, targets))
    penalty = jnp.zeros(targets.shape, jnp.float32)
    if penalties.z_loss is not None:
        penalty += penalties.z_loss * jnp.square(normalizer)
    if penalties.label_smoothing is not None:
        ids = logits.shape[-1] if num_ids is None else min(num_ids, logits.shape[-1])
        used = counted[..., None] & (_classes(logits) < ids)
        mean = jnp.sum(jnp.where(used, logits, 0.0), axis=-1) / ids
        # The smoothed loss, (1 - s) * (normalizer - picked) + s * (normalizer - mean), minus the cross entropy.
        penalty += penalties.label_smoothing * (picked - mean)
    return LossSum(
        loss=weighted(normalizer - picked),
        weight=jnp.sum(weights, axis=tuple(range(targets.ndim))),
        correct=weighted(correct.astype(jnp.float32)),
        penalty=weighted(penalty),
    )


def binary_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> LossSum:
    """Returns the cross-entropy sums of binary predictions; a logit of 0 predicts False.

    Args:
        logits: float32 `[...]`, log odds of True.
        targets: bool `[...]`.
        weights: float32 `[...]`; a position of weight 0 is left out, even if its logit is NaN or infinite.
    """
    counted = weights > 0
    logits = jnp.where(counted, logits.astype(jnp.float32), 0.0)
    return LossSum(
        loss=jnp.sum(weights * jax.nn.softplus(jnp.where(targets, -logits, logits))),
        weight=jnp.sum(weights),
        correct=jnp.sum(jnp.where((logits > 0) == targets, weights, 0.0)),
        penalty=jnp.zeros((), jnp.float32),
    )


def _counted(outputs: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns float32 `[batch, outputs]` with 0 in rows of weight 0, whose outputs may be NaN."""
    return jnp.where(weights[:, None] > 0, outputs.astype(jnp.float32), 0.0)


def shares_loss(
    logits: jax.Array, shares: jax.Array, weights: jax.Array, factors: jax.Array, penalties: Penalties = NO_PENALTIES
) -> LossSum:
    """Returns the sums of the Kullback-Leibler divergences of predicted classes from given shares of each class.

    This is the cross entropy minus the entropy of the shares, which no model can go below: 0 is a perfect fit.

    Args:
        logits: float32 `[batch, classes]`.
        shares: float32 `[batch, classes]`, which sum to 1; the largest is that of the target.
        weights: float32 `[batch]`, 0 for a row that does not count.
        factors: float32 `[batch]`, by which the loss of each row is multiplied, but not what counts as correct.
        penalties: what is added in training.
    """
    logits = _counted(logits, weights)
    log_probs = jax.nn.log_softmax(logits)
    loss = jnp.sum(jax.scipy.special.xlogy(shares, shares) - shares * log_probs, axis=-1)
    penalty = jnp.zeros(weights.shape, jnp.float32)
    if penalties.z_loss is not None:
        penalty += penalties.z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    if penalties.label_smoothing is not None:
        penalty += penalties.label_smoothing * (jnp.sum(shares * logits, axis=-1) - jnp.mean(logits, axis=-1))
    correct = jnp.argmax(logits, axis=-1) == jnp.argmax(shares, axis=-1)
    return LossSum(
        loss=jnp.sum(weights * factors * loss),
        weight=jnp.sum(weights),
        correct=jnp.sum(weights * correct),
        penalty=jnp.sum(weights * factors * penalty),
    )


def labels_loss(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    factors: jax.Array,
    least: float,
    penalties: Penalties = NO_PENALTIES,
) -> LossSum:
    """Returns the sums of binary cross entropies, which are averaged over the labels of each row.

    A row is correct if all of its labels are.

    Args:
        logits: float32 `[batch, labels]`, log odds of each label.
        targets: float32 `[batch, labels]`, 1 for the labels of a row, 0 for all others.
        weights: float32 `[batch]`, 0 for a row that does not count.
        factors: float32 `[labels]`, by which the loss of a row that has the label is multiplied.
        least: the logit from which a label is predicted.
        penalties: label smoothing moves the targets towards one half; the z-loss is for a softmax, and not added.
    """
    logits = _counted(logits, weights)
    factors = jnp.where(targets > 0, factors[None], 1.0)
    loss = jnp.mean(factors * (jax.nn.softplus(logits) - targets * logits), axis=-1)
    penalty = jnp.zeros(weights.shape, jnp.float32)
    if penalties.label_smoothing is not None:
        penalty += penalties.label_smoothing * jnp.mean(factors * (targets - 0.5) * logits, axis=-1)
    correct = jnp.all((logits >= least) == (targets > 0), axis=-1)
    return LossSum(
        loss=jnp.sum(weights * loss),
        weight=jnp.sum(weights),
        correct=jnp.sum(weights * correct),
        penalty=jnp.sum(weights * penalty),
    )


def squared_loss(predicted: jax.Array, targets: jax.Array, weights: jax.Array) -> LossSum:
    """Returns the sums of squared errors, which are averaged over the targets of each row.

    Args:
        predicted: float32 `[batch, targets]`.
        targets: float32 `[batch, targets]`.
        weights: float32 `[batch]`, 0 for a row that does not count.
    """
    errors = jnp.mean(jnp.square(_counted(predicted, weights) - targets), axis=-1)
    return LossSum(jnp.sum(weights * errors), jnp.sum(weights), None, jnp.zeros((), jnp.float32))


def split_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """Returns `[chunks, batch, chunk, ...]` for `[batch, length, ...]`, padded with zeros.

    The length is split, not the batch, so that the batch dimension keeps its sharding.
    """
    padding = [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding)
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)


def summed_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """Returns `split_chunks` for sums, in which the order of positions does not matter.

    Where the mesh axis `sequence` splits the length, a chunk has as many positions of each device, so that all compute
    at the same time.
    """
    ways = sequence_ways()
    if ways == 1 or x.shape[1] % ways:
        return split_chunks(x, chunk)
    x = x.reshape(x.shape[0], ways, -1, *x.shape[2:])
    parts = jax.vmap(lambda part: split_chunks(part, -(-chunk // ways)), 1, 2)(x)
    return parts.reshape(*parts.shape[:2], -1, *parts.shape[4:])


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
    """Returns the cross-entropy sums over the vocabulary, with the logits of one chunk in memory at a time.

    The logits of a whole batch are often the largest array of a step. Here a scan computes them for `chunk` positions
    of each row at a time, and the backward pass computes the logits of each chunk again.

    Args:
        hidden: `[batch, length, embed]`.
        logits: the vocabulary head, `[batch, chunk, embed] -> [batch, chunk, vocab]`.
        targets: int `[batch, length]`.
        weights: float32 `[batch, length]`, or `[batch, length, parts]` for several sets of weights at once.
        chunk: positions of a row per chunk; with 0, or at least `length`, there is one chunk and no recomputation.
        penalties: what is added in training.
        num_ids: number of ids of the tokenizer; label smoothing gives no probability to the padding of the vocabulary.
            None: the vocabulary has no padding.
    """
    if rest := -hidden.shape[1] % sequence_ways():
        # So that the mesh axis `sequence` divides the predictions of a row; positions without weight are left out.
        hidden, targets, weights = (
            jnp.pad(x, [(0, rest if axis == 1 else 0) for axis in range(x.ndim)]) for x in (hidden, targets, weights)
        )
    if chunk == 0 or chunk >= hidden.shape[1]:
        return class_loss(logits(hidden), targets, weights, penalties, num_ids)

    @jax.checkpoint
    def add_chunk(sums: LossSum, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[LossSum, None]:
        h, t, w = part
        return sums + class_loss(logits(h), t, w, penalties, num_ids), None

    zero = jnp.zeros(weights.shape[2:], jnp.float32)
    parts = tuple(summed_chunks(x, chunk) for x in (hidden, targets, weights))
    sums, _ = jax.lax.scan(add_chunk, LossSum(zero, zero, zero, zero), parts)
    return sums


def target_log_probs(
    hidden: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
) -> jax.Array:
    """Returns the weighted sums of the log-probabilities of each row's targets, float32 `[batch, parts]`.

    Args:
        hidden: `[batch, length, embed]`.
        logits: the vocabulary head, as for `vocab_loss`.
        targets: int `[batch, length]`.
        weights: float32 `[batch, length, parts]`: a sum for each part; a position without weight may have NaN logits.
        chunk: as for `vocab_loss`.
    """

    def sums(h: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
        normalizer, picked, _ = _log_normalizer(logits(h).astype(jnp.float32), t)
        each = jnp.where(jnp.any(w > 0, axis=-1), picked - normalizer, 0.0)
        return jnp.sum(each[..., None] * w, axis=1)

    if chunk == 0 or chunk >= hidden.shape[1]:
        return sums(hidden, targets, weights)

    @jax.checkpoint
    def add_chunk(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + sums(*part), None

    zero = jnp.zeros((weights.shape[0], weights.shape[2]), jnp.float32)
    return jax.lax.scan(add_chunk, zero, tuple(summed_chunks(x, chunk) for x in (hidden, targets, weights)))[0]
