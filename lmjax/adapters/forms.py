"""The formulas of adapters: what they add to a layer, and the kernel that a layer with an adapter is equal to.

x is the input of a layer with the kernel W `[inputs, outputs]`, r the rank, s the scale:

| kind | parameters | output |
|---|---|---|
| lora, rslora | A `[inputs, r]`, B `[r, outputs]` | x W + s (x A) B |
| dora | A, B, m `[outputs]` | x V m / norm(V), with V = W + s A B and the norm of each of its columns |
| ia3 | l `[outputs]`, or `[inputs]` in the last layer of an MLP | (x W) l, or (x l) W |

No gradient of W is computed, because the training step differentiates with respect to the adapter alone. Inputs and
outputs can be several dimensions, such as (heads, head_dim).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.adapters.config import AdapterConfig
from lmjax.model.layers import Dense, Embed, align, dot
from lmjax.model.moe import ExpertKernels

Shape = tuple[int, ...]
# The names of the adapters' parameters, which stand beside the kernel or the table that they change.
A, B, MAGNITUDE, OUTPUTS, INPUTS = "lora_a", "lora_b", "dora_magnitude", "ia3_outputs", "ia3_inputs"
NAMES = frozenset({A, B, MAGNITUDE, OUTPUTS, INPUTS})


def made(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    names: Sequence[str],
    shape: Shape,
) -> jax.Array:
    """Returns a parameter of an adapter in its layer, and makes it where it is not there yet."""
    if (found := module.get_variable("params", name)) is not None:
        return nn.unbox(found)
    return module.param(name, axes.partitioned(init, names), shape, jnp.dtype(module.config.param_dtype))


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Returns the initializer of A, as in the code of Hu et al. 2021 (`kaiming_uniform_` with a = sqrt(5))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns A B in float32 for A `[..., r]` and B `[r, ...]`."""
    return jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), axes=1)


def norms(kernel: jax.Array, outputs: int) -> jax.Array:
    """Returns the norm of each column of a kernel, float32, with the shape of its last `outputs` dimensions."""
    columns = kernel.astype(jnp.float32)
    return jnp.sqrt(jnp.sum(jnp.square(columns), axis=tuple(range(kernel.ndim - outputs))))


