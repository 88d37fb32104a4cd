"""The tuned lens: an affine map for each layer, trained so that the lens says what the model says in the end.

Belrose et al. 2023, arXiv:2303.08112, section 3: the residual stream x after a layer becomes x + A x + b before the
final norm, and A and b make the divergence from the model's own distribution small.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.analysis.inside import fields_of
from lmjax.analysis.lens import stream_names
from lmjax.analysis.subject import Subject
from lmjax.analysis.values import Ask, value
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text
from lmjax.model import intercept
from lmjax.model.language_model import LanguageModel
from lmjax.streams import random_stream

PyTree = Any


class TunedLens(NamedTuple):
    """The maps of all layers but the last, and of the inputs.

    Attributes:
        matrix: float32 `[layers, embed, embed]`.
        bias: float32 `[layers, embed]`.
        losses: float64 `[steps, layers]`, the divergences (nats per token) while they were trained.
    """

    matrix: np.ndarray
    bias: np.ndarray
    losses: np.ndarray


def tune(
    loaded: LoadedModel,
    texts: Sequence[Text],
    steps: int = 250,
    rate: float = 1e-3,
    batch_size: int = 8,
    seed: int = 0,
) -> TunedLens:
    """Returns the maps, trained by Adam on texts like those that are looked at.

    Args:
        loaded: a model that predicts tokens and reads one row, so no encoder-decoder.
        texts: at least one.
        steps: of training.
        rate: the learning rate; it falls to 0 along a cosine.
        batch_size: texts of a step.
        seed: of the order of the texts.

    Raises:
        FlagError: the model is another one, or there are no texts.
    """
    loaded.check_vocabulary()
    if loaded.config.family.paired or not len(texts):
        raise FlagError("a tuned lens needs texts, and a decoder or an encoder that predicts tokens")
    names = stream_names(loaded.config, loaded.config.family.predicts)
    fields, _ = fields_of(loaded, list(texts))
    width, layers = loaded.config.embed_dim, len(names) - 1
    maps = (jnp.zeros((layers, width, width)), jnp.zeros((layers, width)))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, max(1, steps)))
    state, rng, losses = optimizer.init(maps), random_stream(seed, "tuned lens"), []
    with loaded.on_devices():
        for _ in range(steps):
            rows = rng.choice(len(texts), batch_size)
            part = {name: x[rows] for name, x in fields.items()}
            loss, grads = _step(loaded.model, loaded.params, part, maps, names)
            updates, state = optimizer.update(grads, state, maps)
            maps = optax.apply_updates(maps, updates)
            losses.append(np.asarray(loss, np.float64))
    return TunedLens(*map(np.asarray, maps), np.array(losses).reshape(-1, layers))


def tuned_values(subject: Subject, lens: TunedLens) -> np.ndarray:
    """Returns float64 `[layers + 1]`, what a subject's number would be after the inputs and each layer, by the lens.

    The last one is the model's own, as of `lens.logit_lens`.
    """
    loaded = subject.loaded
    names = stream_names(loaded.config, loaded.config.family.predicts)
    maps = (lens.matrix, lens.bias)
    with loaded.on_devices():
        found = _values(loaded.model, loaded.params, dict(subject.fields), maps, subject.ask, names)
    return np.asarray(found, np.float64)


def _mapped(stream: jax.Array, maps: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns `[layers, batch, length, embed]`, the residual streams of the layers after their maps."""
    matrix, bias = maps
    moved = jnp.einsum("nble,nef->nblf", stream.astype(jnp.float32), matrix) + bias[:, None, None]
    return stream + moved.astype(stream.dtype)


def _hidden(
    model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array], streams: jax.Array, last: str
) -> jax.Array:
    """Returns hidden states `[layers, batch, length, embed]` of residual streams as if each was the last one."""
    return jax.lax.map(lambda x: intercept.replace(model, params, fields, {last: lambda _: x}), streams)


@functools.partial(jax.jit, static_argnames=("model", "names"))
def _step(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    maps: tuple[jax.Array, jax.Array],
    names: tuple[str, ...],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the divergence of each layer `[layers]`, and the gradients of their sum with respect to the maps."""
    hidden, found = intercept.record(model, params, fields, names)
    stream = jnp.stack([found[name] for name in names[:-1]])
    real = (fields["segment_ids"] > 0).astype(jnp.float32)

    def log_shares(states: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model.apply({"params": params}, states, method="logits").astype(jnp.float32))

    target = log_shares(hidden)

    def loss(maps: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states = _hidden(model, params, fields, _mapped(stream, maps), names[-1])

        def divergence(states: jax.Array) -> jax.Array:
            each = jnp.sum(jnp.exp(target) * (target - log_shares(states)), axis=-1)
            return jnp.sum(each * real) / jnp.sum(real)

        every = jax.lax.map(divergence, states)
        return jnp.sum(every), every

    (_, every), grads = jax.value_and_grad(loss, has_aux=True)(maps)
    return every, grads


@functools.partial(jax.jit, static_argnames=("model", "names"))
def _values(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    maps: tuple[jax.Array, jax.Array],
    ask: Ask,
    names: tuple[str, ...],
) -> jax.Array:
    found = intercept.record(model, params, fields, names)[1]
    stream = _mapped(jnp.stack([found[name] for name in names[:-1]]), maps)
    streams = jnp.concatenate([stream, found[names[-1]][None]])
    hidden = _hidden(model, params, fields, streams, names[-1])
    return jnp.stack([value(model, params, states, fields, ask)[0] for states in hidden])
