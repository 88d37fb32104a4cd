"""Kernels kept in few bits, with a scale for each output or for each group of an output's inputs.

A kernel W `[inputs, outputs]` is kept as codes with code * s nearest to W. The scale s is the largest absolute value of
a group of consecutive inputs of an output, divided by the largest code (symmetric quantisation to the nearest; Dettmers
et al. 2022, arXiv:2208.07339, section 2). The forms of codes are in `codes.FORMS`. Modules read such a kernel as any
other: `astype` makes the numbers.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic
from flax import struct
from pydantic import Field

from lmjax.model.codes import FORMS, halves, packed, unpacked
from lmjax.model.parameter_paths import input_axes, is_hidden_matrix, names_of
from lmjax.schema import Schema

PyTree = Any


class QuantizationConfig(Schema):
    """How the kernels in layers are kept or rounded; routers, tables, norms and heads stay as they are."""

    weights: Literal["none", "int8", "int4", "nf4", "fp8"] = Field(
        "none",
        description="int8, int4: integers; nf4: 16 quantiles of the normal distribution (Dettmers et al. 2023,"
        " arXiv:2305.14314, section 3); fp8: e4m3 (Micikevicius et al. 2022, arXiv:2209.05433). Unless stored is on,"
        " kernels are trained as floating-point numbers, and each forward pass rounds them, with straight-through"
        " gradients (Jacob et al. 2018, arXiv:1712.05877, section 3).",
    )
    group: int = Field(0, ge=0, description="Consecutive inputs that share a scale; 0: all inputs of an output.")
    activations: Literal["none", "int8"] = Field(
        "none",
        description="int8: the inputs of these kernels are rounded too, with a scale for each position (Dettmers et al."
        " 2022, arXiv:2208.07339, section 2), and products are those of integers.",
    )
    stored: bool = Field(False, description="The kernels are kept in this form, as lmjax compress writes them.")
    factors: bool = Field(False, description="Stored kernels have a factor for each input (SmoothQuant, AWQ).")

    @property
    def simulated(self) -> bool:
        """Whether kernels are floating-point numbers that each forward pass rounds."""
        return self.weights != "none" and not self.stored

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights == "none" and (self.group or self.activations != "none" or self.stored or self.factors):
            raise ValueError("the other fields of quantization have no effect with weights=none; set weights")
        if self.activations == "int8" and (self.weights != "int8" or self.group):
            raise ValueError(
                f"activations=int8 needs weights=int8 and group=0, and not weights={self.weights} and"
                f" group={self.group}: products of integers have one scale for each output; change one of them"
            )
        if self.factors and not self.stored:
            raise ValueError("factors=True is for stored kernels; set stored=True, or factors=False")
        return self


class Quantized(struct.PyTreeNode):
    """A kernel in few bits, as a matrix of codes; scanned layers and experts come first.

    Attributes:
        values: codes `[..., inputs, outputs]`, or pairs of them `[..., inputs / 2, outputs]`.
        scales: float32 `[..., groups, outputs]`.
        factors: float32 `[..., inputs]`, by which inputs are multiplied; None: by 1.
        form: a name in FORMS.
        core: the shape of one kernel, such as (embed, heads, head_dim).
        rounds: whether products round their inputs to 8-bit integers.
    """

    values: jax.Array
    scales: jax.Array
    factors: jax.Array | None = None
    form: str = struct.field(pytree_node=False, default="int8")
    core: tuple[int, ...] = struct.field(pytree_node=False, default=())
    rounds: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel."""
        return (*self.values.shape[:-2], *self.core)

    @property
    def ndim(self) -> int:
        """The number of dimensions of the kernel."""
        return len(self.shape)

    @property
    def codes(self) -> jax.Array:
        """The codes, `[..., inputs, outputs]`."""
        return unpacked(self.values) if FORMS[self.form].bits == 4 else self.values

    def astype(self, dtype: Any) -> jax.Array:
        """Returns the kernel in a floating-point dtype; a factor on an input is in the kernel."""
        return self._numbers(self.codes, self.factors).reshape(self.shape).astype(dtype)

    @property
    def in_halves(self) -> bool:
        """Whether codes are in pairs of which both have one scale, so that `halves` can be made."""
        even = self.values.ndim == 2 and not self.values.shape[0] % self.scales.shape[-2]
        return FORMS[self.form].bits == 4 and even

    def halves(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel's even and odd inputs, matrices `[inputs / 2, outputs]`.

        A compiler can make their numbers inside a product, since they stand in the order of the codes; to put them in
        turn, as `astype` does, XLA writes them to memory.
        """
        factors = (None, None) if self.factors is None else (self.factors[0::2], self.factors[1::2])
        low, high = (self._numbers(*part).astype(dtype) for part in zip(halves(self.values), factors, strict=True))
        return low, high

    def _numbers(self, codes: jax.Array, factors: jax.Array | None) -> jax.Array:
        """Returns float32 numbers `[..., inputs, outputs]` for codes and factors of inputs."""
        numbers = _by_group(FORMS[self.form].value(codes), self.scales.shape[-2]) * self.scales[..., None, :]
        numbers = numbers.reshape(codes.shape)
        return numbers if factors is None else numbers * factors[..., None]


def _by_group(matrix: jax.Array, groups: int) -> jax.Array:
    """Returns matrices `[..., inputs, outputs]` as `[..., groups, inputs of a group, outputs]`."""
    return matrix.reshape(*matrix.shape[:-2], groups, -1, matrix.shape[-1])


def scales_of(matrix: jax.Array, group: int, form: str = "int8") -> jax.Array:
    """Returns the scales of matrices, float32 `[..., groups, outputs]`; 1 over the largest code where all are zero.

    Args:
        matrix: `[..., inputs, outputs]`.
        group: as in QuantizationConfig.
        form: a name in FORMS.
    """
    groups = matrix.shape[-2] // group if group else 1
    largest = jnp.max(jnp.abs(_by_group(matrix.astype(jnp.float32), groups)), axis=-2)
    return jnp.where(largest > 0, largest, 1.0) / FORMS[form].most


def as_matrices(kernel: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
    """Returns kernels as matrices `[..., inputs, outputs]`; `inputs` are the axes that a product sums over."""
    first = min(inputs) % kernel.ndim
    width = math.prod(kernel.shape[first : first + len(inputs)])
    return kernel.reshape(*kernel.shape[:first], width, math.prod(kernel.shape[first + len(inputs) :]))


def quantized(
    kernel: jax.Array,
    inputs: tuple[int, ...],
    quantization: QuantizationConfig | None = None,
    factors: jax.Array | None = None,
) -> Quantized:
    """Returns a kernel in few bits, each number rounded to the nearest code.

    Args:
        kernel: of any shape.
        inputs: the axes that a product sums over.
        quantization: the form; None: 8-bit integers with a scale for each output.
        factors: `[..., inputs]`, by which products multiply their inputs, so that the kernel is divided by them.
    """
    quantization = QuantizationConfig(weights="int8") if quantization is None else quantization
    form = FORMS[quantization.weights]
    matrix = as_matrices(kernel.astype(jnp.float32), inputs)
    if factors is not None:
        matrix = matrix / factors[..., None]
    scales = scales_of(matrix, quantization.group, quantization.weights)
    codes = form.nearest(_by_group(matrix, scales.shape[-2]) / scales[..., None, :]).reshape(matrix.shape)
    return of_codes(codes, scales, kernel.shape[min(inputs) % kernel.ndim :], quantization, factors)


def of_codes(
    codes: jax.Array,
    scales: jax.Array,
    core: tuple[int, ...],
    quantization: QuantizationConfig,
    factors: jax.Array | None = None,
) -> Quantized:
    """Returns a kernel of given codes `[..., inputs, outputs]`; the other arguments are those of `Quantized`."""
    values = packed(codes) if FORMS[quantization.weights].bits == 4 else codes
    return Quantized(values, scales, factors, quantization.weights, tuple(core), quantization.activations == "int8")


def is_quantized(x: Any) -> bool:
    """Returns whether `x` is a kernel in few bits."""
    return isinstance(x, Quantized)


def quantize_layers(params: PyTree, quantization: QuantizationConfig | None = None) -> PyTree:
    """Returns parameters whose kernels in layers are in few bits; those that are already stay as they are.

    Args:
        params: of a model.
        quantization: the form; None: 8-bit integers with a scale for each output.
    """

    def of(path: tuple, leaf: jax.Array | Quantized) -> jax.Array | Quantized:
        names = names_of(path)
        if is_quantized(leaf) or not is_hidden_matrix(names):
            return leaf
        return quantized(leaf, input_axes(names, leaf.ndim), quantization)

    return jax.jit(lambda tree: jax.tree_util.tree_map_with_path(of, tree, is_leaf=is_quantized))(params)


def boxed_codes(params: PyTree, quantization: QuantizationConfig) -> PyTree:
    """Returns the shapes of parameters, boxed with their axis names, with kernels in layers in few bits.

    The axis of groups and that of factors have no name, so that they are not split.

    Args:
        params: shapes of floating-point parameters, boxed.
        quantization: the form.
    """

    def of(path: tuple, box: nn.Partitioned) -> nn.Partitioned | Quantized:
        names, rank = names_of(path), len(box.value.shape)
        if not is_hidden_matrix(names):
            return box
        inputs = input_axes(names, rank)
        first, width = min(inputs) % rank, math.prod(box.value.shape[i] for i in inputs)
        lead = box.value.shape[:first]
        factors = jax.ShapeDtypeStruct((*lead, width), jnp.float32) if quantization.factors else None
        shape = jax.eval_shape(lambda x, f: quantized(x, inputs, quantization, f), box.value, factors)
        before, outputs = box.names[:first], box.names[first + len(inputs)]
        return shape.replace(
            values=box.replace(value=shape.values, names=(*before, box.names[first], outputs)),
            scales=box.replace(value=shape.scales, names=(*before, None, outputs)),
            factors=box.replace(value=shape.factors, names=(*before, None)) if quantization.factors else None,
        )

    return jax.tree_util.tree_map_with_path(of, params, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def in_full(params: PyTree, dtype: Any) -> PyTree:
    """Returns parameters whose kernels are all floating-point numbers; those that are already stay as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if is_quantized(x) else x, params, is_leaf=is_quantized)


