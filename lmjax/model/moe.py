"""A mixture of experts in place of the MLP: the router, the dispatch to experts, and the router's auxiliary losses."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.config import ModelConfig
from lmjax.model.dropout import dropout
from lmjax.model.groups import MoEConfig
from lmjax.model.layers import ACTIVATIONS, Dense, kernel_init, mup_init
from lmjax.model.parameters import parameter
from lmjax.model.quantized import straight_through

# The Flax collection, beside "params", to which a forward pass writes the router's losses.
AUXILIARY = "auxiliary"
LOSSES = ("router_balance", "router_z")


class RouterLoss(NamedTuple):
    """A loss of the routers, as a sum over tokens and a mean over layers.

    Attributes:
        loss: float32 scalar, the sum.
        weight: float32 scalar, the number of tokens.
    """

    loss: jax.Array
    weight: jax.Array


# A function of the kernels and biases of all experts that returns the projected tokens, in the layout of the dispatch.
Projection = Callable[[jax.Array, jax.Array | None], jax.Array]


class ExpertKernels(nn.Module):
    """The parameters of one projection of all experts; the dispatch (`_dense`, `_ragged`) multiplies by them.

    Attributes:
        features: number of outputs of the projection.
        axes: axis names of its inputs and outputs.
        init_scale: factor on the initial kernels.
    """

    config: ModelConfig
    features: int
    axes: tuple[str, str]
    init_scale: float | jax.Array = 1.0

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns kernels `[experts, inputs, features]`, and biases `[experts, features]` or None."""
        config, experts = self.config, self.config.moe.num_experts
        scale = self.init_scale * mup_init(config, self.axes[:1], self.axes[1:])
        init, shape = kernel_init(config, inputs, self.features, scale), (experts, inputs, self.features)
        kernels = parameter(self, "kernel", init, ("experts", *self.axes), shape, config.param_dtype)
        kernels = straight_through(kernels, (*self.path, "kernel"), (1,), config.quantization)
        if self.name not in config.biases:
            return kernels.astype(config.dtype), None
        names = ("experts", "norm" if self.axes[1] == "embed" else self.axes[1])
        shape = (experts, self.features)
        biases = parameter(self, "bias", nn.initializers.zeros, names, shape, config.param_dtype)
        return kernels.astype(config.dtype), biases.astype(config.dtype)


class MoE(nn.Module):
    """Each token passes through its `top_k` experts, weighted by their gates (Shazeer et al. 2017, arXiv:1701.06538).

    The output is zero at padding, and the losses leave it out. Experts have no capacity limit: no token is dropped.

    Attributes:
        init_scale: factor on the initial kernels that write to the residual stream.
    """

    config: ModelConfig
    init_scale: float | jax.Array = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids: jax.Array | None, dropout_rate: jax.Array | None) -> jax.Array:
        """Returns `[batch, length, embed]`.

        Args:
            x: `[batch, length, embed]`.
            segment_ids: `[batch, length]`, 0 for padding; None: no padding.
            dropout_rate: of the experts' hidden layers; None: no dropout.
        """
        config, moe = self.config, self.config.moe
        real = jnp.ones(x.shape[:2]) if segment_ids is None else (segment_ids > 0).astype(jnp.float32)
        # The logits are float32, because bfloat16 makes a router unstable (Fedus et al. 2022, section 2.4).
        exact = config.model_copy(update={"dtype": "float32"})
        logits = Dense(exact, (moe.num_experts,), ("embed", "classes"), use_bias=False, name="router")(x)
        probabilities = jax.nn.softmax(logits, axis=-1)
        gates, chosen = jax.lax.top_k(probabilities, moe.top_k)
        if moe.normalize:
            gates /= jnp.sum(gates, axis=-1, keepdims=True)
        gates *= real[..., None]
        self._leave_losses(logits, probabilities, chosen, real)

        width = config.mlp_dim if moe.mlp_dim is None else moe.mlp_dim
        names = ("up", "gate") if config.gated_mlp else ("up",)
        inner = {name: ExpertKernels(config, width, ("embed", "mlp"), name=name)(x.shape[-1]) for name in names}
        outer = ExpertKernels(config, x.shape[-1], ("mlp", "embed"), self.init_scale, name="down")(width)

        def hidden(project: Projection) -> jax.Array:
            projected = {name: project(*parameters) for name, parameters in inner.items()}
            gate = ACTIVATIONS[config.mlp](projected[names[-1]])
            return dropout(gate * projected["up"] if config.gated_mlp else gate, dropout_rate, self.make_rng)

        return (_dense if dispatch(moe) == "dense" else _ragged)(x, gates.astype(x.dtype), chosen, hidden, *outer)

    def _leave_losses(self, logits: jax.Array, probabilities: jax.Array, chosen: jax.Array, real: jax.Array) -> None:
        """Sows each of LOSSES as float32 `[2]`: its sum over tokens, and the number of tokens.

        The balance loss is a product of two means over the tokens of this forward pass, so it is not a sum over tokens.
        With microbatches, or with replicas under `pmap`, each part of the batch has its own balance loss, which is
        stricter than balance over the whole batch. On a mesh the means are over all devices.
        """
        tokens = jnp.sum(real)
        count = jnp.maximum(tokens, 1.0)
        uses = jax.nn.one_hot(chosen, self.config.moe.num_experts).sum(-2) / self.config.moe.top_k
        share, probability = (jnp.einsum("ble,bl->e", y, real) / count for y in (uses, probabilities))
        # Fedus et al. 2022, equation 4, without its weight; with k experts per token, each counts as 1 / k.
        balance = self.config.moe.num_experts * jnp.sum(share * probability) * tokens
        # Zoph et al. 2022, equation 5.
        z = jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * real)
        for name, loss in zip(LOSSES, (balance, z), strict=True):
            self.sow(AUXILIARY, name, jnp.stack([loss, tokens]))


