"""Block and Stack: the only place where a layer is put together, for every family."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.model.attention import Attention, Relation
from lmjax.model.config import DropoutRates, ModelConfig
from lmjax.model.cpu import fence
from lmjax.model.kernels import Mask
from lmjax.model.layers import MLP, Norm, dropout
from lmjax.model.moe import AUXILIARY, MoE
from lmjax.model.platform import platform
from lmjax.model.positions import Rotation, position_bias
from lmjax.parallel import axes

_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
_SCANNED, _UNROLLED, _SHARED = "layers", "layer_", "shared_layer"
_LAYERS = {nn.PARTITION_NAME: "layers"}


@flax.struct.dataclass
class Sequence:
    """A sequence of vectors and where they stand.

    Attributes:
        x: `[batch, length, embed]`.
        positions: `[batch or 1, length]`, counted from the start of each segment.
        segment_ids: `[batch, length]`, 0 for padding; None: one segment.
        prefix: bool `[batch, length]`: tokens that those before them see too, though causal; None: none.
    """

    x: jax.Array
    positions: jax.Array
    segment_ids: jax.Array | None = None
    prefix: jax.Array | None = None


@flax.struct.dataclass
class LayerInputs:
    """What every layer of a stack sees beside its own input.

    Attributes:
        positions: of the sequence.
        segment_ids: of the sequence.
        within: its relation to itself, without a window.
        turns: rotary positions of layers with a window, where they are others; or None.
        memory: what cross-attention asks, or None.
        across: the relation of the sequence to it, or None.
        rates: of dropout.
    """

    positions: jax.Array
    segment_ids: jax.Array | None
    within: Relation
    turns: Rotation | None
    memory: Sequence | None
    across: Relation | None
    rates: DropoutRates


class Block(nn.Module):
    """One layer: self-attention, cross-attention where there is a memory, MLP; each a normed residual branch.

    Attributes:
        num_layers: layers of its stack.
        causal: whether its tokens see only what is before them.
    """

    config: ModelConfig
    num_layers: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array, inputs: LayerInputs, layer: int | jax.Array) -> jax.Array:
        """Returns `[batch, length, embed]` for `[batch, length, embed]`.

        Args:
            x: `[batch, length, embed]`.
            inputs: what all layers see.
            layer: number of this layer in its stack, from 0; traced where layers are scanned over.
        """
        branches = self._branches(inputs, layer)
        groups = [[branch] for branch in branches] if self.config.block == "sequential" else [branches]
        for group in groups:
            x = self._add(x, dict(group), inputs.rates, layer)
        return x

    def _branches(
        self, inputs: LayerInputs, layer: int | jax.Array
    ) -> list[tuple[str, Callable[[jax.Array], jax.Array]]]:
        """Returns the branches by name, as functions of `[batch, length, embed]`."""
        config, rates, scale = self.config, inputs.rates, self.config.residual_init_scale(layer)

        def attend(x: jax.Array) -> jax.Array:
            return Attention(config, scale, name="attention")(x, x, self._within(inputs, layer), rates.attention)

        def cross_attend(x: jax.Array) -> jax.Array:
            attention = Attention(config, scale, name="cross_attention")
            return attention(x, inputs.memory.x, self._across(inputs), rates.attention)

        def mlp(x: jax.Array) -> jax.Array:
            if config.has_experts(layer):
                return MoE(config, scale, name="moe")(x, inputs.segment_ids, rates.mlp)
            return MLP(config, scale, name="mlp")(x, rates.mlp)

        cross = [] if inputs.across is None else [("cross_attention", cross_attend)]
        return [("attention", attend), *cross, ("mlp", mlp)]

    def _add(
        self,
        x: jax.Array,
        branches: Mapping[str, Callable[[jax.Array], jax.Array]],
        rates: DropoutRates,
        layer: int | jax.Array,
    ) -> jax.Array:
        """Returns `x` with the branches added, which all read it: one in a sequential block, else all of the layer."""
        config, first = self.config, next(iter(branches))
        drop_rate = None if rates.layer is None else rates.layer * ((layer + 1) / self.num_layers)
        shared = Norm(config, name=f"{first}_norm")(x) if config.block == "parallel_shared" else None
        total = x
        for name, branch in branches.items():
            read = x
            if config.pre_norm and (config.first_norm or name != "attention" or layer > 0):
                read = Norm(config, name=f"{name}_norm")(x) if shared is None else shared
            y = branch(read)
            if config.norm_position in ("sandwich", "output"):
                y = Norm(config, name=f"{name}_output_norm")(y)
            y = dropout(y, rates.residual, self.make_rng)
            total += dropout(y, drop_rate, self.make_rng, rows=True)
        if config.norm_position == "post":
            total = Norm(config, name=f"{first}_norm")(total)
        return axes.constrain(total, ("act_batch", "act_length", "act_embed"))

    def _within(self, inputs: LayerInputs, layer: int | jax.Array) -> Relation:
        """Returns the relation of the sequence to itself in this layer: with its window, turns and bias."""
        config, relation = self.config, inputs.within
        if _own_bias(config, kind := config.side_positions(self.causal)):
            bias = position_bias(config, kind, "relative_bias", causal=self.causal, queries=inputs.positions)
            relation = relation.replace(bias=bias)
        everywhere = config.is_global(layer)
        if everywhere is True:
            return relation
        local = relation if inputs.turns is None else relation.replace(queries=inputs.turns, keys=inputs.turns)
        if everywhere is False:
            return local.replace(mask=local.mask.replace(window=config.attention_window))
        window = jnp.where(everywhere, jnp.iinfo(jnp.int32).max, config.attention_window)
        turns = jax.tree.map(lambda wide, near: jnp.where(everywhere, wide, near), relation.queries, local.queries)
        return relation.replace(mask=relation.mask.replace(window=window), queries=turns, keys=turns)

    def _across(self, inputs: LayerInputs) -> Relation:
        """Returns the relation of the sequence to the memory in this layer."""
        config, kind = self.config, self.config.cross_positions
        if not _own_bias(config, kind):
            return inputs.across
        places = {"queries": inputs.positions, "keys": inputs.memory.positions}
        return inputs.across.replace(bias=position_bias(config, kind, "cross_relative_bias", causal=False, **places))


def _own_bias(config: ModelConfig, kind: str) -> bool:
    """Returns whether every layer has a position bias of its own."""
    return kind == "relative" and config.relative.per_layer


class Stack(nn.Module):
    """Layers in a row, and what they share: masks, position biases, and the norm that ends a pre-norm stack."""

    config: ModelConfig
    num_layers: int
    causal: bool

    @nn.compact
    def __call__(self, sequence: Sequence, rates: DropoutRates, memory: Sequence | None = None) -> jax.Array:
        """Returns `[batch, length, embed]`.

        Args:
            sequence: what enters the first layer.
            rates: of dropout.
            memory: the encoder's output, for cross-attention; a segment sees the memory's segment of the same id.
        """
        config, segment_ids = self.config, sequence.segment_ids
        mask = Mask(
            causal=self.causal,
            sink_tokens=config.sink_tokens,
            query_segments=segment_ids,
            key_segments=segment_ids,
            prefix=sequence.prefix if self.causal else None,
            key_positions=sequence.positions if config.sink_tokens else None,
        )
        kind, rope = config.side_positions(self.causal), config.rope
        own = self._relation(mask, kind, "relative_bias", sequence)
        turns = None
        if kind == "rope" and rope.local_theta is not None:
            turns = Rotation.build(config, sequence.positions, local=True)
        across = None
        if memory is not None:
            mask = Mask(query_segments=segment_ids, key_segments=memory.segment_ids)
            across = self._relation(mask, config.cross_positions, "cross_relative_bias", sequence, memory)
        inputs = LayerInputs(sequence.positions, segment_ids, own, turns, memory, across, rates)
        x = self._layers(sequence.x, inputs)
        if config.final_norm:
            x = Norm(config, name="final_norm")(x)
        return dropout(x, rates.output, self.make_rng)

    def _relation(
        self, mask: Mask, kind: str, name: str, sequence: Sequence, memory: Sequence | None = None
    ) -> Relation:
        """Returns the relation of a sequence to itself, or to a memory, that all layers share."""
        config, queries, keys = self.config, sequence.positions, None if memory is None else memory.positions
        bias, turns, key_turns = None, None, None
        if not _own_bias(config, kind):
            causal = self.causal and memory is None
            bias = position_bias(config, kind, name, causal=causal, queries=queries, keys=keys)
        if kind == "rope":
            turns = Rotation.build(config, queries)
            key_turns = turns if memory is None else Rotation.build(config, keys)
        return Relation(mask, bias, turns, key_turns)

    def _layers(self, x: jax.Array, inputs: LayerInputs) -> jax.Array:
        """Returns `x` after every layer, scanned or in turn."""
        config, block = self.config, Block
        if config.remat != "none":
            # Inside a scan XLA cannot merge the recomputation with the first pass; the guard would only cost time.
            static = () if config.scan_layers else (3,)  # the layer's number: x, inputs and it follow self
            policy = _POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers, static_argnums=static)

        def make(name: str) -> Block:
            return block(config, self.num_layers, self.causal, name=name)

        if not config.scan_layers:
            layers = [make(_SHARED)] * self.num_layers if config.share_layers else None
            for i in range(self.num_layers):
                if platform() == "cpu":
                    x = fence(x, inputs.positions)
                x = (layers[i] if layers else make(f"{_UNROLLED}{i}"))(x, inputs, i)
            return x
        axis = {AUXILIARY: 0} if config.share_layers else {AUXILIARY: 0, "params": 0}
        scan = nn.scan(
            lambda layer, x, number: (layer(x, inputs, number), None),
            variable_axes=axis,
            variable_broadcast="params" if config.share_layers else False,
            split_rngs={"params": not config.share_layers, "dropout": True},
            length=self.num_layers,
            metadata_params=_LAYERS,
        )
        return scan(make(_SHARED if config.share_layers else _SCANNED), x, jnp.arange(self.num_layers))[0]


def layer_paths(path: str) -> Callable[[int], str] | None:
    """Returns the path in an unrolled model, by layer, of a parameter that a scanned one stacks; None if it does not.

    Args:
        path: names joined by slashes.
    """
    names = path.split("/")
    if _SCANNED not in names:
        return None
    place = names.index(_SCANNED)
    return lambda layer: "/".join([*names[:place], f"{_UNROLLED}{layer}", *names[place + 1 :]])


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
