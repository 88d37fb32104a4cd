"""A sparse autoencoder: the residual stream of a token as a sum of a few directions out of many.

Gao et al. 2024, arXiv:2406.04093, section 2: of the features of a vector the `active` largest are kept (top-k), and
the sum of their directions restores the vector. Features that are silent for long learn to restore what the others
leave (the auxiliary loss, section A.2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.analysis.inside import cut_rows, record, role_tokens
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.streams import random_stream
from lmjax.training.optimizers.adam import Adam

# The share of the texts whose tokens are not trained on.
_TEST = 0.1
# Weight of the auxiliary loss, and the vectors after which a silent feature counts as dead while it trains.
_AUXILIARY, _SILENT = 1 / 32, 20_000
# Vectors that are encoded together.
_CHUNK = 4096


class Weights(NamedTuple):
    """The parameters of a sparse autoencoder.

    Attributes:
        encoder: `[embed, features]`.
        offset: `[features]`, added before the largest are chosen.
        decoder: `[features, embed]`, the direction of each feature, of unit length.
        centre: `[embed]`, which is subtracted from a vector and added to what is restored.
    """

    encoder: np.ndarray | jax.Array
    offset: np.ndarray | jax.Array
    decoder: np.ndarray | jax.Array
    centre: np.ndarray | jax.Array


class Features(NamedTuple):
    """A sparse autoencoder that was trained, and how well it restores vectors.

    Attributes:
        weights: its parameters, float32.
        active: features of a vector.
        scale: by which vectors are divided before they are encoded.
        losses: float64 `[steps]`, the share of the variance of a batch that is not restored.
        error: the same share of vectors that were not trained on.
        dead: features that are silent for all vectors.
        tested: the groups of vectors that were not trained on.
    """

    weights: Weights
    active: int
    scale: float
    losses: np.ndarray
    error: float
    dead: int
    tested: np.ndarray

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the features of vectors `[vectors, embed]`: their numbers and sizes, `[vectors, active]` each."""
        found = [
            jax.device_get(_encode(self.weights, x / self.scale, self.active))
            for x in np.split(vectors, range(_CHUNK, len(vectors), _CHUNK))
        ]
        numbers, sizes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return numbers, sizes * self.scale

    def decode(self, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Returns the vectors that features restore, `[vectors, embed]`."""
        parts = np.take(self.weights.decoder, numbers, axis=0)
        return np.einsum("vk,vke->ve", sizes, parts) + self.scale * np.asarray(self.weights.centre)


class Stream(NamedTuple):
    """The residual stream of the tokens of some texts.

    Attributes:
        vectors: float32 `[tokens, embed]`.
        ids: int `[tokens]`.
        texts: int `[tokens]`, the number of the text of each token; its tokens follow each other.
    """

    vectors: np.ndarray
    ids: np.ndarray
    texts: np.ndarray


def read_stream(loaded: LoadedModel, texts: Sequence[str], layer: int, batch_size: int = 32) -> Stream:
    """Returns the residual stream after a layer; texts are cut at the length of the model's rows.

    Special tokens are left out: the vector of the first one is often many times as long as the others.

    Args:
        loaded: the model; of an encoder-decoder, its encoder is read.
        texts: the texts.
        layer: number of the layer.
        batch_size: texts that are computed together.

    Raises:
        FlagError: there is no such layer.
    """
    side = "encoder_" if loaded.config.family.paired else ""
    name = f"{side.replace('_', '/')}layer_{layer}"
    rows = cut_rows(loaded, texts)
    special = list(role_tokens(loaded))
    # Rows of similar lengths are computed together.
    order = np.argsort([len(row) for row in rows], kind="stable")
    vectors: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found = record(loaded, [rows[i] for i in chosen], [name])[name]
        for i, x in zip(chosen, found, strict=True):
            vectors[i] = x[: len(rows[i])]
    ids, numbers = np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    kept = ~np.isin(ids, special)
    return Stream(np.concatenate(vectors)[kept], ids[kept], numbers[kept])


def train_features(
    vectors: np.ndarray,
    features: int = 512,
    active: int = 8,
    *,
    groups: np.ndarray | None = None,
    steps: int = 2000,
    batch_size: int = 512,
    rate: float = 2e-3,
    seed: int = 0,
) -> Features:
    """Returns a sparse autoencoder, trained by Adam on nine tenths of the vectors.

    Args:
        vectors: `[vectors, embed]`, such as those of `read_stream`.
        features: that it can tell apart.
        active: features of a vector.
        groups: `[vectors]`, such as the text of each; those of one group are on one side of the split. None: each
            vector is its own group.
        steps: of training.
        batch_size: vectors of a step.
        rate: the learning rate; it falls to 0 along a cosine.
        seed: of the first weights, the split and the batches.

    Raises:
        FlagError: there are fewer than ten groups, all vectors are equal, or `active` is not below `features`.
    """
    groups = np.arange(len(vectors)) if groups is None else np.asarray(groups)
    names = np.unique(groups)
    if len(names) < 10 or not 0 < active < features:
        raise FlagError(
            f"active={active}, features={features}, {len(names)} texts: take fewer active features than there are, and "
            "at least ten texts"
        )
    rng = random_stream(seed, "features")
    tested = rng.permutation(names)[: max(1, int(_TEST * len(names)))]
    held = np.isin(groups, tested)
    own, centre = np.asarray(vectors[~held], np.float32), np.mean(vectors[~held], axis=0, dtype=np.float64)
    scale = float(np.sqrt(np.square(own - centre.astype(np.float32)).mean(dtype=np.float64)))
    if not scale > 0:
        raise FlagError("all vectors are equal, so that there are no features; take another layer, or more texts")
    directions = rng.normal(size=(features, own.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = Weights(directions.T, np.zeros(features), directions, centre / scale)
    weights = Weights(*(jnp.asarray(x, jnp.float32) for x in weights))
    rule = Adam(beta2=0.999)
    optimizer = optax.chain(
        rule.direction(rule), optax.scale_by_learning_rate(optax.cosine_decay_schedule(rate, max(1, steps)))
    )
    state, silent, losses = optimizer.init(weights), jnp.zeros(features, jnp.int32), []
    step = jax.jit(functools.partial(_step, optimizer=optimizer, active=active))
    for _ in range(steps):
        batch = own[rng.integers(len(own), size=batch_size)] / np.float32(scale)
        weights, state, silent, loss = step(weights, state, silent, batch)
        losses.append(loss)
    found = Features(
        Weights(*map(np.asarray, weights)), active, scale, np.array(jax.device_get(losses)), 0.0, 0, tested
    )
    alive, errors = np.zeros(features, bool), {}
    for side in (False, True):
        given = np.asarray(vectors[held == side], np.float32)
        numbers, sizes = found.encode(given)
        alive[np.unique(numbers[sizes > 0])] = True
        spread = np.square(given - given.mean(axis=0)).sum(dtype=np.float64)
        errors[side] = np.square(given - found.decode(numbers, sizes)).sum(dtype=np.float64) / max(spread, 1e-30)
    return found._replace(error=float(errors[True]), dead=int(features - alive.sum()))


def _sizes(weights: Weights, x: jax.Array) -> jax.Array:
    """Returns the sizes of all features `[vectors, features]`, before the largest are chosen."""
    return (x - weights.centre[None]) @ weights.encoder + weights.offset[None]


@functools.partial(jax.jit, static_argnames="active")
def _encode(weights: Weights, x: jax.Array, active: int) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers and the sizes of the largest features, `[vectors, active]`."""
    sizes, numbers = jax.lax.top_k(_sizes(weights, x), active)
    return numbers, jax.nn.relu(sizes)


def _sparse(sizes: jax.Array, active: int) -> jax.Array:
    """Returns sizes `[vectors, features]` with all but the largest set to 0."""
    largest, numbers = jax.lax.top_k(sizes, active)
    rows = jnp.arange(len(sizes))[:, None]
    return jnp.zeros_like(sizes).at[rows, numbers].set(jax.nn.relu(largest))


def _step(
    weights: Weights,
    state: optax.OptState,
    silent: jax.Array,
    x: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    active: int,
) -> tuple[Weights, optax.OptState, jax.Array, jax.Array]:
    """Returns weights, state, for how many vectors each feature was silent, and the share that was not restored."""
    dead = silent > _SILENT
    spread = jnp.maximum(jnp.sum(jnp.square(x - x.mean(axis=0, keepdims=True))), 1e-12)

    def loss(weights: Weights) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        sizes = _sizes(weights, x)
        kept = _sparse(sizes, active)
        left = x - weights.centre[None] - kept @ weights.decoder
        main = jnp.sum(jnp.square(left)) / spread
        # The dead features that would be largest learn what is left.
        others = _sparse(jnp.where(dead[None], sizes, -jnp.inf), min(2 * active, len(dead)))
        rest = jax.lax.stop_gradient(left)
        spare = jnp.sum(jnp.square(rest - others @ weights.decoder)) / jnp.maximum(jnp.sum(jnp.square(rest)), 1e-12)
        return main + _AUXILIARY * jnp.where(dead.any(), spare, 0.0), (main, (kept > 0).any(axis=0))

    (_, (main, fired)), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    updates, state = optimizer.update(grads, state, weights)
    weights = optax.apply_updates(weights, updates)
    unit = weights.decoder / jnp.maximum(jnp.linalg.norm(weights.decoder, axis=1, keepdims=True), 1e-12)
    return weights._replace(decoder=unit), state, jnp.where(fired, 0, silent + len(x)), main


class Context(NamedTuple):
    """A place where a feature is large.

    Attributes:
        ids: of the tokens around it.
        sizes: of the feature at each of them.
    """

    ids: np.ndarray
    sizes: np.ndarray


def top_contexts(
    found: tuple[np.ndarray, np.ndarray], stream: Stream, number: int, count: int = 5, around: int = 8
) -> list[Context]:
    """Returns the places at which a feature is largest, at most one of each text.

    Args:
        found: the features of the stream, as of `Features.encode`.
        stream: the stream.
        number: of the feature.
        count: of the places.
        around: tokens that are shown before and after the place.
    """
    numbers, sizes = found
    own = np.where(numbers == number, sizes, 0.0).max(axis=1)
    places: dict[int, int] = {}
    for at in np.argsort(-own, kind="stable"):
        if own[at] <= 0 or len(places) == count:
            break
        places.setdefault(int(stream.texts[at]), int(at))
    made = []
    for text, at in places.items():
        ends = np.searchsorted(stream.texts, [text, text + 1])
        first, last = max(int(ends[0]), at - around), min(int(ends[1]), at + around + 1)
        made.append(Context(stream.ids[first:last], own[first:last]))
    return made
