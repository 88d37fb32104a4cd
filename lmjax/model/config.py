"""ModelConfig: every choice that makes one published model differ from another, as one frozen value."""

from typing import Literal, Self

import flax.struct
import jax
import numpy as np
import pydantic
from pydantic import Field

from lmjax.schema import Schema

GATED_MLPS = ("geglu", "geglu_new", "swiglu")


@flax.struct.dataclass
class DropoutRates:
    """The dropout rates of one call, as traced data: a changed rate compiles nothing anew.

    Each is a float32 scalar, or None where the config's rate is 0, which compiles that dropout out. `DropoutRates()`
    is the deterministic model.
    """

    residual: jax.Array | None = None
    attention: jax.Array | None = None
    mlp: jax.Array | None = None
    output: jax.Array | None = None


class ModelConfig(Schema):
    """The architecture of a language model; the defaults are GPT-2's (pre-norm, LayerNorm, biases, tied output)."""

    architecture: Literal["encoder", "decoder", "encoder_decoder"] = Field(description="Which family is built.")
    vocab_size: int = Field(ge=0, description="Rows of the token table; 0 in a run's config: what its tokenizer needs.")
    embed_dim: int = Field(gt=0, description="Width of the residual stream.")
    num_heads: int = Field(gt=0, description="Query heads.")
    num_kv_heads: int | None = Field(None, gt=0, description="Key and value heads; None: as many as query heads.")
    head_dim: int | None = Field(None, gt=0, description="Width of one head; None: embed_dim / num_heads.")
    mlp_dim: int = Field(gt=0, description="Width of the MLP's hidden layer.")
    num_layers: int = Field(
        gt=0, description="Layers of the encoder or decoder (of the encoder, where there are both)."
    )
    num_decoder_layers: int | None = Field(
        None, gt=0, description="Layers of an encoder-decoder's decoder; None: num_layers."
    )
    max_length: int = Field(gt=0, description="Tokens in the longest row; the rows of a learned position table.")

    norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="Kind of every normalisation.")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="pre: x + f(norm(x)), and a norm after the last layer; post: norm(x + f(x)), as in BERT."
    )
    norm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance before the square root.")
    use_bias: bool = Field(True, description="Biases in projections, MLPs and LayerNorms.")
    mlp: Literal["relu", "gelu", "gelu_new", "silu", "geglu", "geglu_new", "swiglu"] = Field(
        "gelu_new",
        description="Activation; `_new`: GELU by tanh; geglu, geglu_new (T5 v1.1) and swiglu are gated.",
    )
    positions: Literal["none", "learned", "sinusoidal", "rope", "relative"] = Field(
        "learned", description="How the order of tokens enters; relative: T5's bias on the attention scores."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary wavelengths.")
    relative_buckets: int = Field(32, ge=4, multiple_of=2, description="Rows of the relative-position table.")
    relative_max_distance: int = Field(128, gt=0, description="Distance from which all relative positions are one.")
    num_types: int = Field(0, ge=0, description="Rows of the token-type table (BERT's A/B); 0: none.")

    embed_norm: bool = Field(False, description="Normalise the sum of the input embeddings, as BERT does.")
    embed_scale: bool = Field(False, description="Multiply token embeddings by sqrt(embed_dim), as Vaswani et al. do.")
    tie_embeddings: bool = Field(True, description="The token table is also the output projection.")
    logit_scale: bool = Field(False, description="Multiply tied logits by embed_dim**-0.5, as T5 does.")
    output_bias: bool = Field(False, description="A bias for every token's logit.")
    attention_scale: bool = Field(True, description="Divide attention scores by sqrt(head_dim); T5 does not.")
    mlm_transform: bool = Field(
        False, description="Dense, activation and norm between an encoder and its masked-LM logits, as in BERT."
    )

    initializer: Literal["normal", "scaled", "fan_in"] = Field(
        "normal",
        description="normal: std init_std; scaled: also divides what writes to the residual stream by"
        " sqrt(2 num_layers), as GPT-2; fan_in: std fan_in**-0.5 and unit embeddings, as T5.",
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the normal and scaled initializers.")

    dropout_rate: float = Field(0.0, ge=0, lt=1, description="On the input embeddings and on each residual branch.")
    attention_dropout_rate: float = Field(0.0, ge=0, lt=1, description="On the attention probabilities.")
    mlp_dropout_rate: float = Field(0.0, ge=0, lt=1, description="On the MLP's hidden layer, as T5.")
    output_dropout_rate: float = Field(0.0, ge=0, lt=1, description="After the last layer of a stack, as T5.")

    scan_layers: bool = Field(True, description="Compile one layer and scan over it; off: every layer in turn.")
    remat: Literal["none", "dots", "full"] = Field(
        "none", description="What the backward pass recomputes: nothing; all but matrix products; whole layers."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Compute and activations.")
    param_dtype: Literal["float32", "bfloat16"] = Field("float32", description="Parameters.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        """Raises ValueError, with the fields, their values and the remedy, for sizes and choices that do not fit."""
        for broken, message in self._problems():
            if broken:
                raise ValueError(message)
        return self

    def _problems(self) -> tuple[tuple[bool, str], ...]:
        """Returns every rule between fields as (is it broken?, what to say)."""
        cross = self.architecture == "encoder_decoder"
        relative = self.positions == "relative"
        return (
            (
                self.head_dim is None and self.embed_dim % self.num_heads != 0,
                f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}; change one, or head_dim",
            ),
            (
                self.num_heads % self.kv_heads != 0,
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; change one of them",
            ),
            (
                self.positions == "rope" and self.width_of_head % 2 != 0,
                f"positions=rope rotates pairs and head_dim={self.width_of_head} is odd; use an even head_dim",
            ),
            (
                self.positions == "sinusoidal" and self.embed_dim % 2 != 0,
                f"positions=sinusoidal needs an even embed_dim, and it is {self.embed_dim}",
            ),
            (
                relative and self.relative_max_distance <= self.relative_buckets // 2,
                f"relative_max_distance={self.relative_max_distance} must be above half of"
                f" relative_buckets={self.relative_buckets}: that many distances have a bucket each",
            ),
            (
                self.num_decoder_layers is not None and not cross,
                f"num_decoder_layers={self.num_decoder_layers} is for architecture=encoder_decoder; with"
                f" architecture={self.architecture} set num_layers",
            ),
            (
                self.num_types > 0 and cross,
                f"num_types={self.num_types}: an encoder-decoder has no token types; set num_types=0",
            ),
            (
                self.logit_scale and not self.tie_embeddings,
                "logit_scale=True scales tied logits; set tie_embeddings=True or logit_scale=False",
            ),
            (
                self.mlm_transform and self.architecture != "encoder",
                f"mlm_transform=True is for architecture=encoder, not {self.architecture}; set mlm_transform=False",
            ),
        )

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def width_of_head(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder stack."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP has a gate beside its activation."""
        return self.mlp in GATED_MLPS

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the embedding tables at the start.

        `fan_in` gives tokens unit variance where they enter the stack, and gives a tied table that scales nothing on
        its way out logits of unit variance instead.
        """
        if self.initializer != "fan_in":
            return self.init_std
        small = self.embed_scale or (self.tie_embeddings and not self.logit_scale)
        return self.embed_dim**-0.5 if small else 1.0

    @property
    def residual_init_scale(self) -> float:
        """Factor on the initial kernels that write to the residual stream (Radford et al. 2019, section 2.3)."""
        return (2 * self.num_layers) ** -0.5 if self.initializer == "scaled" else 1.0

    @property
    def query_init_scale(self) -> float:
        """Factor on the initial query kernel: T5 puts there the 1/sqrt(head_dim) that its scores lack."""
        return self.width_of_head**-0.5 if self.initializer == "fan_in" and not self.attention_scale else 1.0

    def dropout_rates(self) -> DropoutRates:
        """Returns the rates as float32 scalars, None where a rate is 0: what a training step traces."""
        rates = (self.dropout_rate, self.attention_dropout_rate, self.mlp_dropout_rate, self.output_dropout_rate)
        return DropoutRates(*(np.float32(rate) if rate else None for rate in rates))
