"""Dense, Embed, Norm and MLP: the layers that process each position separately."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model import cpu
from lmjax.model.dropout import dropout
from lmjax.model.outputs_first import OutputsFirst
from lmjax.model.parameters import parameter
from lmjax.model.platform import platform
from lmjax.model.quantized import Quantized, integer_dot, rounded_inputs, straight_through

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, arXiv:2109.08668, section 3.2
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    # For gated MLPs (Shazeer 2020, arXiv:2002.05202, section 2): the activation of the gate.
    "geglu": functools.partial(jax.nn.gelu, approximate=False),
    "geglu_new": functools.partial(jax.nn.gelu, approximate=True),
    "swiglu": jax.nn.silu,
    "reglu": jax.nn.relu,
}


# Names of the axes that grow with the width of the model.
_WIDE = frozenset({"embed", "heads", "kv_heads", "head_dim", "mlp"})


def mup_init(config: ModelConfig, inputs: Sequence[str], outputs: Sequence[str]) -> float:
    """Returns muP's factor on an initial kernel, given the names of its axes (Yang et al. 2022, table 3).

    The deviation of a kernel whose inputs grow with the width falls with the root of the width, and with the width
    itself if its outputs do not grow. `fan_in` and `xavier` contain the root already.
    """
    if _WIDE.isdisjoint(inputs):
        return 1.0
    power = (0.0 if config.initializer in ("fan_in", "xavier") else 0.5) + (0.5 if _WIDE.isdisjoint(outputs) else 0.0)
    return config.width_factor**-power


def kernel_init(
    config: ModelConfig, fan_in: int, fan_out: int, scale: float | jax.Array = 1.0
) -> nn.initializers.Initializer:
    """Returns the initializer of a kernel that the config names.

    Args:
        config: of the model.
        fan_in: number of inputs that each output sums over.
        fan_out: number of outputs.
        scale: factor on the drawn numbers; a traced one may differ between scanned layers.
    """
    if config.initializer == "truncated_normal":
        return nn.initializers.truncated_normal(scale * config.init_std)
    if config.initializer == "xavier":
        # Glorot and Bengio 2010, equation 16.
        bound = scale * (6 / (fan_in + fan_out)) ** 0.5
        return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    return nn.initializers.normal(scale * (fan_in**-0.5 if config.initializer == "fan_in" else config.init_std))


def table_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Returns the initializer of an embedding table that the config names."""
    truncated = config.initializer == "truncated_normal"
    return (nn.initializers.truncated_normal if truncated else nn.initializers.normal)(config.embedding_std)


def dot(
    x: jax.Array,
    kernel: jax.Array | Quantized | OutputsFirst,
    dims: int = 1,
    out_dtype: str | None = None,
    *,
    transposed: bool = False,
) -> jax.Array:
    """Returns the product of `x` and `kernel` (cast to the dtype of `x`), over the last `dims` dimensions of `x`.

    All products of an activation with a parameter are computed here, so that a backend can have its own code for them.

    Args:
        x: activations.
        kernel: a parameter; its first `dims` dimensions are contracted.
        dims: number of dimensions that are contracted.
        out_dtype: of the product; None: that of `x`.
        transposed: the kernel is a matrix, and its last dimension is contracted. This is used instead of `kernel.T`,
            because for a single row XLA on a CPU (jax 0.10.2) writes the transpose to memory: 15 of the 45 ms of a
            token of GPT-2 (experiments/README.md, "Generation beside transformers on torch").
    """
    if isinstance(kernel, OutputsFirst):
        flat = x.reshape(*x.shape[: x.ndim - dims], -1)
        y = dot(flat, kernel.matrix, out_dtype=out_dtype, transposed=True)
        return y.reshape(*y.shape[:-1], *kernel.core[dims:])
    if isinstance(kernel, Quantized) and kernel.rounds:
        return integer_dot(x, kernel, dims, out_dtype)
    if isinstance(kernel, Quantized):
        # The backward pass makes the numbers anew, so that those of one layer at a time are in memory.
        return jax.checkpoint(lambda x, kernel: _dot_of_codes(x, kernel, dims, out_dtype))(x, kernel)
    # As a matrix, rows and positions would be one dimension, which no mesh axes split as they split the two.
    if platform() == "cpu" and axes.sequence_ways() == 1:
        return cpu.dot(x, kernel, dims, out_dtype, transposed=transposed)
    of_kernel = (1,) if transposed else tuple(range(dims))
    contracting = (tuple(range(x.ndim - dims, x.ndim)), of_kernel)
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (contracting, ((), ())), preferred_element_type=out_dtype)


def _dot_of_codes(x: jax.Array, kernel: Quantized, dims: int, out_dtype: str | None) -> jax.Array:
    """Returns `dot` for a kernel in few bits, whose numbers are made for it."""
    if not kernel.in_halves:
        return dot(x, kernel.astype(x.dtype), dims, out_dtype)
    pairs = x.reshape(*x.shape[: x.ndim - dims], -1, 2)
    low, high = kernel.halves(x.dtype)
    y = dot(pairs[..., 0], low, out_dtype="float32") + dot(pairs[..., 1], high, out_dtype="float32")
    return y.reshape(*y.shape[:-1], *kernel.core[dims:]).astype(out_dtype or x.dtype)


