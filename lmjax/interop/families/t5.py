"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5 v1.1, Flan-T5, mT5 (Xue et al. 2021, arXiv:2010.11934) and UMT5.

UMT5 (Chung et al. 2023, arXiv:2304.09151) has a table of relative position biases in every layer.
"""

from __future__ import annotations

import functools
from typing import Any

from lmjax.interop.fields import Fields
from lmjax.interop.layouts import Matrix
from lmjax.interop.table import PAIRED, Family, Row, attention, linear, norm, tensor
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import BACKBONE, ITH_LAYER, STACK, STACK_NAME

# Values of `feed_forward_proj`: `gated-gelu` is the tanh approximation of gelu, `gelu` is exact.
_MLPS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_new", "silu": "silu"}
_MLPS |= {"gated-gelu": "geglu_new", "gated-silu": "swiglu", "gated-relu": "reglu"}
_NAMES = {ours: theirs for theirs, ours in _MLPS.items()}


def _derived(feed: str) -> dict[str, Any]:
    """Returns the fields that transformers derives from `feed_forward_proj`; some files contain them."""
    act = "gelu_new" if feed == "gated-gelu" else feed.split("-")[-1]
    return {"is_gated_act": feed.startswith("gated-"), "dense_act_fn": act}


def _ends(fields: Fields, model_type: str) -> dict[str, bool]:
    """Returns whether the output head is tied to the embedding table, and whether tied logits are scaled.

    transformers 4 writes `tie_word_embeddings` and scales the logits if it is True. transformers 5 always writes True;
    T5 and UMT5 (since 5.24) also have `scale_decoder_outputs`, and mT5 never scales. If the logits are not scaled, the
    head is tied unless the checkpoint has a tensor for it.
    """
    said = fields.take("tie_word_embeddings", True)
    scale = model_type != "mt5" and fields.take("scale_decoder_outputs", said)
    tied = said and (scale or "lm_head.weight" not in fields.tensors)
    return {"head.tied": tied, "head.scale": scale}


def read(fields: Fields, *, model_type: str) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    old = model_type == "t5"
    encoder = str((fields.take("architectures", None) or [""])[0]).endswith("EncoderModel")
    feed = fields.take("feed_forward_proj", "relu" if old else "gated-gelu")
    mlp = fields.choose("feed_forward_proj", _MLPS, feed)
    fields.expect(**_derived(feed))
    fields.skip("scalable_attention")  # transformers does not read it
    layers = fields.integer("num_layers", 6 if old else 8)
    fields.expect(num_hidden_layers=layers)
    dropout = fields.number("dropout_rate", 0.1)
    sides = {"num_decoder_layers": fields.integer("num_decoder_layers", layers), **_ends(fields, model_type)}
    return {
        "architecture": "encoder" if encoder else "encoder_decoder",
        "vocab_size": fields.integer("vocab_size", 32_128 if old else 250_112),
        "embed_dim": fields.integer("d_model", 512),
        "head_dim": fields.integer("d_kv", 64),
        "mlp_dim": fields.integer("d_ff", 2048 if old else 1024),
        "num_layers": layers,
        "num_heads": fields.integer("num_heads", 8 if old else 6),
        # No parameter depends on the length of rows; early files give the length of pre-training.
        "max_length": fields.integer("n_positions", 512),
        "norm": "rmsnorm",
        "norm_epsilon": fields.number("layer_norm_epsilon", 1e-6),
        "biases": (),
        "mlp": mlp,
        "positions": "relative",
        "relative": {
            "buckets": fields.integer("relative_attention_num_buckets", 32),
            "max_distance": fields.integer("relative_attention_max_distance", 128),
            "per_layer": model_type == "umt5",
        },
        "attention.scale": 1.0,
        "initializer": "fan_in",
        "dropout.residual": dropout,
        "dropout.attention": dropout,
        "dropout.mlp": dropout,
        "dropout.output": dropout,
        **({} if encoder else sides),
    }


def write(config: ModelConfig, *, model_type: str) -> dict[str, Any]:
    """Returns config.json."""
    feed = _NAMES.get(config.mlp, config.mlp)
    values = {
        "is_encoder_decoder": config.family.paired,
        "vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "d_kv": config.width_of_head,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.side_layers(True),
        "num_heads": config.num_heads,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": feed,
        **_derived(feed),
        "relative_attention_num_buckets": config.relative.buckets,
        "relative_attention_max_distance": config.relative.max_distance,
        "tie_word_embeddings": config.head.tied,
        "dropout_rate": config.dropout.residual,
    }
    return values | ({} if model_type == "mt5" else {"scale_decoder_outputs": config.head.scale})


def _stack(ours: str, theirs: str, *, cross: bool) -> tuple[Row, ...]:
    """Returns the rows of an encoder's or a decoder's layers."""
    layer, block = f"{ours}/{ITH_LAYER}", f"{theirs}.block.{{i}}.layer"
    mlp, names = f"{block}.{2 if cross else 1}", ("q", "k", "v", "o")
    dense, gate = f"{mlp}.DenseReluDense", f"{layer}/mlp/gate/kernel"
    across = (
        *attention(f"{layer}/cross_attention", f"{block}.1.EncDecAttention.", names),
        *norm(f"{layer}/cross_attention_norm", f"{block}.1.layer_norm"),
    )
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        *attention(f"{layer}/attention", f"{block}.0.SelfAttention.", names),
        *norm(f"{layer}/attention_norm", f"{block}.0.layer_norm"),
        *tensor(f"{ours}/relative_bias/table", f"{theirs}.block.0.{bias}"),
        *tensor(f"{layer}/relative_bias/table", f"{theirs}.block.{{i}}.{bias}"),
        *(across if cross else ()),
        Row((f"{layer}/mlp/up/kernel",), (f"{dense}.wi.weight",), Matrix(), unless=gate),
        Row((f"{layer}/mlp/up/kernel",), (f"{dense}.wi_1.weight",), Matrix(), given=gate),
        *linear(f"{layer}/mlp/gate", f"{dense}.wi_0"),
        *linear(f"{layer}/mlp/down", f"{dense}.wo"),
        *norm(f"{layer}/mlp_norm", f"{mlp}.layer_norm"),
        *norm(f"{ours}/final_norm", f"{theirs}.final_layer_norm"),
    )


_TABLE = (
    *tensor("embedding/table", "shared.weight"),
    *_stack(f"{BACKBONE}/encoder/{STACK_NAME}", "encoder", cross=False),
    *_stack(f"{BACKBONE}/decoder/{STACK_NAME}", "decoder", cross=True),
    *_stack(STACK, "encoder", cross=False),  # of an encoder without a decoder
    *linear("output", "lm_head"),
)


def _family(model_type: str, name: str) -> Family:
    """Returns the family whose classes begin with `name`."""
    return Family(
        read=functools.partial(read, model_type=model_type),
        write=functools.partial(write, model_type=model_type),
        table=_TABLE,
        heads={f"{name}ForConditionalGeneration": (), f"{name}EncoderModel": ()},
        copies=dict.fromkeys(
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
        ),
        # The first T5 files have this unused table.
        ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
        bare=(f"{name}Model",),
        tokenizer=PAIRED,
        aliases={f"{name}WithLMHeadModel": f"{name}ForConditionalGeneration"},
    )


FAMILIES = {"t5": _family("t5", "T5"), "mt5": _family("mt5", "MT5"), "umt5": _family("umt5", "UMT5")}
