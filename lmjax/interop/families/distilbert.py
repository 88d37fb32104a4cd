"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108)."""

from __future__ import annotations

from typing import Any

from lmjax.interop.families.bert import IGNORED, TOKENS, choice, heads, inputs, masked_lm, shared_fields, shared_json
from lmjax.interop.fields import ACTIVATIONS, Fields
from lmjax.interop.table import ENCODER, Family, attention, linear, norm
from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import LAYER

_LAYER = "distilbert.transformer.layer.{i}"


def _read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a ModelConfig."""
    # Sines only initialise the position table; dropout in heads is an option of fine-tuning.
    fields.skip("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout")
    fields.expect(tie_weights_=True)
    return shared_fields(fields) | {
        "embed_dim": fields.integer("dim", 768),
        "num_layers": fields.integer("n_layers", 6),
        "num_heads": fields.integer("n_heads", 12),
        "mlp_dim": fields.integer("hidden_dim", 3072),
        "norm_epsilon": 1e-12,
        "mlp": fields.choose("activation", ACTIVATIONS, "gelu"),
        "head.classifier": "relu",
        "dropout.residual": fields.number("dropout", 0.1),
        "dropout.attention": fields.number("attention_dropout", 0.1),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json."""
    return shared_json(config) | {
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.mlp_dim,
        "activation": config.mlp,
        "dropout": config.dropout.residual,
        "attention_dropout": config.dropout.attention,
    }


FAMILIES = {
    "distilbert": Family(
        read=_read,
        write=_write,
        table=(
            *inputs("distilbert"),
            *attention(f"{LAYER}/attention", f"{_LAYER}.attention.", ("q_lin", "k_lin", "v_lin", "out_lin")),
            *norm(f"{LAYER}/attention_norm", f"{_LAYER}.sa_layer_norm"),
            *norm(f"{LAYER}/mlp_norm", f"{_LAYER}.output_layer_norm"),
            *linear(f"{LAYER}/mlp/up", f"{_LAYER}.ffn.lin1"),
            *linear(f"{LAYER}/mlp/down", f"{_LAYER}.ffn.lin2"),
            *masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
            *linear("classifier_head/dense", "pre_classifier"),
            *linear("classifier_head/classifier", "classifier"),
            *choice("pre_classifier"),
            *TOKENS,
        ),
        heads=heads("DistilBert", pooler=False),
        base="distilbert.",
        bare=("DistilBertModel",),
        tokenizer=ENCODER,
        copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ignored=IGNORED,
    ),
}