def rows_of(x: jax.Array, adapters: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns the adapter of each row of `x` `[batch, ...]`, from `[adapters, ...]`.

    Args:
        x: the input of a layer.
        adapters: a parameter of several adapters.
        rows: int32, the number of the adapter of each row; a beam search has several rows of `x` for each.
    """
    return jnp.repeat(adapters[rows], x.shape[0] // rows.shape[0], axis=0)


class Form:
    """A kind of adapter; this class is LoRA, which also adapts tables and the kernels of experts."""

    tables: ClassVar[bool] = True
    experts: ClassVar[bool] = True

    def __init__(self, config: AdapterConfig):
        """Takes the adapter's fields."""
        self.config = config

    def _factors(self, layer: Dense, inputs: Shape) -> tuple[jax.Array, jax.Array]:
        dims, rank = len(inputs), self.config.rank
        a = made(layer, A, uniform(math.prod(inputs)), (*layer.axes[:dims], "rank"), (*inputs, rank))
        b = made(layer, B, nn.initializers.zeros, ("rank", *layer.axes[dims:]), (rank, *layer.features))
        return a, b

    def dense(self, layer: Dense, x: jax.Array, y: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns the output of an adapted layer.

        Args:
            layer: the layer.
            x: its input, `[..., *inputs]`.
            y: its output without the adapter, `[..., *outputs]`.
            rows: the number of the adapter of each row, where parameters are `[adapters, ...]`; None: there is one.
        """
        dims = len(layer.axes) - len(layer.features)
        a, b = self._factors(layer, x.shape[x.ndim - dims :])
        return y + self._low_rank(layer, x, a, b, rows).astype(y.dtype)

    def _low_rank(self, layer: Dense, x: jax.Array, a: jax.Array, b: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns s (x A) B."""
        dims, x = len(layer.axes) - len(layer.features), x.astype(layer.config.dtype)
        if rows is None:
            return self.config.scale * dot(dot(x, a, dims), b, 1, layer.out_dtype)
        a, b = (rows_of(x, each, rows).astype(x.dtype) for each in (a, b))
        flat = x.reshape(*x.shape[: x.ndim - dims], -1)
        inner = jnp.einsum("b...i,bir->b...r", flat, a.reshape(len(a), -1, a.shape[-1]))
        outer = jnp.einsum(
            "b...r,bro->b...o", inner, b.reshape(*b.shape[:2], -1), preferred_element_type=layer.out_dtype
        )
        return self.config.scale * outer.reshape(*inner.shape[:-1], *layer.features)

    def before(self, layer: Dense, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns the input that the layer gets in place of `x`."""
        del layer, rows
        return x

    def table(self, table: Embed) -> None:
        """Makes the parameters beside a table; called at the end of its setup."""
        rank = self.config.rank
        # As in the code of Hu et al. 2021: here A is zero at first.
        made(table, A, nn.initializers.zeros, (table.row_axis, "rank"), (table.rows, rank))
        made(table, B, nn.initializers.normal(1.0), ("rank", table.width_axis), (rank, table.config.table_dim))

    def look_up(self, table: Embed, ids: jax.Array, y: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns the vectors of ids from an adapted table; `y` are those of the table itself."""
        a, b = (nn.unbox(table.get_variable("params", name)) for name in (A, B))
        if rows is None:
            a = axes.constrain(a, (table.row_axis, None))
            return y + self.config.scale * dot(jnp.take(a, ids, axis=0, mode="fill").astype(y.dtype), b)
        chosen = jnp.take_along_axis(rows_of(ids, a, rows), ids[..., None], axis=1).astype(y.dtype)
        return y + self.config.scale * jnp.einsum("blr,bre->ble", chosen, rows_of(ids, b, rows).astype(y.dtype))

    def attend(self, table: Embed, x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the products of `x` with the rows of an adapted table; `y` are those with the table itself."""
        a, b = (nn.unbox(table.get_variable("params", name)) for name in (A, B))
        inner = dot(x.astype(table.config.dtype), b, transposed=True)
        return y + self.config.scale * dot(inner, a, out_dtype="float32", transposed=True)

    def expert(self, layer: ExpertKernels, kernels: jax.Array, inputs: int) -> jax.Array:
        """Returns the adapted kernels of experts, `[experts, inputs, outputs]`.

        The dispatch multiplies by them, so here the sum of both is computed.
        """
        experts, rank = len(kernels), self.config.rank
        a = made(layer, A, uniform(inputs), ("experts", layer.axes[0], "rank"), (experts, inputs, rank))
        b = made(layer, B, nn.initializers.zeros, ("experts", "rank", layer.axes[1]), (experts, rank, layer.features))
        return self.merged({"kernel": kernels, A: a, B: b}, "kernel", 1)["kernel"].astype(kernels.dtype)

    def merged(self, layer: Mapping[str, jax.Array], name: str, leading: int) -> dict[str, jax.Array]:
        """Returns the parameters of a layer that computes the same without an adapter.

        Args:
            layer: the parameters of one layer, those of its adapter included.
            name: of the kernel or of the table.
            leading: the number of dimensions in front: scanned layers, experts.
        """
        merge = self._merged
        for _ in range(leading):
            merge = jax.vmap(merge)
        arrays = {("kernel" if n == name else n): x.astype(jnp.float32) for n, x in layer.items()}
        found = merge(arrays)
        return {n: found["kernel" if n == name else n].astype(x.dtype) for n, x in layer.items() if n not in NAMES}

    def _merged(self, layer: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the merged parameters of one kernel, in float32; its bias too, if it has one."""
        return {**layer, "kernel": layer["kernel"] + self.config.scale * product(layer[A], layer[B])}


class DoRA(Form):
    """Weight-decomposed LoRA: the length of each column of the kernel is a parameter of its own."""

    tables = False
    experts = False

    def dense(self, layer: Dense, x: jax.Array, y: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns the output of an adapted layer; its bias is not scaled."""
        dims, outputs = len(layer.axes) - len(layer.features), len(layer.features)
        a, b = self._factors(layer, x.shape[x.ndim - dims :])
        kernel = nn.unbox(layer.get_variable("params", "kernel")).astype(jnp.float32)
        names = tuple("norm" if name == "embed" else name for name in layer.axes[dims:])
        magnitude = made(layer, MAGNITUDE, lambda *_: norms(kernel, outputs), names, layer.features)
        # Without a gradient, as in section 4.3 of the paper.
        if rows is None:
            length = jax.lax.stop_gradient(norms(kernel + self.config.scale * product(a, b), outputs))
            gain = magnitude / length
        else:
            whole = jax.vmap(lambda a, b: norms(kernel + self.config.scale * product(a, b), outputs))(a, b)
            gain = rows_of(x, magnitude / whole, rows)
            gain = gain.reshape(len(gain), *(1,) * (y.ndim - gain.ndim), *layer.features)
        bias = layer.get_variable("params", "bias")
        bias = 0 if bias is None else align(nn.unbox(bias).astype(y.dtype), y)
        gain = align(gain, y).astype(y.dtype)
        return y + (gain - 1) * (y - bias) + gain * self._low_rank(layer, x, a, b, rows).astype(y.dtype)

    def _merged(self, layer: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        whole = super()._merged(layer)
        outputs = layer[MAGNITUDE].ndim
        gain = layer[MAGNITUDE] / norms(whole["kernel"], outputs)
        return {**whole, "kernel": whole["kernel"] * align(gain, whole["kernel"])}


class IA3(Form):
    """Infused adapter by inhibiting and amplifying inner activations: a factor on keys, values and MLP activations."""

    tables = False
    experts = False

    def before(self, layer: Dense, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns the scaled activations of the MLP before its last layer; other inputs unchanged."""
        if layer.axes[0] != "mlp":
            return x
        return self._scaled(made(layer, INPUTS, nn.initializers.ones, ("mlp",), (x.shape[-1],)), x, rows)

    def dense(self, layer: Dense, x: jax.Array, y: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Returns the scaled output, or that of scaled inputs unchanged."""
        if layer.axes[0] == "mlp":
            return y
        dims = len(layer.axes) - len(layer.features)
        names = tuple("norm" if name == "embed" else name for name in layer.axes[dims:])
        return self._scaled(made(layer, OUTPUTS, nn.initializers.ones, names, layer.features), y, rows)

    @staticmethod
    def _scaled(factors: jax.Array, y: jax.Array, rows: jax.Array | None) -> jax.Array:
        if rows is not None:
            own = rows_of(y, factors, rows)
            return y * own.reshape(len(own), *(1,) * (y.ndim - own.ndim), *own.shape[1:]).astype(y.dtype)
        return y * align(factors.astype(y.dtype), y)

    def _merged(self, layer: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        kernel = layer["kernel"]
        if INPUTS in layer:
            return {**layer, "kernel": kernel * layer[INPUTS][:, None]}
        scaled = {"bias": layer["bias"] * layer[OUTPUTS]} if "bias" in layer else {}
        return {**layer, "kernel": kernel * align(layer[OUTPUTS], kernel), **scaled}


FORMS = {"lora": Form, "rslora": Form, "dora": DoRA, "ia3": IA3}
