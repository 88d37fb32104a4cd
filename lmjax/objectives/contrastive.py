"""Losses that compare the vectors of texts with each other, over all rows of a batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lmjax.objectives.losses import class_loss
from lmjax.objectives.sums import LossSum


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors `[..., width]` divided by their lengths; one of zeros is unchanged."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), 1e-24))


def in_batch_loss(vectors: jax.Array, weights: jax.Array, temperature: float, *, symmetric: bool) -> LossSum:
    """Returns the cross-entropy sums of finding the second text of each row among those of all rows.

    InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, section 2.3), with the cosine divided by a temperature as
    similarity (Gao et al. 2021, arXiv:2104.08821, equations 1 and 5). All texts but the first of each row are
    candidates, so a third text of any row is a negative of every row.

    Args:
        vectors: `[rows, texts, width]`, two texts or three.
        weights: `[rows]`, 0 for rows that are padding; they are no candidates either.
        temperature: divides the cosines.
        symmetric: whether the first text is also searched for, given the second; the loss is the mean of both.
    """
    first, second, *others = jnp.moveaxis(unit(vectors), 1, 0)
    targets = jnp.arange(len(first))

    def search(queries: jax.Array, candidates: Sequence[jax.Array]) -> LossSum:
        cosines = jnp.einsum("qe,kce->qkc", queries, jnp.stack(candidates), precision="highest") / temperature
        logits = jnp.where(weights > 0, cosines, -1e9)
        return class_loss(logits.reshape(len(queries), -1), targets, weights)

    found = search(first, [second, *others])
    return jax.tree.map(lambda a, b: (a + b) / 2, found, search(second, [first])) if symmetric else found


def score_order_loss(vectors: jax.Array, scores: jax.Array, weights: jax.Array, temperature: float) -> LossSum:
    """Returns the sums of a loss that falls as the cosines of pairs have the order of their scores.

    log(1 + sum of exp((cosine of m - cosine of n) / temperature)) over all rows m and n of which m has the lower score
    (CoSENT, as in Li and Li 2023, arXiv:2309.12871, equation 1). Scores of any range do: only their order counts, as in
    Spearman's correlation. It is one number for the whole batch, times its rows, so that the mean is this number.
    `correct` is the share of such m and n in the right order, times the rows.

    Args:
        vectors: `[rows, texts, width]`, of which the first two texts are compared.
        scores: float32 `[rows]`.
        weights: `[rows]`, 0 for rows that are padding.
        temperature: divides the cosines.
    """
    first, second = jnp.moveaxis(unit(vectors)[:, :2], 1, 0)
    cosines = jnp.sum(first * second, axis=-1)
    pairs = (scores[:, None] < scores[None]) & (weights[:, None] > 0) & (weights[None] > 0)
    differences = cosines[:, None] - cosines[None]
    terms = jnp.where(pairs, differences / temperature, -jnp.inf)
    loss = jax.nn.logsumexp(jnp.append(terms, 0.0))
    rows = jnp.sum(weights)
    right = jnp.sum(pairs & (differences < 0)) / jnp.maximum(jnp.sum(pairs), 1)
    return LossSum(rows * loss, rows, rows * right, jnp.zeros((), jnp.float32))
