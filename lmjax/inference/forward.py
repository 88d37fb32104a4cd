"""One forward pass and its inner arrays: hidden states, attention weights, logits, outputs of heads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.model.config import ModelConfig
from lmjax.model.intercept import record
from lmjax.model.language_model import LanguageModel
from lmjax.model.traits import Side

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class ModelOutput:
    """Outputs of a model for a batch of texts: NumPy arrays, floating-point ones as float32.

    Each text is a row that begins at position 0. Where `mask` is False (padding), values are meaningless.

    Attributes:
        tokens: int32 `[batch, length]`; for an encoder-decoder, those of its decoder.
        mask: bool `[batch, length]`, False at padding.
        hidden: `[batch, length, embed]`, after the last layer and the final norm.
        logits: `[batch, length, vocab]`; None: the model predicts no tokens.
        heads: the outputs of all other heads by name, such as `classifier` `[batch, labels]`.
        hidden_states: `[batch, length, embed]` each: the input of the first layer, then the residual stream after each
            layer. The last one is taken before the final norm (transformers takes it after). None: not requested.
        attentions: `[batch, heads, queries, keys]` of each layer; None: not requested.
        cross_attentions: `[batch, heads, queries, keys]` of each decoder layer, with keys from the encoder; None: not
            requested, or not an encoder-decoder.
        encoder: the outputs of the encoder; None: not an encoder-decoder.
    """

    tokens: np.ndarray
    mask: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray | None = None
    heads: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hidden_states: tuple[np.ndarray, ...] | None = None
    attentions: tuple[np.ndarray, ...] | None = None
    cross_attentions: tuple[np.ndarray, ...] | None = None
    encoder: ModelOutput | None = None


def forward(
    model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array], hidden_states: bool, attentions: bool
) -> dict[str, Any]:
    """Returns the fields of a `ModelOutput` without its tokens and masks, on the device.

    Args:
        model: with unrolled layers, without remat.
        params: of the model.
        fields: of the batch, as `lmjax.model.families` lists them.
        hidden_states: whether to return the hidden states of every layer.
        attentions: whether to return attention weights, those of cross-attention included.
    """
    config, family = model.config, model.config.family
    names = {side: _names(config, side, hidden_states, attentions) for side in family.sides}
    wanted = {name for of in names.values() for each in of.values() for name in each}
    outputs, found = _recorded(model, params, fields, tuple(sorted(wanted)))

    def chosen(names: Mapping[str, list[str]]) -> dict[str, tuple[jax.Array, ...]]:
        return {kind: tuple(found[name] for name in of) for kind, of in names.items()}

    *sources, own = (chosen(of) for of in names.values())
    heads = {name: value for name, value in outputs.items() if name not in ("hidden", "logits")}
    own |= {"hidden": outputs["hidden"], "logits": outputs.get("logits"), "heads": heads}
    for source in sources:
        (source["hidden"],) = source["hidden"]
        own["encoder"] = source
    return own


def _names(config: ModelConfig, side: Side, hidden_states: bool, attentions: bool) -> dict[str, list[str]]:
    """Returns the names of the activations of one side to record, by the `ModelOutput` field that they fill.

    Args:
        config: of the model.
        side: the encoder or the decoder of the model's family.
        hidden_states: whether hidden states were requested.
        attentions: whether attention weights were requested.
    """
    prefix, predicts = side.prefix.replace("_", "/"), side == config.family.sides[-1]
    every = [f"{prefix}layer_{i}" for i in range(config.side_layers(side.causal))]
    # The hidden states of the predicting side need no recording: the model returns them.
    names = {} if predicts else {"hidden": [f"{prefix}final_norm" if config.final_norm else every[-1]]}
    if hidden_states:
        names["hidden_states"] = [f"{prefix}{'project_in' if config.factorised else 'inputs'}", *every]
    if attentions:
        names["attentions"] = [f"{layer}/attention/weights" for layer in every]
        if predicts and config.family.paired:
            names["cross_attentions"] = [f"{layer}/cross_attention/weights" for layer in every]
    return names


@functools.partial(jax.jit, static_argnames=("model", "names"))
def _recorded(
    model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array], names: tuple[str, ...]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the outputs of the model by name, and the activations called `names`, all as float32."""
    found = record(model, params, fields, names, method=LanguageModel.outputs)
    return jax.tree.map(lambda x: x.astype(jnp.float32), found)
