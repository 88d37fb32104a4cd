"""BART (Lewis et al. 2020, arXiv:1910.13461) and families with the same tensors: mBART, Marian and Pegasus.

mBART: Liu et al. 2020, arXiv:2001.08210; Marian: Junczys-Dowmunt et al. 2018, arXiv:1804.00344; Pegasus: Zhang et al.
2020, arXiv:1912.08777.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from lmjax.interop.fields import ACTIVATIONS, Fields
from lmjax.interop.table import PAIRED, Family, Row, attention, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import BACKBONE, ITH_LAYER, STACK_NAME


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Facts that depend on the class, so that only some files contain them.

    Attributes:
        name: of the class.
        pre_norm: whether norms come before the branches, and one at the end of each side.
        embed_norm: whether the inputs are normalised.
        sinusoidal: whether positions are sines and cosines; off: learned.
        vocab_size: the default of files without it.
        end: the default id that is forced at the end of a text that reaches its limit.
    """

    name: str
    pre_norm: bool
    embed_norm: bool
    sinusoidal: bool
    vocab_size: int = 50_265
    end: int = 2

    @property
    def model(self) -> dict[str, Any]:
        """Returns the fields of a ModelConfig."""
        return {
            "norm_position": "pre" if self.pre_norm else "post",
            "embedding.norm": self.embed_norm,
            "positions": "sinusoidal" if self.sinusoidal else "learned",
            "sinusoidal_halves": self.sinusoidal,
            "position_offset": 0 if self.sinusoidal else 2,
        }

    @property
    def json(self) -> dict[str, bool]:
        """Returns the fields of config.json that some files have."""
        return {
            "normalize_before": self.pre_norm,
            "add_final_layer_norm": self.pre_norm,
            "normalize_embedding": self.embed_norm,
            "static_position_embeddings": self.sinusoidal,
        }


_KINDS = {
    "bart": _Kind("BartForConditionalGeneration", pre_norm=False, embed_norm=True, sinusoidal=False),
    "mbart": _Kind("MBartForConditionalGeneration", pre_norm=True, embed_norm=True, sinusoidal=False),
    "marian": _Kind("MarianMTModel", pre_norm=False, embed_norm=False, sinusoidal=True, vocab_size=58_101, end=0),
    "pegasus": _Kind("PegasusForConditionalGeneration", pre_norm=True, embed_norm=False, sinusoidal=True, end=1),
}


def _both(fields: Fields, name: str, default: int) -> int:
    """Returns a size that encoder and decoder have in common; raises FlagError if they differ."""
    one, other = fields.integer(f"encoder_{name}", default), fields.integer(f"decoder_{name}", default)
    if one != other:
        raise fields.error(f"decoder_{name}", f"encoder_{name}={one}, and lmjax's two sides are of one size")
    return one


def read(fields: Fields, *, kind: _Kind) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    fields.expect(**kind.json, tie_word_embeddings=True, share_encoder_decoder_embeddings=True)
    vocab_size, layers = fields.integer("vocab_size", kind.vocab_size), fields.integer("encoder_layers", 12)
    fields.expect(num_hidden_layers=layers, decoder_vocab_size=vocab_size)
    # A norm after the sum of the embeddings, which transformers 3 had for Blenderbot only.
    fields.expect(do_blenderbot_90_layernorm=False)
    # Dropout of whole layers in training, fields that transformers does not read, and facts about distillation.
    fields.skip("encoder_layerdrop", "decoder_layerdrop", "classif_dropout", "extra_pos_embeddings", "add_bias_logits")
    fields.skip("save_step", "replacing_rate", "student_encoder_layers", "student_decoder_layers")
    return {
        "architecture": "encoder_decoder",
        "vocab_size": vocab_size,
        "embed_dim": fields.integer("d_model", 1024),
        "num_layers": layers,
        "num_decoder_layers": fields.integer("decoder_layers", 12),
        "num_heads": _both(fields, "attention_heads", 16),
        "mlp_dim": _both(fields, "ffn_dim", 4096),
        "max_length": fields.integer("max_position_embeddings", 1024),
        "mlp": fields.choose("activation_function", ACTIVATIONS, "gelu"),
        "embedding.scale": fields.take("scale_embedding", False),
        # No field contains this: the tensor is absent in checkpoints of the bare model and of models without the bias.
        "head.bias": _BIAS in fields.tensors,
        "dropout.residual": fields.number("dropout", 0.1),
        "dropout.attention": fields.number("attention_dropout", 0.0),
        "dropout.mlp": fields.number("activation_dropout", 0.0),
        "init_std": fields.number("init_std", 0.02),
        **kind.model,
    }


