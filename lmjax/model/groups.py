"""The groups of ModelConfig's fields, each with the rules about its own fields."""

from typing import Literal, Self

import jax
import numpy as np
import pydantic
from pydantic import Field

from lmjax.model.dropout import DropoutRates, Generator
from lmjax.schema import Schema

# Fields of attention that have no effect without a window.
_OF_WINDOWS = ("global_every", "global_offset", "sink_tokens", "global_tokens", "global_block", "decoder_window")


class AttentionConfig(Schema):
    """How attention scores are computed, and which keys a query may attend to."""

    kernel: Literal["auto", "plain", "xla", "cudnn", "splash", "blockwise"] = Field(
        "auto", description="How attention is computed; auto: chosen by backend, length and the features in use."
    )
    scale: float | None = Field(None, gt=0, description="Factor on the scores; None: head_dim**-0.5; T5: 1.")
    window: int | None = Field(
        None,
        gt=0,
        description="Queries attend to keys at a distance below this (Beltagy et al. 2020, arXiv:2004.05150).",
    )
    global_every: int = Field(0, ge=0, description="Layers i with i % global_every == global_offset have no window.")
    global_offset: int = Field(0, ge=0, description="As in global_every. Gemma 2: every 2, offset 1; Gemma 3: 6 and 5.")
    sink_tokens: int = Field(
        0, ge=0, description="First tokens that windows do not mask (Xiao et al. 2024, arXiv:2309.17453, section 3.2)."
    )
    global_tokens: int = Field(
        0,
        ge=0,
        description="First tokens of a segment that attend to all its tokens, and these to them, in an encoder's layers"
        " with a window (Beltagy et al. 2020, section 3.1).",
    )
    global_block: int = Field(
        0,
        ge=0,
        description="In an encoder's layers with a window, each so many tokens of a segment give one more key: their"
        " sum, normalised (transient global attention; Guo et al. 2022, arXiv:2112.07916, section 3.1.2); 0: none.",
    )
    decoder_window: bool = Field(
        True, description="The decoder of an encoder-decoder has the window too; off: its encoder alone, as LongT5."
    )
    sink_logits: bool = Field(
        False,
        description="A learned logit per head in each softmax, without a key, as gpt-oss (arXiv:2508.10925).",
    )
    softcap: float | None = Field(
        None, gt=0, description="Scores are cap * tanh(scores / cap) (Gemma 2, arXiv:2408.00118, section 2)."
    )
    qk_norm: Literal["none", "head", "full"] = Field(
        "none",
        description="Queries and keys are normalised (Henry et al. 2020, arXiv:2010.04245): each head, as Qwen3, or"
        " all heads together, as OLMo 2.",
    )

    def without_window(self) -> Self:
        """Returns the same with all keys visible at every distance."""
        return self.with_fields(dict.fromkeys(_OF_WINDOWS, 0) | {"window": None, "decoder_window": True})

    def is_global(self, layer: int | jax.Array) -> bool | jax.Array:
        """Returns whether a layer has no window; a traced bool if `layer` is traced and layers differ."""
        if self.window is None or not self.global_every:
            return self.window is None
        return layer % self.global_every == self.global_offset

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        usual = type(self).model_fields
        given = [f"{n}={getattr(self, n)}" for n in _OF_WINDOWS if getattr(self, n) != usual[n].default]
        if self.window is None and given:
            raise ValueError(f"{' and '.join(given)} have no effect without a window; set window")
        if self.global_offset >= max(self.global_every, 1):
            raise ValueError(
                f"global_offset={self.global_offset} is not below global_every={self.global_every}: no layer would be"
                " global; lower it"
            )
        return self