def dispatch(moe: MoEConfig) -> str:
    """Returns the dispatch, dense or ragged, with `auto` resolved for the mesh in use."""
    if moe.dispatch != "auto":
        return moe.dispatch
    split = dict(jax.sharding.get_abstract_mesh().shape).get("expert", 1) > 1
    return "dense" if split else "ragged"


def _dense(
    x: jax.Array,
    gates: jax.Array,
    chosen: jax.Array,
    hidden: Callable[[Projection], jax.Array],
    kernels: jax.Array,
    biases: jax.Array | None,
) -> jax.Array:
    """Returns `[batch, length, embed]`, computing every expert for every token; experts not chosen have weight 0."""

    def project(kernels: jax.Array, biases: jax.Array | None) -> jax.Array:
        y = jnp.einsum("bld,edm->blem", x, kernels)
        return y if biases is None else y + biases[None, None]

    weights = jnp.einsum("blk,blke->ble", gates, jax.nn.one_hot(chosen, len(kernels), dtype=gates.dtype))
    h = axes.constrain(hidden(project) * weights[..., None], ("act_batch", "act_length", "act_experts", "act_mlp"))
    y = jnp.einsum("blem,emd->bld", h, kernels)
    return y if biases is None else y + jnp.einsum("ble,ed->bld", weights, biases)


def _ragged(
    x: jax.Array,
    gates: jax.Array,
    chosen: jax.Array,
    hidden: Callable[[Projection], jax.Array],
    kernels: jax.Array,
    biases: jax.Array | None,
) -> jax.Array:
    """Returns `[batch, length, embed]`; tokens are sorted by expert, so that an expert computes only its own tokens."""
    experts, top_k = chosen.reshape(-1), chosen.shape[-1]
    order = jnp.argsort(experts)
    sizes = jnp.bincount(experts, length=len(kernels)).astype(jnp.int32)
    rows, experts = x.reshape(-1, x.shape[-1])[order // top_k], experts[order]

    def product(rows: jax.Array, kernels: jax.Array, biases: jax.Array | None) -> jax.Array:
        y = jax.lax.ragged_dot(rows, kernels, sizes)
        return y if biases is None else y + biases[experts]

    y = product(hidden(functools.partial(product, rows)), kernels, biases)
    return jnp.einsum("blkd,blk->bld", y[jnp.argsort(order)].reshape(*chosen.shape, -1), gates)


def auxiliary_sums(collection: Mapping[str, Any]) -> dict[str, RouterLoss]:
    """Returns the router's losses by name, as means over layers; empty without experts.

    Loss divided by weight is the mean loss of a layer per token. If losses and weights are added up over microbatches
    or replicas, the z-loss is that of the whole batch, and the balance loss is the mean over them, weighted by tokens.

    Args:
        collection: the AUXILIARY collection of a forward pass.
    """
    layers: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
        name = next(key.key for key in path if getattr(key, "key", None) in LOSSES)
        layers.setdefault(name, []).append(leaf.reshape(-1, 2))
    means = {name: jnp.mean(jnp.concatenate(sums), axis=0) for name, sums in layers.items()}
    return {name: RouterLoss(mean[0], mean[1]) for name, mean in means.items()}


def auxiliary_weight(config: ModelConfig, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the weight that `auxiliary_sums` gives for a batch: its number of tokens without padding.

    In an encoder-decoder this is a mean over the layers of both, whose tokens differ.
    """
    layers = {
        side.prefix: sum(config.moe.has_experts(i) for i in range(config.side_layers(side.causal)))
        for side in config.family.sides
    }
    total = jnp.zeros(())
    for side, count in layers.items():
        tokens = batch[f"{side}tokens"]
        real = batch.get(f"{side}segment_ids", jnp.ones_like(tokens)) > 0
        total += count * jnp.sum(real).astype(jnp.float32)
    return total / max(1, sum(layers.values()))
