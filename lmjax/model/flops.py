"""How many floating-point operations a batch costs, counted from shapes: the numerator of model FLOP/s."""

from collections.abc import Mapping
from typing import Any

from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel


def forward_flops(model: LanguageModel, batch: Mapping[str, Any], predictions: int | None = None) -> int:
    """Returns the FLOPs of the matrix products of one forward pass; a multiply and an add are two.

    Attention counts every pair of a query and a key, masked or not: that is what the kernel computes, and the
    convention of Chowdhery et al. 2022, arXiv:2204.02311, appendix B. Norms, activations, softmax and table
    look-ups are left out.

    Args:
        model: the architecture and its heads.
        batch: anything with `.shape` under the names of the batch's token fields.
        predictions: positions at which the vocabulary projection runs; None: all of the side that predicts.
    """
    config = model.config
    if config.architecture == "encoder_decoder":
        rows, sources = batch["encoder_tokens"].shape
        length = batch["decoder_tokens"].shape[1]
        total = config.num_layers * _layer(config, sources) * sources
        total += config.decoder_layers * (_layer(config, length) * length + _cross(config, length, sources))
    else:
        rows, length = batch["tokens"].shape
        total = config.num_layers * _layer(config, length) * length
    total *= rows
    if model.has_vocabulary:
        width = config.vocab_size + (config.embed_dim if config.mlm_transform else 0)
        total += 2 * config.embed_dim * width * (rows * length if predictions is None else predictions)
    if "next_sentence" in model.heads:
        total += 2 * config.embed_dim * (config.embed_dim + 2) * rows
    return total


def train_flops(model: LanguageModel, batch: Mapping[str, Any], predictions: int | None = None) -> int:
    """Returns the FLOPs of a training step: the backward pass costs twice the forward; recomputation is not counted."""
    return 3 * forward_flops(model, batch, predictions)


def _layer(config: ModelConfig, keys: int) -> int:
    """Returns the FLOPs of self-attention and MLP for one token that faces `keys` keys."""
    heads, mlps = 2 * (config.num_heads + config.kv_heads) * config.width_of_head, 3 if config.gated_mlp else 2
    products = 2 * config.num_heads * config.width_of_head * keys
    return 2 * (config.embed_dim * (heads + mlps * config.mlp_dim) + products)


def _cross(config: ModelConfig, queries: int, keys: int) -> int:
    """Returns the FLOPs of cross-attention in one layer of one row."""
    asking, asked = 2 * config.num_heads * config.width_of_head, 2 * config.kv_heads * config.width_of_head
    products = 2 * config.num_heads * config.width_of_head * queries * keys
    return 2 * (config.embed_dim * (asking * queries + asked * keys) + products)