def rounded_layers(params: PyTree) -> PyTree:
    """Returns parameters whose kernels in layers have the values that `quantize_layers` keeps, in their own dtype."""

    def rounded(params: PyTree) -> PyTree:
        kept = quantize_layers(params)
        return jax.tree.map(
            lambda x, own: own if is_quantized(own) else x.astype(own.dtype), kept, params, is_leaf=is_quantized
        )

    return jax.jit(rounded)(params)


def straight_through(
    kernel: jax.Array, names: tuple[str, ...], inputs: tuple[int, ...], quantization: QuantizationConfig
) -> jax.Array:
    """Returns a kernel with the values that quantisation gives it, and the gradient of the kernel itself.

    Args:
        kernel: a parameter.
        names: its path.
        inputs: the axes that a product sums over.
        quantization: of the model; the kernel itself is returned if it is not one that is rounded.
    """
    if not quantization.simulated or not is_hidden_matrix(names):
        return kernel
    return _through(kernel, quantized(kernel, inputs, quantization).astype(kernel.dtype))


def rounded_inputs(x: jax.Array, names: tuple[str, ...], dims: int, quantization: QuantizationConfig) -> jax.Array:
    """Returns the inputs of a kernel as `straight_through` returns the kernel; `dims` are its dimensions of inputs."""
    if not quantization.simulated or quantization.activations == "none" or not is_hidden_matrix(names):
        return x
    codes, scales = _rows(x.reshape(*x.shape[: x.ndim - dims], -1))
    return _through(x, (codes.astype(jnp.float32) * scales).reshape(x.shape).astype(x.dtype))


