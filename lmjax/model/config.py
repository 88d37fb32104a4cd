"""ModelConfig: all choices by which published models differ, in one frozen config."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import jax
import pydantic
from pydantic import Field

from lmjax.model.groups import (
    AttentionConfig,
    DropoutConfig,
    EmbeddingConfig,
    HeadConfig,
    MoEConfig,
    MupConfig,
    RelativeConfig,
    RopeConfig,
)
from lmjax.model.positions import ACROSS, SCHEMES
from lmjax.model.positions.scheme import Scheme
from lmjax.model.quantized import QuantizationConfig
from lmjax.model.rules import problems
from lmjax.model.traits import FAMILIES, Family
from lmjax.schema import Schema

GATED_MLPS = ("geglu", "geglu_new", "swiglu", "reglu")

Bias = Literal["query", "key", "value", "out", "up", "gate", "down", "norm", "project_in", "project_out"]
Positions = Literal[*SCHEMES]


class ModelConfig(Schema):
    """The architecture of a language model; the defaults are GPT-2's (pre-norm, LayerNorm, biases, tied output)."""

    moved: ClassVar[Mapping[str, str]] = {
        "attention_kernel": "attention.kernel",
        "attention_scale": "attention.scale",
        "attention_window": "attention.window",
        "global_every": "attention.global_every",
        "global_offset": "attention.global_offset",
        "sink_tokens": "attention.sink_tokens",
        "sink_logits": "attention.sink_logits",
        "attention_softcap": "attention.softcap",
        "qk_norm": "attention.qk_norm",
        "embedding_dim": "embedding.dim",
        "num_types": "embedding.types",
        "embed_norm": "embedding.norm",
        "embed_scale": "embedding.scale",
        "num_labels": "head.labels",
        "tie_embeddings": "head.tied",
        "logit_scale": "head.scale",
        "logit_softcap": "head.softcap",
        "output_bias": "head.bias",
        "mlm_transform": "head.transform",
        "classifier_layer": "head.classifier",
        "classifier_pooling": "head.pooling",
        "generator_size": "head.generator_size",
        "dropout_rate": "dropout.residual",
        "attention_dropout_rate": "dropout.attention",
        "mlp_dropout_rate": "dropout.mlp",
        "output_dropout_rate": "dropout.output",
        "layer_drop_rate": "dropout.layer",
    }

    architecture: Literal[*FAMILIES] = Field(description="Family of the model.")
    vocab_size: int = Field(ge=0, description="Rows of the token table; 0 in a run's config: as its tokenizer needs.")
    embed_dim: int = Field(gt=0, description="Width of the residual stream.")
    num_heads: int = Field(gt=0, description="Query heads.")
    num_kv_heads: int | None = Field(None, gt=0, description="Key and value heads; None: as many as query heads.")
    head_dim: int | None = Field(None, gt=0, description="Width of one head; None: embed_dim / num_heads.")
    mlp_dim: int = Field(gt=0, description="Width of the MLP's hidden layer.")
    num_layers: int = Field(
        gt=0, description="Layers of the encoder or decoder (of the encoder, if the model has both)."
    )
    num_decoder_layers: int | None = Field(
        None, gt=0, description="Layers of an encoder-decoder's decoder; None: num_layers."
    )
    share_layers: bool = Field(False, description="All layers of a stack have the same parameters, as ALBERT.")
    max_length: int = Field(gt=0, description="The most tokens of a row; rows of a learned position table.")

    block: Literal["sequential", "parallel", "parallel_shared"] = Field(
        "sequential",
        description="parallel: attention and MLP have the same input, each with its norm, as GPT-NeoX;"
        " parallel_shared: with one norm, as GPT-J and PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 2).",
    )
    norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="Kind of every normalisation.")
    norm_position: Literal["pre", "post", "sandwich", "output", "none"] = Field(
        "pre",
        description="pre: x + f(norm(x)); post: norm(x + f(x)), as BERT; sandwich: x + norm(f(norm(x))), as Gemma 2;"
        " output: x + norm(f(x)), as OLMo 2. A stack ends with a norm, except with post and none.",
    )
    first_norm: bool = Field(
        True,
        description="Off: no norm before the first attention, as ModernBERT, which has embedding.norm.",
    )
    norm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance before the square root.")
    norm_scale: bool = Field(True, description="Normalisations have a learned scale.")
    norm_offset: bool = Field(False, description="The learned scale is 1 + w, and w starts at 0, as Gemma.")
    biases: tuple[Bias, ...] = Field(
        ("query", "key", "value", "out", "up", "gate", "down", "norm", "project_in", "project_out"),
        description="Layers with a bias; layers of heads have one if this is not empty.",
    )
    mlp: Literal["relu", "relu2", "gelu", "gelu_new", "silu", "geglu", "geglu_new", "swiglu", "reglu"] = Field(
        "gelu_new",
        description="Activation; `_new`: GELU approximated by tanh; relu2: square of relu (So et al. 2021,"
        " arXiv:2109.08668); geglu, geglu_new (T5 v1.1), swiglu and reglu are gated (Shazeer 2020, arXiv:2002.05202).",
    )

    positions: Positions = Field(
        "learned",
        description="Position scheme; relative: T5's learned bias on the attention scores; alibi: a fixed bias, linear"
        " in the distance (Press et al. 2022, arXiv:2108.12409).",
    )
    decoder_positions: Positions | None = Field(
        None, description="Position scheme of an encoder-decoder's decoder; None: that in positions."
    )
    cross_positions: Literal[*ACROSS] = Field(
        "none", description="Position scheme of cross-attention, between positions of decoder and encoder."
    )
    sinusoidal_halves: bool = Field(False, description="All sines before all cosines, as Marian; off: alternating.")
    position_offset: int = Field(0, ge=0, description="Unused first rows of a learned table: 2 in RoBERTa and BART.")

    initializer: Literal["normal", "truncated_normal", "scaled", "depth_scaled", "fan_in", "xavier"] = Field(
        "normal",
        description="normal: std init_std; truncated_normal: cut at two std, as BERT; scaled: normal, and kernels that"
        " add to the residual stream are divided by sqrt(2 num_layers), as GPT-2; depth_scaled: those of layer i are"
        " divided by sqrt(2 (i + 1)); fan_in: std fan_in**-0.5, and embeddings of std 1, as T5; xavier: uniform (Glorot"
        " and Bengio 2010).",
    )
    init_std: float = Field(0.02, gt=0, description="Deviation of the (truncated) normal and scaled initializers.")

    mup: MupConfig = Field(MupConfig(), description="Maximal update parametrisation.")

    scan_layers: bool = Field(True, description="Compile one layer and scan over it; off: compile every layer.")
    remat: Literal["none", "dots", "full"] = Field(
        "none", description="What the backward pass recomputes: nothing; all but matrix products; whole layers."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of activations and products.")
    param_dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of parameters.")

    attention: AttentionConfig = Field(AttentionConfig(), description="Attention scores and masks.")
    rope: RopeConfig = Field(RopeConfig(), description="Rotary positions.")
    relative: RelativeConfig = Field(RelativeConfig(), description="Relative positions.")
    moe: MoEConfig = Field(MoEConfig(), description="A mixture of experts in place of the MLP.")
    embedding: EmbeddingConfig = Field(EmbeddingConfig(), description="Input embeddings.")
    head: HeadConfig = Field(HeadConfig(), description="Vocabulary logits and class logits.")
    dropout: DropoutConfig = Field(DropoutConfig(), description="Dropout rates.")
    quantization: QuantizationConfig = Field(QuantizationConfig(), description="Kernels in few bits.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        """Raises ValueError, with the fields, their values and the remedy, for fields that contradict each other."""
        for broken, message in problems(self):
            if broken:
                raise ValueError(message)
        return self

    @property
    def family(self) -> Family:
        """The traits of the family."""
        return FAMILIES[self.architecture]

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def width_of_head(self) -> int:
        """The width of one head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def rotated_dim(self) -> int:
        """The number of dimensions of a head that are rotated."""
        return int(self.width_of_head * self.rope.fraction)

    @property
    def score_scale(self) -> float:
        """The factor on the attention scores; with muP that of the base, times its head's width over this one's."""
        return self._base_score_scale * self._base_width_of_head / self.width_of_head

    @property
    def _base_score_scale(self) -> float:
        return self._base_width_of_head**-0.5 if self.attention.scale is None else self.attention.scale

    @property
    def _base_width_of_head(self) -> int:
        return self.mup.head_dim or self.width_of_head

    @property
    def width_factor(self) -> float:
        """How many times as wide as muP's base the model is; 1 without muP."""
        return 1.0 if self.mup.width is None else self.embed_dim / self.mup.width

    @property
    def logit_scale(self) -> float:
        """The factor on the logits of the vocabulary.

        With muP the logits of a tied table, whose entries do not shrink with the width, are divided by it and not by
        its root.
        """
        tied = 1 / self._table_factor if self.head.tied else 1.0
        return self.base_table_dim**-0.5 * tied if self.head.scale else tied

    @property
    def _table_factor(self) -> float:
        return 1.0 if self.factorised else self.width_factor

    @property
    def base_table_dim(self) -> float:
        """The width of the embedding tables in muP's base; without muP, that of the model."""
        return self.table_dim / self._table_factor

    @property
    def table_dim(self) -> int:
        """The width of the embedding tables."""
        return self.embed_dim if self.embedding.dim is None else self.embedding.dim

    @property
    def factorised(self) -> bool:
        """Whether the embedding tables have another width than the model, and are projected to and from it."""
        return self.table_dim != self.embed_dim

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP is gated."""
        return self.mlp in GATED_MLPS

    @property
    def pre_norm(self) -> bool:
        """Whether a branch has a norm before it."""
        return self.norm_position in ("pre", "sandwich")

    @property
    def final_norm(self) -> bool:
        """Whether a stack ends with a norm: if its residual stream is not normalised already."""
        return self.norm_position not in ("post", "none")

    @property
    def vector_pooling(self) -> str:
        """How the vector of a text is made of its hidden states."""
        return self.head.vector_pooling or ("last" if self.family.causal else "mean")

    @property
    def embedding_std(self) -> float:
        """The standard deviation of the initial embedding tables.

        With `fan_in`, embeddings have unit variance at the input of the stack. But if the table is tied and its logits
        are not scaled (`head.scale`), its deviation is `table_dim**-0.5`, so that the logits have unit variance.
        `xavier`, which defines kernels only, uses the latter for all tables.
        """
        if self.initializer not in ("fan_in", "xavier"):
            return self.init_std
        small = self.embedding.scale or (self.head.tied and not self.head.scale) or self.initializer == "xavier"
        return self.base_table_dim**-0.5 if small else 1.0

    @property
    def query_init_scale(self) -> float:
        """The factor on the initial query kernel; with `fan_in` it is head_dim**-0.5 / score_scale, of muP's base.

        T5 does not scale its scores, and has the factor head_dim**-0.5 in the initial query kernel instead.
        """
        return self._base_width_of_head**-0.5 / self._base_score_scale if self.initializer == "fan_in" else 1.0

    @property
    def least_parameters(self) -> int:
        """A lower bound of the number of parameters: tables, query and output kernels, and two matrices of each MLP.

        It needs no tracing, so that a model that fits on no machine is refused before any array is made.
        """
        rows = self.vocab_size + self.embedding.types + (self.max_length if self.scheme(False).table else 0)
        sides = [self.side_layers(side.causal) for side in self.family.sides]
        layers = len(sides) if self.share_layers else sum(sides)
        attention = 2 * self.embed_dim * self.num_heads * self.width_of_head
        mixed = layers // self.moe.every if self.moe.num_experts else 0
        hidden = (layers - mixed) * self.mlp_dim + mixed * self.moe.num_experts * (self.moe.mlp_dim or self.mlp_dim)
        return rows * self.table_dim + layers * attention + 2 * self.embed_dim * hidden

    def side_layers(self, decoder: bool) -> int:
        """Returns the number of layers of the encoder or the decoder."""
        return self.num_decoder_layers if decoder and self.num_decoder_layers is not None else self.num_layers

    def side_attention(self, decoder: bool) -> AttentionConfig:
        """Returns the attention of the encoder or the decoder, where they differ in their windows."""
        attention = self.attention
        if not decoder or not self.family.paired:
            return attention
        if not attention.decoder_window:
            return attention.without_window()
        return attention.with_fields({"global_tokens": 0, "global_block": 0})

    def side_positions(self, decoder: bool) -> str:
        """Returns the name of the position scheme of the encoder or the decoder."""
        return self.decoder_positions if decoder and self.decoder_positions is not None else self.positions

    def scheme(self, decoder: bool) -> Scheme:
        """Returns the position scheme of the encoder or the decoder."""
        return SCHEMES[self.side_positions(decoder)]

    @property
    def cross_scheme(self) -> Scheme:
        """The position scheme of cross-attention."""
        return ACROSS[self.cross_positions]

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The position schemes of encoder, decoder and cross-attention."""
        return (self.scheme(False), self.scheme(True), self.cross_scheme)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What speaks against the config when a model begins to learn, each once."""
        return tuple(dict.fromkeys(remark for scheme in self.schemes if (remark := scheme.remark(self))))

    def residual_init_scale(self, layer: int | jax.Array) -> float | jax.Array:
        """Returns the factor on the initial kernels of a layer whose outputs are added to the residual stream.

        `scaled`: Radford et al. 2019, section 2.3; `depth_scaled`: Zhang et al. 2019, arXiv:1908.11365, section 4.1.
        """
        if self.initializer == "depth_scaled":
            return (1 / (2 * (layer + 1))) ** 0.5
        return (2 * self.num_layers) ** -0.5 if self.initializer == "scaled" else 1.0

    def generator(self) -> "ModelConfig":
        """Returns the config of ELECTRA's generator: narrower, with as many layers and the same embedding tables.

        Clark et al. 2020, arXiv:2003.10555, sections 3.2 and 3.3. It has no experts, and its output table is tied.
        """
        size, heads = self.head.generator_size, max(1, round(self.num_heads * self.head.generator_size))
        fields: dict[str, Any] = {
            # Heads have an even width, which rotary positions need.
            "embed_dim": 2 * heads * max(1, round(self.embed_dim * size / (2 * heads))),
            "num_heads": heads,
            "num_kv_heads": None if self.num_kv_heads is None else math.gcd(heads, max(1, round(self.kv_heads * size))),
            "mlp_dim": max(1, round(self.mlp_dim * size)),
            "embedding.dim": self.table_dim,
            "mup.width": self.mup.width and self.mup.width * size,
            "head.tied": True,
            "moe": MoEConfig(),
        }
        return self.model_copy(update=fields)
