"""Block and Stack: one layer, and the stack of layers, for all families; no other file builds a layer."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.attention import Attention, Cached, Relation
from lmjax.model.cache import Cache
from lmjax.model.config import ModelConfig
from lmjax.model.cpu import MOST_UNROLLED, fence
from lmjax.model.dropout import DropoutRates, dropout
from lmjax.model.key_value import KeyValue
from lmjax.model.layers import MLP, Norm
from lmjax.model.moe import AUXILIARY, MoE
from lmjax.model.parameter_paths import SCANNED, SHARED, UNROLLED
from lmjax.model.platform import platform
from lmjax.model.relations import Sequence, cross_bias, cross_relation, self_bias, self_relations

_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
# The name in lmjax/axes.py of the axis over which scanned layers are stacked.
_LAYERS = {nn.PARTITION_NAME: "layers"}


@flax.struct.dataclass
class LayerInputs:
    """The inputs that all layers of a stack share, beside the residual stream.

    Attributes:
        positions: of the sequence.
        segment_ids: of the sequence.
        full: mask, bias and rotations of self-attention in layers without a window; None: all layers have one.
        windowed: the same in layers with a window; None: no layer has a window.
        memory: the encoder's output, for cross-attention; None: no cross-attention.
        cross: mask, bias and rotations of cross-attention; None: no cross-attention.
        rates: of dropout.
        cache: the tokens read before; None: no cache.
    """

    positions: jax.Array
    segment_ids: jax.Array | None
    full: Relation
    windowed: Relation | None
    memory: Sequence | None
    cross: Relation | None
    rates: DropoutRates
    cache: Cache | None = None


class Block(nn.Module):
    """One layer: self-attention, cross-attention if there is an encoder's output, and MLP, each a residual branch.

    Attributes:
        num_layers: number of layers in the stack.
        causal: whether a token attends only to itself and to earlier tokens.
    """

    config: ModelConfig
    num_layers: int
    causal: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: LayerInputs, layer: int | jax.Array
    ) -> tuple[jax.Array, dict[str, KeyValue]]:
        """Returns `[batch, length, embed]`, and the extended caches by name of the attention (empty without a cache).

        Args:
            x: `[batch, length, embed]`, the residual stream.
            inputs: shared by all layers.
            layer: number of this layer in its stack, from 0; traced where layers are scanned.
        """
        caches: dict[str, KeyValue] = {}
        branches = self._branches(inputs, layer, caches)
        groups = [[branch] for branch in branches] if self.config.block == "sequential" else [branches]
        for group in groups:
            x = self._add(x, dict(group), inputs.rates, layer)
        return x, caches

    def _branches(
        self, inputs: LayerInputs, layer: int | jax.Array, caches: dict[str, KeyValue]
    ) -> list[tuple[str, Callable[[jax.Array], jax.Array]]]:
        """Returns (name, function of `[batch, length, embed]`) of each branch.

        An attention with a cache puts its extended cache into `caches` when it is called.
        """
        config, rates, scale = self.config, inputs.rates, self.config.residual_init_scale(layer)

        def attention(name: str, x: jax.Array, source: jax.Array | None, relation: Relation) -> jax.Array:
            cache, before = inputs.cache, None
            if cache is not None:
                kept = cache.layers[layer][name]
                capacity = cache.capacity if name == "attention" else kept.slots
                before = Cached(kept, cache.start, capacity, cache.late, cache.slots)
            y, after = Attention(config, scale, name=name)(x, source, relation, rates.attention, before)
            if after is not None:
                caches[name] = after
            return y

        def attend(x: jax.Array) -> jax.Array:
            return attention("attention", x, x, self._self_relation(inputs, layer))

        def cross_attend(x: jax.Array) -> jax.Array:
            return attention("cross_attention", x, inputs.memory.x, self._cross_relation(inputs))

        def mlp(x: jax.Array) -> jax.Array:
            if config.moe.has_experts(layer):
                return MoE(config, scale, name="moe")(x, inputs.segment_ids, rates.mlp)
            return MLP(config, scale, name="mlp")(x, rates.mlp)

        between = [] if inputs.cross is None else [("cross_attention", cross_attend)]
        return [("attention", attend), *between, ("mlp", mlp)]

    def _add(
        self,
        x: jax.Array,
        branches: Mapping[str, Callable[[jax.Array], jax.Array]],
        rates: DropoutRates,
        layer: int | jax.Array,
    ) -> jax.Array:
        """Returns `x` plus the outputs of `branches`, which all read `x`.

        In a sequential block there is one branch per call; in a parallel block, all branches of the layer.
        """
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

    def _self_relation(self, inputs: LayerInputs, layer: int | jax.Array) -> Relation:
        """Returns mask, bias and rotations of self-attention in this layer, with or without a window."""
        config, attention = self.config, self.config.side_attention(self.causal)
        everywhere = attention.is_global(layer)
        relation = inputs.windowed if everywhere is False else inputs.full
        if not isinstance(everywhere, bool):
            windowed = inputs.windowed
            window = jnp.where(everywhere, jnp.iinfo(jnp.int32).max, attention.window)
            turns = jax.tree.map(
                lambda wide, local: jnp.where(everywhere, wide, local), relation.queries, windowed.queries
            )
            relation = relation.replace(mask=relation.mask.replace(window=window), queries=turns, keys=turns)
        if config.scheme(self.causal).per_layer(config):
            keys, blocks = relation.mask.cached_positions, relation.blocks
            bias = self_bias(config, self.causal)(inputs.positions, keys, blocks)
            relation = relation.replace(bias=bias)
        return relation

    def _cross_relation(self, inputs: LayerInputs) -> Relation:
        """Returns mask, bias and rotations of cross-attention in this layer."""
        if not self.config.cross_scheme.per_layer(self.config):
            return inputs.cross
        return inputs.cross.replace(bias=cross_bias(self.config, inputs.positions, inputs.memory.positions))


class Stack(nn.Module):
    """The layers of an encoder or decoder, the masks and position biases that they share, and the final norm."""

    config: ModelConfig
    num_layers: int
    causal: bool

    @nn.compact
    def __call__(
        self, sequence: Sequence, rates: DropoutRates, memory: Sequence | None = None, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Returns `[batch, length, embed]`, and the cache with the sequence added (None: no cache).

        Args:
            sequence: input of the first layer; its tokens attend to those in the cache too.
            rates: of dropout.
            memory: the encoder's output, for cross-attention. A segment attends to the encoder's segment of the same
                id.
            cache: the tokens read before; needs unrolled layers.
        """
        config, segment_ids = self.config, sequence.segment_ids
        cache = cache if cache is None else cache.aimed(sequence.positions.shape[1], segment_ids)
        extended = cache if cache is None else cache.extend(sequence.positions, segment_ids)
        full, windowed = self_relations(config, self.causal, sequence, cache, extended)
        cross = None if memory is None else cross_relation(config, sequence, memory)
        inputs = LayerInputs(sequence.positions, segment_ids, full, windowed, memory, cross, rates, cache)
        x, caches = self._layers(sequence.x, inputs)
        if config.final_norm:
            x = Norm(config, name="final_norm")(x)
        x = dropout(x, rates.output, self.make_rng)
        if cache is None:
            return x, None
        # Cross-attention returns its cache unchanged if the encoder's output was read in an earlier call.
        layers = tuple({**old, **new} for old, new in zip(cache.layers, caches, strict=True))
        return x, extended.replace(layers=layers)

    def _layers(self, x: jax.Array, inputs: LayerInputs) -> tuple[jax.Array, list[dict[str, KeyValue]]]:
        """Returns `x` after all layers, scanned or unrolled, and the extended caches of each layer."""
        config, block = self.config, Block
        if config.remat != "none":
            # `prevent_cse` stops XLA from merging the recomputation with the forward pass. In a scan XLA cannot merge
            # them, and the option would only cost time.
            static = () if config.scan_layers else (3,)  # argument `layer`, counted from `self`
            policy = _POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers, static_argnums=static)

        def make(name: str) -> Block:
            return block(config, self.num_layers, self.causal, name=name)

        if inputs.cache is not None and config.scan_layers:
            raise ValueError("a cache needs unrolled layers (scan_layers=False): a scan would copy it at every token")
        if not config.scan_layers:
            caches = []
            layers = [make(SHARED)] * self.num_layers if config.share_layers else None
            for i in range(self.num_layers):
                if platform() == "cpu":
                    x = fence(x, inputs.positions)
                x, own = (layers[i] if layers else make(f"{UNROLLED}{i}"))(x, inputs, i)
                caches.append(own)
            return x, caches
        # What remat computes a second time could be merged with the first outside a loop.
        unroll = self.num_layers <= MOST_UNROLLED and config.remat == "none" and platform() == "cpu"

        def body(layer: Block, x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            return layer(fence(x, inputs.positions) if unroll else x, inputs, number)[0], None

        axis = {AUXILIARY: 0} if config.share_layers else {AUXILIARY: 0, "params": 0}
        scan = nn.scan(
            body,
            variable_axes=axis,
            variable_broadcast="params" if config.share_layers else False,
            split_rngs={"params": not config.share_layers, "dropout": True},
            length=self.num_layers,
            unroll=self.num_layers if unroll else 1,
            metadata_params=_LAYERS,
        )
        return scan(make(SHARED if config.share_layers else SCANNED), x, jnp.arange(self.num_layers))[0], []


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of an unrolled model in the form of the scanned one; boxed or plain arrays."""
    layers = [params[f"{UNROLLED}{i}"] for i in range(sum(key.startswith(UNROLLED) for key in params))]
    rest = {
        key: stack_layers(value) if isinstance(value, Mapping) else value
        for key, value in params.items()
        if not key.startswith(UNROLLED)
    }
    if layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        rest[SCANNED] = nn.meta.add_axis(stacked, 0, _LAYERS)
    return rest


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a scanned model in the form of the unrolled one; boxed or plain arrays."""
    result = {}
    for key, value in params.items():
        if key == SCANNED:
            plain = nn.meta.remove_axis(value, 0, _LAYERS)
            for i in range(len(jax.tree.leaves(value)[0])):
                result[f"{UNROLLED}{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], plain)
        else:
            result[key] = unstack_layers(value) if isinstance(value, Mapping) else value
    return result
