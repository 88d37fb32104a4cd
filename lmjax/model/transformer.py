"""Block and Stack: the only place where a layer is put together, for every family."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.attention import Attention, attention_mask
from lmjax.model.config import DropoutRates, ModelConfig
from lmjax.model.layers import MLP, Norm, dropout
from lmjax.model.positions import RelativeBias
from lmjax.parallel import axes

_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
_SCANNED, _UNROLLED = "layers", "layer_"
_LAYERS = {nn.PARTITION_NAME: "layers"}


@flax.struct.dataclass
class LayerInputs:
    """What every layer of a stack sees beside its own input.

    Attributes:
        positions: `[batch or 1, length]`.
        mask: of self-attention; None: everything is seen.
        bias: of self-attention, `[1, heads, length, length]`, or None.
        memory: `[batch, keys, embed]`: the encoder's output, or None: no cross-attention.
        memory_mask: of cross-attention; None: everything is seen.
        rates: of dropout.
    """

    positions: jax.Array
    mask: jax.Array | None
    bias: jax.Array | None
    memory: jax.Array | None
    memory_mask: jax.Array | None
    rates: DropoutRates


class Block(nn.Module):
    """One layer: self-attention, cross-attention where there is a memory, MLP; each a normed residual branch."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, inputs: LayerInputs) -> jax.Array:
        """Returns `[batch, length, embed]` for `[batch, length, embed]`."""
        config, rates = self.config, inputs.rates

        def branch(name: str, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
            norm = Norm(config, name=f"{name}_norm")
            if config.norm_position == "pre":
                x += dropout(f(norm(x)), rates.residual, self.make_rng)
            else:
                x = norm(x + dropout(f(x), rates.residual, self.make_rng))
            return axes.constrain(x, ("act_batch", "act_length", "act_embed"))

        def attend(x: jax.Array) -> jax.Array:
            return Attention(config, name="attention")(
                x, positions=inputs.positions, bias=inputs.bias, mask=inputs.mask, dropout_rate=rates.attention
            )

        def cross_attend(x: jax.Array) -> jax.Array:
            return Attention(config, name="cross_attention")(
                x,
                inputs.memory,
                positions=inputs.positions,
                bias=None,
                mask=inputs.memory_mask,
                dropout_rate=rates.attention,
            )

        x = branch("attention", attend, x)
        if inputs.memory is not None:
            x = branch("cross_attention", cross_attend, x)
        return branch("mlp", lambda x: MLP(config, name="mlp")(x, rates.mlp), x)


class Stack(nn.Module):
    """Layers in a row, and what they share: masks, T5's relative bias, and the norm that ends a pre-norm stack."""

    config: ModelConfig
    num_layers: int
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        rates: DropoutRates,
        memory: jax.Array | None = None,
        memory_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Returns `[batch, length, embed]`.

        Args:
            x: `[batch, length, embed]`.
            positions: `[batch or 1, length]`, counted from the start of each segment.
            segment_ids: `[batch, length]`, 0 for padding; None: one segment.
            rates: of dropout.
            memory: `[batch, keys, embed]`: the encoder's output, for cross-attention.
            memory_segment_ids: `[batch, keys]`: a segment of `x` sees the same segment of the memory.
        """
        config, length = self.config, x.shape[1]
        bias, memory_mask = None, None
        if config.positions == "relative":
            bias = RelativeBias(config, self.causal, name="relative_bias")(length, length)
        if memory is not None:
            memory_mask = attention_mask(
                length, memory.shape[1], causal=False, query_segments=segment_ids, key_segments=memory_segment_ids
            )
        mask = attention_mask(length, length, causal=self.causal, query_segments=segment_ids, key_segments=segment_ids)
        x = self._layers(x, LayerInputs(positions, mask, bias, memory, memory_mask, rates))
        if config.norm_position == "pre":
            x = Norm(config, name="final_norm")(x)
        return dropout(x, rates.output, self.make_rng)

    def _layers(self, x: jax.Array, inputs: LayerInputs) -> jax.Array:
        """Returns `x` after every layer, scanned or in turn."""
        config, block = self.config, Block
        if config.remat != "none":
            # Inside a scan XLA cannot merge the recomputation with the first pass; the guard would only cost time.
            block = nn.remat(Block, policy=_POLICIES[config.remat], prevent_cse=not config.scan_layers)
        if not config.scan_layers:
            for i in range(self.num_layers):
                x = block(config, name=f"{_UNROLLED}{i}")(x, inputs)
            return x
        scan = nn.scan(
            lambda layer, x: (layer(x, inputs), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
            metadata_params=_LAYERS,
        )
        return scan(block(config, name=_SCANNED), x)[0]


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of an unrolled model in the form of the scanned one; boxed or plain arrays."""
    layers = [params[f"{_UNROLLED}{i}"] for i in range(sum(key.startswith(_UNROLLED) for key in params))]
    rest = {
        key: stack_layers(value) if isinstance(value, Mapping) else value
        for key, value in params.items()
        if not key.startswith(_UNROLLED)
    }
    if layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        rest[_SCANNED] = nn.meta.add_axis(stacked, 0, _LAYERS)
    return rest


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a scanned model in the form of the unrolled one; boxed or plain arrays."""
    result = {}
    for key, value in params.items():
        if key == _SCANNED:
            plain = nn.meta.remove_axis(value, 0, _LAYERS)
            for i in range(len(jax.tree.leaves(value)[0])):
                result[f"{_UNROLLED}{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], plain)
        else:
            result[key] = unstack_layers(value) if isinstance(value, Mapping) else value
    return result
