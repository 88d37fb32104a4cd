"""The number of floating-point operations of a batch, computed from shapes; model FLOP/s are this number per second."""

from collections.abc import Mapping
from typing import Any

from lmjax.model.config import ModelConfig
from lmjax.model.heads.base import Size
from lmjax.model.language_model import LanguageModel


def forward_flops(
    model: LanguageModel, batch: Mapping[str, Any], predictions: int | None = None, *, causal: bool = False
) -> int:
    """Returns the FLOPs of the matrix products of one forward pass; a multiplication with an addition counts as two.

    Attention counts all pairs of a query and a key within the window, also masked ones, as do Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B. A mixture of experts counts the experts that a token passes through. Norms,
    activations, softmax and table look-ups are not counted.

    Args:
        model: the architecture and its heads.
        batch: the token fields by name; any objects with a `.shape`.
        predictions: number of positions at which logits of the vocabulary are computed; None: all positions (of the
            decoder, in an encoder-decoder).
        causal: count the self-attention of a decoder at half, since causal order masks half of the pairs.
    """
    config = model.config
    if config.family.paired:
        rows, sources = batch["encoder_tokens"].shape
        length = batch["decoder_tokens"].shape[1]
        per_row = _stack(config, config.side_layers(False), sources)
        per_row += _stack(config, config.side_layers(True), length, decoder=True, half=causal)
        per_row += config.side_layers(True) * _cross(config, length, sources)
    else:
        decoder = config.family.causal
        rows, length = batch["tokens"].shape
        per_row = _stack(config, config.num_layers, length, decoder=decoder, half=causal and decoder)
    size = Size(rows, length, rows * length if predictions is None else predictions)
    total = rows * per_row
    for head in model.head_types.values():
        total += head.flops(config, size)
        if (inner := head.submodel(config)) is not None:
            total += rows * _stack(inner, inner.side_layers(False), length)
    return total


def train_flops(
    model: LanguageModel,
    batch: Mapping[str, Any],
    predictions: int | None = None,
    *,
    causal: bool = False,
    frozen: bool = False,
) -> int:
    """Returns the FLOPs of a training step; recomputation is not counted.

    They are those of three forward passes: one, and two products for each in the backward pass. With `frozen` kernels,
    to which nothing but a small adapter is trained, the gradients of the kernels fall away, and it is two.
    """
    return (2 if frozen else 3) * forward_flops(model, batch, predictions, causal=causal)


def again_flops(model: LanguageModel, batch: Mapping[str, Any], *, causal: bool = False) -> int:
    """Returns the FLOPs that `remat=full` computes again in a step: those of the layers; 0 without it.

    The last product of a layer is not needed again, unless a norm follows it. `remat=dots` computes only attention
    again, and its kernels do so in any case; this is not counted.
    """
    config = model.config
    if config.remat != "full":
        return 0
    total = forward_flops(model, batch, 0, causal=causal)
    if config.norm_position not in ("pre", "none"):
        return total
    sides = ((False, "encoder_tokens"), (True, "decoder_tokens"))
    if not config.family.paired:
        sides = ((config.family.causal, "tokens"),)
    for decoder, name in sides:
        rows, length = batch[name].shape
        for layer in range(config.side_layers(decoder)):
            moe = config.moe
            width = moe.top_k * (moe.mlp_dim or config.mlp_dim) if moe.has_experts(layer) else config.mlp_dim
            width += config.num_heads * config.width_of_head if config.block != "sequential" else 0
            total -= 2 * rows * length * width * config.embed_dim
    return total


def _stack(config: ModelConfig, layers: int, length: int, *, decoder: bool = False, half: bool = False) -> int:
    """Returns the FLOPs of input embeddings and layers for one row, without cross-attention."""
    heads = 2 * (config.num_heads + config.kv_heads) * config.width_of_head
    mlps, moe = 3 if config.gated_mlp else 2, config.moe
    total = config.table_dim * config.embed_dim * length if config.factorised else 0
    attention = config.side_attention(decoder)
    for layer in range(layers):
        keys = length
        if not attention.is_global(layer):
            keys = min(keys, attention.window if decoder else 2 * attention.window - 1)
            keys += length // attention.global_block if attention.global_block and not decoder else 0
        pairs = min(length * keys, length * length // 2) if half else length * keys
        width = mlps * config.mlp_dim
        if config.moe.has_experts(layer):
            width = mlps * moe.top_k * (moe.mlp_dim or config.mlp_dim) + moe.num_experts
        total += config.embed_dim * (heads + width) * length + 2 * config.num_heads * config.width_of_head * pairs
    return 2 * total


def _cross(config: ModelConfig, queries: int, keys: int) -> int:
    """Returns the FLOPs of cross-attention for one row in one layer."""
    query_width, key_value_width = (
        2 * config.num_heads * config.width_of_head,
        2 * config.kv_heads * config.width_of_head,
    )
    products = 2 * config.num_heads * config.width_of_head * queries * keys
    return 2 * (config.embed_dim * (query_width * queries + key_value_width * keys) + products)