@jax.custom_jvp
def _through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Returns `rounded`, with the derivative of `x` (Bengio et al. 2013, arXiv:1308.3432, section 2)."""
    del x
    return rounded


@_through.defjvp
def _through_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]


def _rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the int8 codes `[..., inputs]` of activations, and a scale for each position, float32 `[..., 1]`."""
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1, keepdims=True)
    scales = jnp.where(largest > 0, largest, 1.0) / 127
    return jnp.round(x.astype(jnp.float32) / scales).astype(jnp.int8), scales


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def integer_dot(x: jax.Array, kernel: Quantized, dims: int, out_dtype: str | None) -> jax.Array:
    """Returns the product of activations, rounded to 8-bit integers, and an int8 kernel, summed in int32.

    Its gradient for `x` is that of the product with the kernel's numbers.

    Args:
        x: `[..., *inputs]`.
        kernel: in the form int8, with one group.
        dims: the number of dimensions of the inputs.
        out_dtype: of the product; None: that of `x`.
    """
    flat = x.reshape(*x.shape[: x.ndim - dims], -1)
    if kernel.factors is not None:
        flat = flat.astype(jnp.float32) * jax.lax.expand_dims(kernel.factors, range(flat.ndim - 1))
    codes, scales = _rows(flat)
    contract = (((codes.ndim - 1,), (0,)), ((), ()))
    y = jax.lax.dot_general(codes, kernel.values, contract, preferred_element_type=jnp.int32)
    y = y.astype(jnp.float32) * scales * jax.lax.expand_dims(kernel.scales[0], range(codes.ndim - 1))
    return y.reshape(*flat.shape[:-1], *kernel.core[dims:]).astype(out_dtype or x.dtype)


def _integer_forward(
    x: jax.Array, kernel: Quantized, dims: int, out_dtype: str | None
) -> tuple[jax.Array, tuple[Quantized, jax.Array]]:
    return integer_dot(x, kernel, dims, out_dtype), (kernel, x)


def _integer_backward(
    dims: int, out_dtype: str | None, kept: tuple[Quantized, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    del out_dtype
    kernel, x = kept
    outputs = len(kernel.core) - dims
    axes = (tuple(range(cotangent.ndim - outputs, cotangent.ndim)), tuple(range(dims, len(kernel.core))))
    return jax.lax.dot_general(cotangent, kernel.astype(cotangent.dtype), (axes, ((), ()))).astype(x.dtype), None


integer_dot.defvjp(_integer_forward, _integer_backward)
