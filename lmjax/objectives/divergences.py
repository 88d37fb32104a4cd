"""How far apart two predictions are: Kullback-Leibler divergences of classes, of labels and over the vocabulary."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.objectives.losses import summed_chunks

Kind = Literal["symmetric", "forward", "reverse", "js"]


class Measure(NamedTuple):
    """A divergence between the distributions P of the first and Q of the second logits, in nats.

    Attributes:
        kind: symmetric: the mean of KL(P || Q) and KL(Q || P); forward: KL(Q || P), where Q is a teacher's (Hinton et
            al. 2015, arXiv:1503.02531, section 2); reverse: KL(P || Q) (Gu et al. 2024, arXiv:2306.08543, section 2.1);
            js: the mean of both divergences from (P + Q) / 2 (Agarwal et al. 2024, arXiv:2306.13649, section 2).
        temperature: by which all logits are divided; the divergence is multiplied by its square, so that gradients
            keep their size (Hinton et al. 2015, section 2).
    """

    kind: Kind = "symmetric"
    temperature: float = 1.0

    def between(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Returns `[...]` for logits `[..., classes]`."""
        heat = self.temperature
        if heat != 1:
            first, second = first / heat, second / heat
        p, q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
        one, two = jnp.exp(p), jnp.exp(q)
        if self.kind == "symmetric":
            found = jnp.sum((one - two) * (p - q), axis=-1) / 2
        elif self.kind == "forward":
            found = jnp.sum(two * (q - p), axis=-1)
        elif self.kind == "reverse":
            found = jnp.sum(one * (p - q), axis=-1)
        else:
            mean = jnp.logaddexp(p, q) - jnp.log(2.0)
            found = jnp.sum(one * (p - mean) + two * (q - mean), axis=-1) / 2
        return found if heat == 1 else found * heat**2


SYMMETRIC = Measure()
# The least probability of the tokens that a file leaves out, whose logarithm must be finite.
_LEAST = 1e-6