def write(config: ModelConfig, *, kind: _Kind) -> dict[str, Any]:
    """Returns config.json."""
    return {
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "encoder_layers": config.num_layers,
        "num_hidden_layers": config.num_layers,
        "decoder_layers": config.side_layers(True),
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_dim,
        "decoder_ffn_dim": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "activation_function": config.mlp,
        "scale_embedding": config.embedding.scale,
        "dropout": config.dropout.residual,
        "attention_dropout": config.dropout.attention,
        "activation_dropout": config.dropout.mlp,
        "init_std": config.init_std,
    }


_BIAS = "final_logits_bias"
_SIDES = ("encoder", "decoder")


def _side(side: str) -> tuple[Row, ...]:
    """Returns the rows of the encoder or the decoder."""
    ours, theirs, names = f"{BACKBONE}/{side}", f"model.{side}", ("q_proj", "k_proj", "v_proj", "out_proj")
    layer, block = f"{ours}/{STACK_NAME}/{ITH_LAYER}", f"{theirs}.layers.{{i}}"
    return (
        *tensor(f"{ours}/inputs/positions/table", f"{theirs}.embed_positions.weight"),
        *norm(f"{ours}/inputs/norm", f"{theirs}.layernorm_embedding"),
        *attention(f"{layer}/attention", f"{block}.self_attn.", names),
        *norm(f"{layer}/attention_norm", f"{block}.self_attn_layer_norm"),
        *attention(f"{layer}/cross_attention", f"{block}.encoder_attn.", names),
        *norm(f"{layer}/cross_attention_norm", f"{block}.encoder_attn_layer_norm"),
        *linear(f"{layer}/mlp/up", f"{block}.fc1"),
        *linear(f"{layer}/mlp/down", f"{block}.fc2"),
        *norm(f"{layer}/mlp_norm", f"{block}.final_layer_norm"),
        *norm(f"{ours}/{STACK_NAME}/final_norm", f"{theirs}.layer_norm"),
    )


def _sines(config: ModelConfig) -> np.ndarray:
    """Returns the table `[length, embed]` that files of sinusoidal models may hold: sines, then cosines."""
    angles = np.arange(config.max_length)[:, None] / 10_000 ** (np.arange(0, config.embed_dim, 2) / config.embed_dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _family(kind: _Kind) -> Family:
    """Returns the family of a kind."""
    return Family(
        read=functools.partial(read, kind=kind),
        write=functools.partial(write, kind=kind),
        table=(
            *tensor("embedding/table", "model.shared.weight"),
            *_side("encoder"),
            *_side("decoder"),
            *tensor("output_bias", _BIAS, leading=1),
        ),
        heads={kind.name: ()},
        tokenizer=PAIRED,
        base="model.",
        bare=(f"{kind.name.removesuffix('ForConditionalGeneration').removesuffix('MTModel')}Model",),
        copies=dict.fromkeys(
            ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
            "model.shared.weight",
        ),
        generation={"forced_eos_token_id": kind.end},
        # Version numbers of fairseq.
        ignored=("*coder.version",),
        constants={f"model.{side}.embed_positions.weight": _sines for side in _SIDES} if kind.sinusoidal else {},
    )


FAMILIES = {name: _family(kind) for name, kind in _KINDS.items()}