def align(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `parameter` with leading dimensions of size one up to the rank of `x`."""
    return jax.lax.expand_dims(parameter, range(x.ndim - parameter.ndim))


class Dense(nn.Module):
    """A linear map from the last dimensions of its input to `features`.

    Attributes:
        features: the output dimensions, such as (heads, head_dim).
        axes: an axis name for every dimension of the kernel, inputs before outputs.
        init_scale: factor on the initial kernel.
        use_bias: whether it has a bias; None: it has one if the config's `biases` contain the name of the layer.
        out_dtype: of the product; None: the config's dtype.
    """

    config: ModelConfig
    features: tuple[int, ...]
    axes: tuple[str, ...]
    init_scale: float | jax.Array = 1.0
    use_bias: bool | None = None
    out_dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[..., *features]` for `[..., *inputs]`."""
        config = self.config
        dims = len(self.axes) - len(self.features)
        inputs = x.shape[x.ndim - dims :]
        scale = self.init_scale * mup_init(config, self.axes[:dims], self.axes[dims:])
        init = kernel_init(config, math.prod(inputs), math.prod(self.features), scale)
        kernel = parameter(self, "kernel", init, self.axes, (*inputs, *self.features), config.param_dtype)
        if config.quantization.simulated:
            names, inner = (*self.path, "kernel"), tuple(range(dims))
            kernel = straight_through(kernel, names, inner, config.quantization)
            x = rounded_inputs(x.astype(config.dtype), names, dims, config.quantization)
        y = dot(x.astype(config.dtype), kernel, dims, self.out_dtype)
        if self.name in config.biases if self.use_bias is None else self.use_bias:
            # A bias of width `embed` is too small to be worth sharding like the kernel, so its axis is `norm`.
            names = tuple("norm" if name == "embed" else name for name in self.axes[dims:])
            bias = parameter(self, "bias", nn.initializers.zeros, names, self.features, config.param_dtype)
            y += align(bias.astype(y.dtype), y)
        return y


class Embed(nn.Module):
    """A table of vectors for tokens, learned positions or token types.

    Attributes:
        rows: number of rows, one for each id.
        row_axis: axis name of the rows.
    """

    config: ModelConfig
    rows: int
    row_axis: str

    @property
    def width_axis(self) -> str:
        """The axis name of the width of a vector."""
        return "embedding" if self.config.factorised else "embed"

    def setup(self) -> None:
        """Makes the table `[rows, embed]`, or `[rows, embedding]` if the embeddings are factorised."""
        names, shape = (self.row_axis, self.width_axis), (self.rows, self.config.table_dim)
        self.table = parameter(self, "table", table_init(self.config), names, shape, self.config.param_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns `[..., table width]` for ids `[...]`; an id outside the table gives NaN."""
        # Under fsdp the width of the table is gathered before the look-up. Otherwise the vectors looked up would be
        # split by width, and all activations would have to be sent between devices.
        table = axes.constrain(self.table, (self.row_axis, "act_embed"))
        return jnp.take(table, ids, axis=0, mode="fill").astype(self.config.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """Returns float32 `[..., rows]`: the dot products of `x` `[..., table width]` with all rows."""
        return dot(x.astype(self.config.dtype), self.table, out_dtype="float32", transposed=True)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450) or RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`, normalised over its last dimension; computed in float32 for every dtype of the config."""
        config = self.config
        shape, dtype = x.shape[-1:], config.param_dtype
        y = x.astype(jnp.float32)
        if config.norm == "layernorm":
            y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + config.norm_epsilon)
        if config.norm_scale:
            init = nn.initializers.zeros if config.norm_offset else nn.initializers.ones
            scale = parameter(self, "scale", init, ("norm",), shape, dtype).astype(jnp.float32)
            y *= align(1.0 + scale if config.norm_offset else scale, y)
        if config.norm == "layernorm" and "norm" in config.biases:
            bias = parameter(self, "bias", nn.initializers.zeros, ("norm",), shape, dtype)
            y += align(bias.astype(jnp.float32), y)
        return y.astype(config.dtype)


class MLP(nn.Module):
    """The MLP of a block: down(act(up x)), or down(act(gate x) * up x) if it is gated.

    Attributes:
        init_scale: factor on the initial kernel of `down`.
    """

    config: ModelConfig
    init_scale: float | jax.Array = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, dropout_rate: jax.Array | None) -> jax.Array:
        """Returns `[batch, length, embed]` for `[batch, length, embed]`."""
        config = self.config
        activation = ACTIVATIONS[config.mlp]
        hidden = Dense(config, (config.mlp_dim,), ("embed", "mlp"), name="up")(x)
        if config.gated_mlp:
            hidden *= activation(Dense(config, (config.mlp_dim,), ("embed", "mlp"), name="gate")(x))
        else:
            hidden = activation(hidden)
        hidden = axes.constrain(hidden, ("act_batch", "act_length", "act_mlp"))
        hidden = dropout(hidden, dropout_rate, self.make_rng)
        out_axes = ("mlp", "embed")
        return Dense(config, (config.embed_dim,), out_axes, init_scale=self.init_scale, name="down")(hidden)
