"""What the inputs of kernels are on given texts: the calibration of methods that choose codes or zeros by them.

Flax calls a function of this file at each Dense layer (`flax.linen.intercept_methods`), as in `lmjax.model.intercept`,
whose glossary has outputs of modules alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.model.language_model import LanguageModel
from lmjax.model.layers import Dense
from lmjax.model.parameter_paths import Names, is_hidden_matrix, layer_of
from lmjax.model.parameters import flat
from lmjax.parallel.mesh import batch_sharding

PyTree = Any
Batch = dict[str, np.ndarray]
_ROWS = 16


class Inputs(NamedTuple):
    """Sums over the inputs of a kernel: all positions of all texts but padding.

    Attributes:
        products: `[inputs, inputs]`, of x x^T; None: not asked for.
        squares: `[inputs]`, of x^2.
        sizes: `[inputs]`, of |x|.
        largest: `[inputs]`, the largest |x|.
        count: the number of positions.
    """

    products: np.ndarray | None
    squares: np.ndarray
    sizes: np.ndarray
    largest: np.ndarray
    count: np.ndarray

    def plus(self, other: Inputs) -> Inputs:
        """Returns the sums over the texts of both."""
        products = None if self.products is None else self.products + other.products
        most = (jnp if isinstance(self.largest, jax.Array) else np).maximum(self.largest, other.largest)
        return Inputs(products, self.squares + other.squares, self.sizes + other.sizes, most, self.count + other.count)


def batches(loaded: LoadedModel, texts: Iterable[tuple[str, str | None]], count: int, length: int) -> list[Batch]:
    """Returns the first `count` texts as rows of at most `length` tokens, in batches.

    An encoder-decoder reads the target after the source; a text without a target is cut in the middle into both.

    Args:
        loaded: the model.
        texts: each with its target, or None.
        count: the most texts.
        length: the most tokens of a row.

    Raises:
        FlagError: there is no text.
    """
    paired, chosen = loaded.config.family.paired, []
    for source, target in itertools.islice((pair for pair in texts if pair[0].strip()), count):
        if not paired:
            whole = source if not target else f"{source} {target}"
            chosen.append((loaded.encode(whole)[:length], None))
            continue
        if target is None:
            words = source.split(" ")
            source, target = (" ".join(part) for part in (words[: len(words) // 2], words[len(words) // 2 :]))
        ids = loaded.encode(source)[:length], loaded.tokenizer.encode(target)[: length - 2]
        if all(ids):
            chosen.append(ids)
    if not chosen:
        raise FlagError("--data: has no text to calibrate with; give a file with texts like those that the model reads")
    found = []
    for start in range(0, len(chosen), _ROWS):
        sources, targets = zip(*chosen[start : start + _ROWS], strict=True)
        found.append(loaded.rows(list(sources), list(targets) if paired else None))
    return found


def layers(params: PyTree) -> list[Names]:
    """Returns the paths of the layers of a model with unrolled layers, in the order in which they are computed."""
    found: dict[Names, tuple[bool, int]] = {}
    for path in flat(params):
        names = tuple(path.split("/"))
        if is_hidden_matrix(names):
            layer = layer_of(names)
            found[names[: len(layer.stack) + 1]] = ("encoder" not in layer.stack, layer.number)
    return sorted(found, key=found.get)


def observe(
    loaded: LoadedModel, params: PyTree, given: Sequence[Batch], chosen: Sequence[Names], *, products: bool = True
) -> dict[str, Inputs]:
    """Returns the sums over the inputs of the kernels in some layers, by path, in float64.

    Args:
        loaded: the model.
        params: its parameters, which may be others than those in `loaded`.
        given: batches of texts.
        chosen: the paths of layers.
        products: whether to sum the products of inputs, which take the square of their number.
    """
    total: dict[str, Inputs] = {}
    for batch in given:
        placed = jax.device_put(batch, batch_sharding(loaded.mesh))
        with loaded.on_devices():
            found = _sums(loaded.model, params, placed, tuple(chosen), products)
        for path, sums in found.items():
            each = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            total[path] = total[path].plus(each) if path in total else each
    return total


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _sums(
    model: LanguageModel, params: PyTree, batch: Mapping[str, jax.Array], chosen: tuple[Names, ...], products: bool
) -> dict[str, Inputs]:
    """Returns the sums over the inputs of kernels for one batch, by path."""
    visitor = _Visitor(batch, chosen, products)
    with nn.intercept_methods(visitor):
        model.apply({"params": params}, batch)
    return visitor.found


class _Visitor:
    """The function that Flax calls instead of each method of each module."""

    def __init__(self, batch: Mapping[str, jax.Array], chosen: tuple[Names, ...], products: bool):
        self._batch, self._chosen, self._products = batch, chosen, products
        self.found: dict[str, Inputs] = {}

    def __call__(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Returns the output of the method, and adds its input to the sums if it is a kernel's."""
        module = context.module
        if isinstance(module, Dense) and context.method_name == "__call__":
            names = (*module.path, "kernel")
            if is_hidden_matrix(names) and any(names[: len(each)] == each for each in self._chosen):
                path, sums = "/".join(names), self._of(names, args[0], len(module.axes) - len(module.features))
                # Layers that share parameters call one module several times.
                self.found[path] = self.found[path].plus(sums) if path in self.found else sums
        return method(*args, **kwargs)

    def _of(self, names: Names, x: jax.Array, dims: int) -> Inputs:
        """Returns the sums over one input of a kernel."""
        x = x.reshape(*x.shape[: x.ndim - dims], -1).astype(jnp.float32)
        x = jnp.where(self._real(names)[..., None], x, 0).reshape(-1, x.shape[-1])
        sizes = jnp.abs(x)
        return Inputs(
            jnp.matmul(x.T, x) if self._products else None,
            jnp.sum(jnp.square(x), axis=0),
            jnp.sum(sizes, axis=0),
            jnp.max(sizes, axis=0),
            jnp.sum(self._real(names).astype(jnp.float32)),
        )

    def _real(self, names: Names) -> jax.Array:
        """Returns which positions of a kernel's input are tokens, `[batch, length]`."""
        across = names[-3] == "cross_attention" and names[-2] in ("key", "value")
        side = "encoder_" if "encoder" in names or across else "decoder_"
        return self._batch.get(f"{side}segment_ids", self._batch.get("segment_ids")) > 0
