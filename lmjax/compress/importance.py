"""How much heads, MLP neurons and layers do for a model's outputs on given texts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compress.calibrate import Batch
from lmjax.inference.loaded import LoadedModel
from lmjax.model import intercept
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import batch_sharding

PyTree = Any
Arrays = Mapping[str, jax.Array]


def gains(loaded: LoadedModel, given: Sequence[Batch], names: Sequence[str], axis: int) -> dict[str, np.ndarray]:
    """Returns the importance of each part of some activations: by how much the loss changes if it is left out.

    It is the sum over texts of |d loss / d m| for a factor m on the part, at m = 1 (Michel et al. 2019,
    arXiv:1905.10650, section 2.4, for heads; Molchanov et al. 2017, arXiv:1611.06440, section 2.2, for neurons). The
    loss is that of the next token in a decoder; otherwise that of the model's own likeliest answers, so that no labels
    are needed.

    Args:
        loaded: the model.
        given: batches of texts.
        names: of the activations, as in `lmjax.model.intercept`.
        axis: that of the parts.
    """
    total: dict[str, np.ndarray] = {}
    for batch in given:
        placed = jax.device_put(batch, batch_sharding(loaded.mesh))
        with loaded.on_devices():
            found = _gains(loaded.model, loaded.params, placed, tuple(names), axis)
        for name, x in found.items():
            total[name] = total.get(name, 0) + np.asarray(x, np.float64)
    return total


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _gains(
    model: LanguageModel, params: PyTree, batch: Arrays, names: tuple[str, ...], axis: int
) -> dict[str, jax.Array]:
    shapes = jax.eval_shape(lambda: intercept.record(model, params, batch, names, method="outputs")[1])
    masks = {name: jnp.ones((x.shape[0], x.shape[axis])) for name, x in shapes.items()}

    def by(mask: jax.Array) -> Callable[[jax.Array], jax.Array]:
        def change(x: jax.Array) -> jax.Array:
            inner = tuple(i for i in range(x.ndim) if i not in (0, axis % x.ndim))
            return x * jnp.expand_dims(mask, inner).astype(x.dtype)

        return change

    def loss(masks: Arrays) -> jax.Array:
        changes = {name: by(mask) for name, mask in masks.items()}
        return _loss(model, intercept.replace(model, params, batch, changes, method="outputs"), batch)

    return {name: jnp.sum(jnp.abs(x), axis=0) for name, x in jax.grad(loss)(masks).items()}


def _loss(model: LanguageModel, outputs: Arrays, batch: Arrays) -> jax.Array:
    """Returns the summed loss of a batch."""
    answers = {name: x for name, x in outputs.items() if name != "hidden"} or outputs
    prefix = "decoder_" if model.config.family.paired else ""
    tokens, real = batch[f"{prefix}tokens"], batch[f"{prefix}segment_ids"] > 0
    total = jnp.zeros(())
    for name, x in answers.items():
        if name == "hidden" or x.ndim < 2 or x.shape[-1] == 1:
            total += jnp.sum(jnp.square(x.astype(jnp.float32))) / 2
            continue
        logs = jax.nn.log_softmax(x.astype(jnp.float32))
        weights, targets = jnp.ones(x.shape[:-1]), jax.lax.stop_gradient(jnp.argmax(x, axis=-1))
        if name == "logits":
            weights = real.astype(jnp.float32)
            if model.config.family.causal:
                targets = jnp.roll(tokens, -1, axis=1)
                weights *= jnp.roll(weights, -1, axis=1).at[:, -1].set(0)
        total -= jnp.sum(jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0] * weights)
    return total


def influence(loaded: LoadedModel, given: Sequence[Batch], side: str, count: int) -> np.ndarray:
    """Returns by layer how far it turns the residual stream: 1 minus the mean cosine of its input and output.

    Men et al. 2024, arXiv:2403.03853, section 3.1.

    Args:
        loaded: the model.
        given: batches of texts.
        side: the prefix of the names of a stack's activations, such as `encoder/`; empty: the only stack's.
        count: the layers of the stack.
    """
    names = (f"{side}inputs", *(f"{side}layer_{i}" for i in range(count)))
    total, positions = np.zeros(count), 0.0
    for batch in given:
        placed = jax.device_put(batch, batch_sharding(loaded.mesh))
        with loaded.on_devices():
            sums, number = _turns(loaded.model, loaded.params, placed, names, side.replace("/", "_"))
        total, positions = total + np.asarray(sums, np.float64), positions + float(number)
    return total / positions


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _turns(
    model: LanguageModel, params: PyTree, batch: Arrays, names: tuple[str, ...], prefix: str
) -> tuple[jax.Array, jax.Array]:
    _, found = intercept.record(model, params, batch, names)
    real = (batch[f"{prefix}segment_ids"] > 0).astype(jnp.float32)
    stream = [found[name].astype(jnp.float32) for name in names]
    unit = [x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9) for x in stream]
    cosines = [jnp.sum(jnp.sum(x * y, axis=-1) * real) for x, y in itertools.pairwise(unit)]
    return jnp.sum(real) - jnp.stack(cosines), jnp.sum(real)
