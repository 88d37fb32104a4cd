"""What an objective is: a host half in numpy (documents -> features), a device half in JAX (outputs -> loss sums)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer

Features = dict[str, np.ndarray]
Batch = dict[str, jax.Array]


class LossSum(struct.PyTreeNode):
    """A loss as a sum and its weight, so that parts of a batch add up whatever their sizes.

    Attributes:
        loss: float32 scalar, the weighted sum of losses in nats.
        weight: float32 scalar, the sum of the weights (for 0/1 weights, the number of predictions).
        correct: float32 scalar, the weighted number of predictions whose most likely class is the target.
    """

    loss: jax.Array
    weight: jax.Array
    correct: jax.Array

    def __add__(self, other: LossSum) -> LossSum:
        """Returns the sums over both parts."""
        return jax.tree.map(jnp.add, self, other)


class Outputs(NamedTuple):
    """What a model hands to the device halves.

    Attributes:
        hidden: `[batch, length, embed]`, the final states of the side that predicts.
        logits: `[..., embed] -> [..., vocab]` float32, the vocabulary head.
        next_sentence: `[batch, length, embed] -> [batch, 2]` float32, the next-sentence head.
    """

    hidden: jax.Array
    logits: Callable[[jax.Array], jax.Array]
    next_sentence: Callable[[jax.Array], jax.Array]


class Rows(abc.ABC):
    """The rows that an objective reads: how many there are, and what row `index` holds. Must pickle."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of rows of one epoch."""

    @abc.abstractmethod
    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the arrays of one row, without a batch dimension; a function of its arguments alone."""


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """One training objective.

    Attributes:
        config: the objective's own small config.
        tokenizer: special ids and word boundaries.
        architecture: the family that is trained.
        length: tokens in a row (of the encoder's, in an encoder-decoder).
        target_length: tokens in a row of the decoder's, in an encoder-decoder.
        vocab_chunk: positions of every row whose logits exist at the same time; 0 for all.
    """

    config: object
    tokenizer: Tokenizer
    architecture: str
    length: int
    target_length: int
    vocab_chunk: int

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]] = ()
    wants_pairs: ClassVar[bool] = False

    @abc.abstractmethod
    def rows(self, store: Store, seed: int) -> Rows:
        """Returns the rows that this objective makes of a store's documents."""

    def transform(self, features: Features, rng: np.random.Generator) -> Features:
        """Returns the features of a row after this objective's corruption, if it has one."""
        del rng
        return features

    @abc.abstractmethod
    def weight(self, batch: Batch) -> jax.Array:
        """Returns the float32 scalar that the loss sum over `batch` is divided by."""

    @abc.abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> LossSum:
        """Returns the sums over `batch`."""
