"""The base class of heads, and layers that several heads use."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Embed, Norm


class Output(NamedTuple):
    """Name, axes and dtype of one output of a head.

    Attributes:
        name: unique among all outputs of a model.
        axes: each one of "batch", "length", "embed", "labels" and "vocab", or a number.
        dtype: of the output; None: that of the activations.
    """

    name: str
    axes: tuple[str | int, ...]
    dtype: str | None = "float32"


class Size(NamedTuple):
    """The sizes from which the FLOPs of a head are computed.

    Attributes:
        rows: number of rows in the batch.
        length: of a row (of the decoder, in an encoder-decoder).
        predictions: number of positions at which vocabulary logits are computed.
    """

    rows: int
    length: int
    predictions: int


class Head(nn.Module):
    """A prediction from hidden states.

    A call takes hidden states `[batch, length, embed]` and the fields in `reads`, and returns the outputs in the order
    of `outputs`: an array, or a tuple if there are several. Initialisation calls each head of a model once.

    Attributes:
        outputs: the outputs of a call, in order.
        families: the families that can have this head.
        subtree: name of the head in the model's parameters; empty: its parameters are at the top level.
        reads: fields of the batch that a call takes after the hidden states; one that the batch lacks is None.
        fine_tuned: whether the head is trained on labelled data; `head.classifier` in the config sets its layers.
        in_training_only: whether the head is needed in training only, so that it is not exported with the model.
        has_parameters: whether it has parameters; a head without any is no part of a checkpoint's class.
    """

    config: ModelConfig

    outputs: ClassVar[tuple[Output, ...]]
    families: ClassVar[tuple[str, ...]] = ("encoder",)
    subtree: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    fine_tuned: ClassVar[bool] = False
    in_training_only: ClassVar[bool] = False
    has_parameters: ClassVar[bool] = True

    @classmethod
    def build(cls, config: ModelConfig, table: Embed, backbone: nn.Module) -> "Head":
        """Returns the head for a model with this token table and backbone; called by the model's setup."""
        del table, backbone
        return cls(config, name=cls.subtree)

    @classmethod
    def adopts(cls, config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
        """Returns by own layer the layers of other heads, as SUBTREE/LAYER, whose pretrained parameters it begins with.

        They are used for a model that starts from one without this head; the first one that is there counts.
        """
        del config
        return {}

    @classmethod
    def submodel(cls, config: ModelConfig) -> ModelConfig | None:
        """Returns the config of the head's own language model (`states`, `logits`); None: the head has none."""
        del config
        return None

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of the head's matrix products in a forward pass."""
        raise NotImplementedError

    @classmethod
    def named(cls, result: Any) -> dict[str, jax.Array]:
        """Returns the result of a call as a dict, by names of the outputs."""
        results = result if isinstance(result, tuple) else (result,)
        return {output.name: x for output, x in zip(cls.outputs, results, strict=True)}


class Transform(nn.Module):
    """Dense, activation and norm, as before BERT's logits (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    With factorised embeddings it also projects to the width of the token table (Lan et al. 2020, arXiv:1909.11942).

    Attributes:
        width: of its output.
    """

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Returns `[..., width]` for `[..., embed]`."""
        config = self.config
        x = Dense(config, (self.width,), ("embed", "mlp"), use_bias=bool(config.biases), name="dense")(hidden)
        return Norm(config, name="norm")(ACTIVATIONS[config.mlp](x))


def dense(config: ModelConfig, name: str, x: jax.Array) -> jax.Array:
    """Returns a Dense layer from and to the model's width, applied to `x`; called in a compact method of its owner."""
    return Dense(config, (config.embed_dim,), ("embed", "mlp"), use_bias=bool(config.biases), name=name)(x)


def class_logits(config: ModelConfig, classes: int, x: jax.Array, bias: bool) -> jax.Array:
    """Returns float32 logits `[..., classes]`; called in a compact method of the layer's owner."""
    return Dense(config, (classes,), ("mlp", "classes"), use_bias=bias, out_dtype="float32", name="classifier")(x)
