"""Which kernels a model can least do without: what becomes of its outputs if one kernel alone is compressed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.analysis.figures import new_axes
from lmjax.compress.calibrate import Batch
from lmjax.inference.loaded import LoadedModel
from lmjax.model.language_model import LanguageModel
from lmjax.model.parameter_paths import is_hidden_matrix, layer_of
from lmjax.model.parameters import flat, unflat
from lmjax.parallel.mesh import batch_sharding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any


def sensitivity(loaded: LoadedModel, given: Sequence[Batch], compressed: PyTree) -> dict[str, float]:
    """Returns by path of each kernel in a layer the mean divergence of the outputs if it alone is the compressed one.

    It is the Kullback-Leibler divergence of the model's own predictions to those with the kernel, in nats for each
    prediction. A model without logits has half the squared distance of its outputs.

    Args:
        loaded: the model.
        given: batches of texts.
        compressed: its parameters, compressed, with unrolled layers.
    """
    whole, other = flat(loaded.params), flat(compressed)
    found = {}
    for path in (path for path in whole if is_hidden_matrix(tuple(path.split("/")))):
        params = unflat(whole | {path: other[path].astype(whole[path].dtype)})
        sums = np.zeros(2)
        for batch in given:
            placed = jax.device_put(batch, batch_sharding(loaded.mesh))
            with loaded.on_devices():
                sums += np.asarray(_divergence(loaded.model, loaded.params, params, placed), np.float64)
        found[path] = float(sums[0] / sums[1])
    return found


@functools.partial(jax.jit, static_argnums=0)
def _divergence(model: LanguageModel, params: PyTree, other: PyTree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the sum of the divergences over the predictions of a batch, and their number, float32 `[2]`."""
    both = [model.apply({"params": each}, batch, method="outputs") for each in (params, other)]
    prefix = "decoder_" if model.config.family.paired else ""
    real = (batch[f"{prefix}segment_ids"] > 0).astype(jnp.float32)
    total, count = jnp.zeros(()), jnp.zeros(())
    for name in [name for name in both[0] if name != "hidden"] or ["hidden"]:
        x, y = (each[name].astype(jnp.float32) for each in both)
        if name == "hidden" or x.shape[-1] == 1:
            each = jnp.sum(jnp.square(x - y), axis=-1) / 2
        else:
            logs, others = jax.nn.log_softmax(x), jax.nn.log_softmax(y)
            each = jnp.sum(jnp.exp(logs) * (logs - others), axis=-1)
        weights = real if each.shape == real.shape else jnp.ones(each.shape)
        total, count = total + jnp.sum(each * weights), count + jnp.sum(weights)
    return jnp.stack([total, count])


def figure(values: Mapping[str, float]) -> Figure:
    """Returns a figure of what `sensitivity` returns: a row for each layer and a column for each kernel of a layer."""
    rows: dict[str, dict[str, float]] = {}
    for path, value in values.items():
        names = tuple(path.split("/"))
        end = len(layer_of(names).stack) + 1
        side = [name for name in names[: end - 1] if name in ("encoder", "decoder")]
        rows.setdefault(" ".join([*side, names[end - 1]]), {})["/".join(names[end:-1])] = value
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    numbers = np.array([[row.get(name, np.nan) for name in columns] for row in rows.values()])
    drawn, axes = new_axes(2 + 0.9 * len(columns), 1.8 + 0.32 * len(rows))
    image = axes.imshow(numbers, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_title("divergence of the outputs if this kernel alone is compressed")
    drawn.colorbar(image, label="nats for each prediction")
    return drawn