class RopeConfig(Schema):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), and their scaling to longer rows."""

    theta: float = Field(10_000.0, gt=0, description="Base of the wavelengths.")
    local_theta: float | None = Field(
        None, gt=0, description="Base in layers with a window, where nothing is scaled, as Gemma 3; None: as in others."
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Fraction of each head that is rotated: its first dimensions.")
    scaling: Literal["none", "linear", "ntk", "dynamic", "yarn", "longrope", "llama3"] = Field(
        "none",
        description="linear: positions / factor (Chen et al. 2023, arXiv:2306.15595); ntk: a base that slows the"
        " slowest rotation by factor and leaves the fastest (Peng et al. 2023, arXiv:2309.00071, section 3.1); dynamic:"
        " ntk by the length of the row; yarn: section 3.4 of the same; longrope: a divisor for each frequency (Ding et"
        " al. 2024, arXiv:2402.13753); llama3: Grattafiori et al. 2024, arXiv:2407.21783.",
    )
    factor: float = Field(1.0, ge=1, description="Factor on the original length; used with a scaling.")
    original_length: int | None = Field(None, gt=0, description="Tokens of a row without scaling; None: max_length.")
    low_frequency: float = Field(
        1.0, gt=0, description="llama3: frequencies with fewer turns in the original length are divided by factor."
    )
    high_frequency: float = Field(
        4.0, gt=0, description="llama3: frequencies with more turns in the original length are not changed."
    )
    beta_fast: float = Field(
        32.0, gt=0, description="yarn: frequencies with more turns in the original length are not changed."
    )
    beta_slow: float = Field(
        1.0, gt=0, description="yarn: frequencies with fewer turns in the original length are divided by factor."
    )
    attention_factor: float | None = Field(
        None,
        gt=0,
        description="Factor on sines and cosines. None: with yarn 0.1 ln(factor) + 1; with longrope sqrt(1 + ln(factor)"
        " / ln(original_length)).",
    )
    truncate: bool = Field(True, description="yarn: the two borders are rounded to whole dimensions; off: gpt-oss.")
    short_factors: tuple[float, ...] = Field(
        (), description="longrope: divisors of frequencies in rows of up to original_length tokens; (): long_factors."
    )
    long_factors: tuple[float, ...] = Field(
        (), description="longrope: divisors of frequencies in longer rows, one for each pair of rotated dimensions."
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.scaling == "none" and self.factor != 1:
            raise ValueError(f"factor={self.factor} has no effect without a scaling; set scaling")
        given = {name: getattr(self, name) for name in ("short_factors", "long_factors") if getattr(self, name)}
        if given and self.scaling != "longrope":
            name, value = given.popitem()
            raise ValueError(f"{name}={value} has no effect with scaling={self.scaling!r}; set scaling=longrope")
        if odd := [x for values in given.values() for x in values if x <= 0]:
            raise ValueError(f"{', '.join(given)}: {odd[0]} is no divisor of a frequency; give numbers above 0")
        return self

    @property
    def by_length(self) -> bool:
        """Whether frequencies differ between rows of up to `original_length` tokens and longer rows."""
        return self.scaling == "dynamic" or (self.short_factors not in ((), self.long_factors))


class RelativeConfig(Schema):
    """T5's bias on attention scores by distance (Raffel et al. 2020, arXiv:1910.10683, section 2.1)."""

    buckets: int = Field(32, ge=4, multiple_of=2, description="Rows of the relative-position table.")
    max_distance: int = Field(128, gt=0, description="Distance from which all distances share one bucket.")
    per_layer: bool = Field(False, description="A table in each layer; off: the layers of a stack share one, as T5.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"max_distance={self.max_distance} must be above half of buckets={self.buckets}, because half of the"
                " buckets have one distance each; raise max_distance or lower buckets"
            )
        return self


class MoEConfig(Schema):
    """A mixture of experts in place of the MLP (Shazeer et al. 2017, arXiv:1701.06538, section 2)."""

    num_experts: int = Field(0, ge=0, description="Experts of a layer; 0: one dense MLP.")
    top_k: int = Field(2, gt=0, description="Experts that each token passes through.")
    mlp_dim: int | None = Field(None, gt=0, description="Width of an expert's hidden layer; None: the model's mlp_dim.")
    every: int = Field(1, gt=0, description="Layers i with i % every == offset have experts; others have a dense MLP.")
    offset: int = Field(0, ge=0, description="The first layer with experts; see every.")
    normalize: bool = Field(True, description="The gates of the chosen experts sum to 1, as in Mixtral.")
    balance_weight: float = Field(
        0.01,
        ge=0,
        description="Weight of the load-balancing loss (Fedus et al. 2022, arXiv:2101.03961, equation 4), over the"
        " tokens of a microbatch.",
    )
    z_weight: float = Field(
        0.001, ge=0, description="Weight of the router's z-loss (Zoph et al. 2022, arXiv:2202.08906, equation 5)."
    )
    dispatch: Literal["auto", "dense", "ragged"] = Field(
        "auto",
        description="ragged: tokens are sorted by expert; dense: every expert is computed for every token, which a mesh"
        " can split; auto: dense if the mesh has an expert axis. None of them drops tokens.",
    )

    def loss_weights(self) -> dict[str, float]:
        """Returns the weight of each of the router's losses, by name; empty without experts."""
        return {"router_balance": self.balance_weight, "router_z": self.z_weight} if self.num_experts else {}

    def has_experts(self, layer: int | jax.Array) -> bool:
        """Returns whether a layer has experts in place of the MLP; it can be traced only if all layers are alike."""
        if not self.num_experts or self.every == 1:
            return self.num_experts > 0
        return layer % self.every == self.offset

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_experts and self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} is more than num_experts={self.num_experts}; change one of them")
        if self.num_experts and self.top_k == 1 and self.normalize:
            raise ValueError(
                "normalize=True with top_k=1 makes the only gate constant, so that the loss does not train the router;"
                " set normalize=False"
            )
        if self.offset >= self.every:
            raise ValueError(
                f"offset={self.offset} is not below every={self.every}: no layer would have experts; lower it"
            )
        return self


