"""What a head is, and the layers that several have."""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from lmjax.model.config import ModelConfig
from lmjax.model.layers import ACTIVATIONS, Dense, Embed, Norm


class Output(NamedTuple):
    """What one output of a head is.

    Attributes:
        name: of it among all outputs of a model.
        axes: of "batch", "length", "embed", "labels" and "vocab", or the size itself.
        dtype: None: that of the activations.
    """

    name: str
    axes: tuple[str | int, ...]
    dtype: str | None = "float32"


class Size(NamedTuple):
    """How much a head computes.

    Attributes:
        rows: of the batch.
        length: of a row, on the side that predicts.
        predictions: positions that have vocabulary logits.
    """

    rows: int
    length: int
    predictions: int


class Head(nn.Module):
    """A prediction from hidden states.

    Its call takes hidden states `[batch, length, embed]` and the fields that `reads` lists, and returns the outputs in
    their order: an array, or a tuple where there are several. Initialisation calls each head of a model once.

    Attributes:
        outputs: what it returns, in order.
        families: that can have it.
        subtree: where its parameters are among those of the model; empty: beside its embedding and its backbone.
        reads: fields of the batch that its call takes behind the hidden states; None for one that the batch lacks.
        fine_tuned: whether it is learnt on labelled data, for which the config has its form (`head.classifier`).
        in_training_only: whether it serves the training of the others, so that no checkpoint beside them has it.
    """

    config: ModelConfig

    outputs: ClassVar[tuple[Output, ...]]
    families: ClassVar[tuple[str, ...]] = ("encoder",)
    subtree: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    fine_tuned: ClassVar[bool] = False
    in_training_only: ClassVar[bool] = False

    @classmethod
    def build(cls, config: ModelConfig, table: Embed, backbone: nn.Module) -> "Head":
        """Returns the head for a model with this token table and backbone; called in the model's setup."""
        del table, backbone
        return cls(config, name=cls.subtree)

    @classmethod
    def submodel(cls, config: ModelConfig) -> ModelConfig | None:
        """Returns the config of the language model that this head is itself (`states`, `logits`); None: it is none."""
        del config
        return None

    @classmethod
    def flops(cls, config: ModelConfig, size: Size) -> int:
        """Returns the FLOPs of the head's matrix products in a forward pass."""
        raise NotImplementedError

    @classmethod
    def named(cls, result: Any) -> dict[str, jax.Array]:
        """Returns by name what a call returned."""
        results = result if isinstance(result, tuple) else (result,)
        return {output.name: x for output, x in zip(cls.outputs, results, strict=True)}


class Transform(nn.Module):
    """Dense, activation and norm, as before BERT's vocabulary (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Before a factorised table it is also the way back to the table's width (Lan et al. 2020, arXiv:1909.11942).

    Attributes:
        width: of what it gives.
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
    """Returns a layer of the model's width over `x`; called by the compact module that owns it."""
    return Dense(config, (config.embed_dim,), ("embed", "mlp"), use_bias=bool(config.biases), name=name)(x)


def class_logits(config: ModelConfig, classes: int, x: jax.Array, bias: bool) -> jax.Array:
    """Returns float32 logits; called by the compact module that owns the layer."""
    return Dense(config, (classes,), ("mlp", "classes"), use_bias=bias, out_dtype="float32", name="classifier")(x)