def _sums(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the sum of values `[...]` by weights `[...]`, or the sums `[parts]` by weights `[..., parts]`."""
    split = weights.ndim > values.ndim
    return jnp.sum((values[..., None] if split else values) * weights, axis=tuple(range(values.ndim)))


def _counted(outputs: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns float32 outputs `[..., classes]` with 0 where no weight is positive, since they may be NaN there."""
    used = jnp.any(weights > 0, axis=-1) if weights.ndim == outputs.ndim else weights > 0
    return jnp.where(used[..., None], outputs.astype(jnp.float32), 0.0)


def class_divergence(
    first: jax.Array, second: jax.Array, weights: jax.Array, measure: Measure = SYMMETRIC
) -> jax.Array:
    """Returns the weighted sum of divergences, float32 scalar or `[parts]`, in nats.

    Args:
        first: logits of one pass or model, float32 `[..., classes]`.
        second: those of the other.
        weights: float32 `[...]`, or `[..., parts]` for several sets of weights at once.
        measure: the divergence.
    """
    return _sums(measure.between(_counted(first, weights), _counted(second, weights)), weights)


def binary_divergence(
    first: jax.Array, second: jax.Array, weights: jax.Array, measure: Measure = SYMMETRIC
) -> jax.Array:
    """Returns the same for binary predictions, which are averaged over the labels of each row.

    Args:
        first: log odds of one pass or model, float32 `[batch, labels]`.
        second: those of the other.
        weights: float32 `[batch]`, or `[batch, labels]` with factors of the labels.
        measure: the divergence.
    """
    whole = jnp.broadcast_to(weights if weights.ndim == 2 else weights[:, None], first.shape)
    odds = (jnp.where(whole > 0, logits.astype(jnp.float32), 0.0) for logits in (first, second))
    pairs = (jnp.stack([jnp.zeros_like(x), x], axis=-1) for x in odds)
    return jnp.sum(whole * measure.between(*pairs)) / first.shape[-1]


def squared_divergence(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted sum of squared differences, which are averaged over the outputs of each row.

    For normal distributions of variance 1/2 with these means, each divergence is this one.

    Args:
        first: outputs of one pass or model, float32 `[batch, outputs]`.
        second: those of the other.
        weights: float32 `[batch]`.
    """
    apart = _counted(first, weights) - _counted(second, weights)
    return _sums(jnp.mean(jnp.square(apart), axis=-1), weights)


Logits = Callable[[jax.Array], jax.Array]


def vocab_divergence(
    first: jax.Array,
    second: jax.Array,
    logits: tuple[Logits, Logits],
    weights: jax.Array,
    *,
    chunk: int,
    measure: Measure = SYMMETRIC,
) -> jax.Array:
    """Returns `class_divergence` over the vocabulary, with the logits of one chunk in memory at a time.

    Args:
        first: states of one pass or model, `[batch, length, embed]`.
        second: those of the other, which may have another width.
        logits: the vocabulary heads of both; rows that only one of them has are padding, and left out.
        weights: float32 `[batch, length]`, or `[batch, length, parts]`.
        chunk: as in `losses.vocab_loss`.
        measure: the divergence.
    """

    def apart(one: jax.Array, other: jax.Array, w: jax.Array) -> jax.Array:
        one, other = logits[0](one), logits[1](other)
        rows = min(one.shape[-1], other.shape[-1])
        return class_divergence(one[..., :rows], other[..., :rows], w, measure)

    if chunk == 0 or chunk >= first.shape[1]:
        return apart(first, second, weights)

    @jax.checkpoint
    def add_chunk(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + apart(*part), None

    parts = tuple(summed_chunks(x, chunk) for x in (first, second, weights))
    return jax.lax.scan(add_chunk, jnp.zeros(weights.shape[2:], jnp.float32), parts)[0]


def recorded_divergence(
    hidden: jax.Array,
    logits: Logits,
    recorded: tuple[jax.Array, jax.Array],
    weights: jax.Array,
    *,
    chunk: int,
    measure: Measure,
) -> jax.Array:
    """Returns the weighted sum of divergences from a teacher of which only the likeliest tokens are known.

    These are `k + 1` outcomes: each of the `k` tokens, and any other one, so that with all tokens it is the whole
    divergence, and with fewer a lower bound on it (the data-processing inequality).

    Args:
        hidden: the student's states, `[batch, length, embed]`.
        logits: its vocabulary head.
        recorded: ids, int32 `[batch, length, k]`, and the logarithms of their probabilities at the temperature.
        weights: float32 `[batch, length]`.
        chunk: as in `losses.vocab_loss`.
        measure: the divergence.
    """

    def apart(states: jax.Array, ids: jax.Array, log_probs: jax.Array, w: jax.Array) -> jax.Array:
        logs = jax.nn.log_softmax(_counted(logits(states), w) / measure.temperature)
        known = jnp.take_along_axis(logs, ids, axis=-1)
        others = jnp.put_along_axis(logs, ids, -jnp.inf, axis=-1, inplace=False)
        student = jnp.concatenate([known, jax.nn.logsumexp(others, axis=-1, keepdims=True)], axis=-1)
        rest = jnp.maximum(1 - jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True), _LEAST)
        teacher = jnp.concatenate([log_probs, jnp.log(rest)], axis=-1)
        return measure.temperature**2 * class_divergence(student, teacher, w, measure._replace(temperature=1.0))

    if chunk == 0 or chunk >= hidden.shape[1]:
        return apart(hidden, *recorded, weights)

    @jax.checkpoint
    def add_chunk(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + apart(*part), None

    parts = tuple(summed_chunks(x, chunk) for x in (hidden, *recorded, weights))
    return jax.lax.scan(add_chunk, jnp.zeros((), jnp.float32), parts)[0]
