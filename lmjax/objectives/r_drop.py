"""R-Drop: two passes with different dropout, whose predictions are drawn together.

For each prediction, Liang et al. 2021 (arXiv:2106.14448, section 2) minimise
-log P1 - log P2 + alpha * (KL(P1 || P2) + KL(P2 || P1)) / 2. Here it is half of that, so that the loss and the learning
rate keep their scale: the mean of both cross entropies, and alpha / 2 times the mean of both divergences. Alpha is
`task.r_drop`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.objectives.base import Batch, Forward, LossSum, Objective
from lmjax.objectives.losses import split_chunks


def losses(objective: Objective, forward: Forward, batch: Batch) -> dict[str, LossSum]:
    """Returns the loss sums of an objective by name: of one pass, or of two passes with what R-Drop adds.

    There is one pass if `forward.penalties` has no R-Drop, or if the objective does not take it.
    """
    sums, alpha = objective.losses(forward, batch), forward.penalties.r_drop
    if alpha is None or "r_drop" not in objective.penalised_by(objective.config):
        return sums
    means = jax.tree.map(lambda x, y: (x + y) / 2, sums, objective.losses(forward.again, batch))
    apart = objective.divergences(forward, forward.again, batch)
    return {name: s.replace(penalty=s.penalty + alpha / 2 * apart[name]) for name, s in means.items()}


def _sums(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the sum of values `[...]` by weights `[...]`, or the sums `[parts]` by weights `[..., parts]`."""
    split = weights.ndim > values.ndim
    return jnp.sum((values[..., None] if split else values) * weights, axis=tuple(range(values.ndim)))


def _counted(outputs: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns float32 outputs `[..., classes]` with 0 where no weight is positive, since they may be NaN there."""
    used = jnp.any(weights > 0, axis=-1) if weights.ndim == outputs.ndim else weights > 0
    return jnp.where(used[..., None], outputs.astype(jnp.float32), 0.0)


def class_divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted sum of the mean of KL(P1 || P2) and KL(P2 || P1), float32 scalar or `[parts]`, in nats.

    Args:
        first: logits of one pass, float32 `[..., classes]`.
        second: those of the other.
        weights: float32 `[...]`, or `[..., parts]` for several sets of weights at once.
    """
    p, q = (jax.nn.log_softmax(_counted(logits, weights)) for logits in (first, second))
    return _sums(jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1) / 2, weights)


def binary_divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the same for binary predictions, which are averaged over the labels of each row.

    Args:
        first: log odds of one pass, float32 `[batch, labels]`.
        second: those of the other.
        weights: float32 `[batch]`, or `[batch, labels]` with factors of the labels.
    """
    whole = jnp.broadcast_to(weights if weights.ndim == 2 else weights[:, None], first.shape)
    p, q = (jnp.where(whole > 0, logits.astype(jnp.float32), 0.0) for logits in (first, second))
    return jnp.sum(whole * (jax.nn.sigmoid(p) - jax.nn.sigmoid(q)) * (p - q)) / (2 * first.shape[-1])


def squared_divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted sum of squared differences, which are averaged over the outputs of each row.

    For normal distributions of variance 1/2 with these means, this is the mean of both divergences.

    Args:
        first: outputs of one pass, float32 `[batch, outputs]`.
        second: those of the other.
        weights: float32 `[batch]`.
    """
    apart = _counted(first, weights) - _counted(second, weights)
    return _sums(jnp.mean(jnp.square(apart), axis=-1), weights)


def vocab_divergence(
    first: jax.Array,
    second: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    weights: jax.Array,
    *,
    chunk: int,
) -> jax.Array:
    """Returns `class_divergence` over the vocabulary, with the logits of one chunk in memory at a time.

    Args:
        first: states of one pass, `[batch, length, embed]`.
        second: those of the other.
        logits: the vocabulary head.
        weights: float32 `[batch, length]`, or `[batch, length, parts]`.
        chunk: as in `losses.vocab_loss`.
    """
    if chunk == 0 or chunk >= first.shape[1]:
        return class_divergence(logits(first), logits(second), weights)

    @jax.checkpoint
    def add_chunk(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        one, other, w = part
        return total + class_divergence(logits(one), logits(other), w), None

    parts = tuple(split_chunks(x, chunk) for x in (first, second, weights))
    return jax.lax.scan(add_chunk, jnp.zeros(weights.shape[2:], jnp.float32), parts)[0]