class MupConfig(Schema):
    """Maximal update parametrisation: what was tuned on a narrow model holds on a wide one (Yang et al. 2022, muP).

    arXiv:2203.03466, table 3. A model of the base's width has the standard parametrisation. In one that is m times as
    wide, kernels inside the model start with 1 / sqrt(m) of the deviation and those whose outputs do not grow with the
    width with 1 / m, kernels have 1 / m of the learning rate of Adam or Lion, logits of a tied table are divided by m,
    and attention scores by the width of a head instead of its root. Tables, biases and norms stay as they are. All
    widths, such as mlp_dim, must grow by the same factor.
    """

    width: float | None = Field(
        None, gt=0, description="embed_dim of the base model; None: the standard parametrisation at every width."
    )
    head_dim: int | None = Field(None, gt=0, description="Width of a head of the base model; None: this model's.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.head_dim is not None and self.width is None:
            raise ValueError(f"head_dim={self.head_dim} is of the base model, which width=None says there is not")
        return self


class EmbeddingConfig(Schema):
    """The input embeddings."""

    dim: int | None = Field(
        None, gt=0, description="Width of the embedding tables; None: embed_dim (ALBERT, arXiv:1909.11942)."
    )
    types: int = Field(0, ge=0, description="Rows of the token-type table (BERT's A/B); 0: none.")
    padding: int = Field(
        0,
        ge=0,
        description="Last rows of the vocab_size rows of the token table that stand for no token, so that devices can"
        " split it evenly; they are never predicted.",
    )
    norm: bool = Field(False, description="Normalise the sum of the input embeddings, as BERT does.")
    scale: bool = Field(
        False, description="Multiply token embeddings by the square root of their width, as Vaswani et al. 2017."
    )


class HeadConfig(Schema):
    """What is computed from the hidden states: logits of the vocabulary, and class logits of rows and tokens."""

    tied: bool = Field(True, description="The token table is also the output projection.")
    scale: bool = Field(False, description="Divide tied logits by the square root of the table's width, as T5.")
    softcap: float | None = Field(None, gt=0, description="Vocabulary logits are cap * tanh(logits / cap), as Gemma 2.")
    bias: bool = Field(False, description="A bias for each logit of the vocabulary.")
    transform: bool = Field(
        False, description="Dense, activation and norm between an encoder and its masked-LM logits, as in BERT."
    )
    labels: int = Field(2, gt=0, description="Classes of a classifier or a tagger.")
    classifier: Literal["tanh", "relu", "gelu", "transform"] = Field(
        "tanh",
        description="An encoder's classifier is Dense, this activation, Dense: relu in DistilBERT, gelu in ELECTRA;"
        " transform: the masked-LM head's activation and norm, also in taggers and spans, as ModernBERT"
        " (arXiv:2412.13663).",
    )
    pooling: Literal["first", "mean"] = Field(
        "first", description="Input of an encoder's classifier: the first position ([CLS]), or the mean of the row."
    )
    vector_pooling: Literal["mean", "first", "last"] | None = Field(
        None,
        description="The vector of a text: the mean of its hidden states, or its first or last one; None: mean in an"
        " encoder (Reimers and Gurevych 2019, arXiv:1908.10084, table 6), last in a decoder.",
    )
    unit_length: bool = Field(True, description="Vectors of texts are divided by their length.")
    generator_size: float = Field(
        0.25, gt=0, le=1, description="Width of ELECTRA's generator divided by the model's; used with replaced tokens."
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale and not self.tied:
            raise ValueError("scale=True is for tied logits, and tied=False; set tied=True or scale=False")
        return self


class DropoutConfig(Schema):
    """Rates of dropout (Srivastava et al. 2014), by what is dropped; 0: no dropout."""

    residual: float = Field(0.0, ge=0, lt=1, description="On the input embeddings and on each residual branch.")
    attention: float = Field(0.0, ge=0, lt=1, description="On the attention probabilities.")
    mlp: float = Field(0.0, ge=0, lt=1, description="On the MLP's hidden layer, as T5.")
    output: float = Field(0.0, ge=0, lt=1, description="After the last layer of a stack, as T5.")
    layer: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drops a branch for whole rows, at a rate"
        " that grows linearly with depth to this one.",
    )

    generator: Generator = Field(
        "hash",
        description="Random numbers of the masks: JAX's own, or hashes, with a fifth of the operations"
        " (`lmjax.hashed_bits`).",
    )

    def by_name(self) -> dict[str, float]:
        """Returns the rates by what is dropped."""
        return {name: rate for name, rate in self if name != "generator"}

    def rates(self) -> DropoutRates:
        """Returns the rates as float32 scalars, None where a rate is 0, as an argument of the training step."""
        scalars = {name: np.float32(rate) if rate else None for name, rate in self.by_name().items()}
        return DropoutRates(**scalars, generator=self.generator)
