"""What an objective is: a host half in numpy (documents -> features), a device half in JAX (outputs -> loss sums)."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from pydantic import Field

from lmjax.data.columns import Column
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.model.traits import FAMILIES, Family
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.samples import Sample, beginning, continuation
from lmjax.schema import Schema

Features = dict[str, np.ndarray]
Batch = dict[str, jax.Array]


class ObjectiveConfig(Schema):
    """What every objective's settings begin with."""

    loss_weight: float = Field(1.0, description="factor on its loss in the sum of all objectives")
    rate: float = Field(1.0, gt=0, description="how often its rows come in a mixture, relative to the others")

    def loss_weights(self, name: str) -> dict[str, float]:
        """Returns the weight in the loss of every sum of the objective called `name`."""
        return {name: self.loss_weight}


class LossSum(struct.PyTreeNode):
    """A loss as a sum and its weight, so that parts of a batch add up whatever their sizes.

    Attributes:
        loss: float32 scalar, the weighted sum of losses in nats: the plain cross entropy, comparable with any other.
        weight: float32 scalar, the sum of the weights (for 0/1 weights, the number of predictions).
        correct: float32 scalar, the weighted number of predictions whose likeliest class (of equals, the first) is the
            target; None for a loss that predicts nothing.
        penalty: float32 scalar, what z-loss and label smoothing add to `loss` in training.
    """

    loss: jax.Array
    weight: jax.Array
    correct: jax.Array | None
    penalty: jax.Array

    def __add__(self, other: LossSum) -> LossSum:
        """Returns the sums over both parts."""
        return jax.tree.map(jnp.add, self, other)


class Penalties(struct.PyTreeNode):
    """What training adds to the cross entropy over the vocabulary: float32 scalars, None where there is nothing to add.

    They are traced: another value compiles nothing anew.

    Attributes:
        z_loss: factor on the squared logarithm of the softmax's denominator (Chowdhery et al. 2022, arXiv:2204.02311,
            section 5), which keeps logits from drifting.
        label_smoothing: share of the target's probability that goes to all ids of the tokenizer alike (Szegedy et al.
            2016, arXiv:1512.00567, section 7; Vaswani et al. 2017, arXiv:1706.03762, section 5.4).
    """

    z_loss: jax.Array | None = None
    label_smoothing: jax.Array | None = None


NO_PENALTIES = Penalties()


@dataclasses.dataclass(kw_only=True)
class Forward(abc.ABC):
    """A model and a batch, as the device halves see them; what no objective asks for is never computed.

    Attributes:
        batch: the batch that `hidden` is computed from.
        key: for what an objective draws on the device.
        penalties: what is added to the cross entropy over the vocabulary.
    """

    batch: Batch
    key: jax.Array
    penalties: Penalties = NO_PENALTIES

    @functools.cached_property
    def hidden(self) -> jax.Array:
        """`[batch, length, embed]`, the final states of the side that predicts; computed once for all objectives."""
        return self.states(self.batch)

    @abc.abstractmethod
    def states(self, batch: Batch) -> jax.Array:
        """Returns `[batch, length, embed]`, the final states for a batch other than this one."""

    @abc.abstractmethod
    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 `[..., vocab]` for `[..., embed]`: the vocabulary head."""

    @abc.abstractmethod
    def head(self, name: str, hidden: jax.Array) -> Any:
        """Returns what a head that `Objective.heads` names gives for `[batch, length, embed]`.

        An array, or a tuple of those that the head declares as its outputs (`lmjax.model.heads`).
        """

    @abc.abstractmethod
    def submodel(self, name: str) -> Forward:
        """Returns the same of a head that is a language model itself, such as ELECTRA's generator, for this batch."""


class Rows(abc.ABC):
    """The rows that an objective reads: how many there are, and what row `index` holds. Must pickle.

    Attributes:
        store: the documents that the rows are made of.
    """

    store: Store

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of rows of one epoch."""

    @abc.abstractmethod
    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the arrays of one row, without a batch dimension; a function of its arguments alone."""


class NanoRun(NamedTuple):
    """Steps, rows of a batch and learning rate with which a nano model learns most in two minutes on two CPU cores."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """One training objective; `ObjectiveConfig` is what its settings begin with.

    Attributes:
        config: the objective's own small config.
        tokenizer: special ids and word boundaries.
        architecture: the family that is trained.
        length: tokens in a row (of the encoder's, in an encoder-decoder).
        target_length: tokens in a row of the decoder's, in an encoder-decoder.
        vocab_chunk: positions of every row whose logits exist at the same time; 0 for all.
        name: what flags, configs and metrics call it.
        architectures: the families that can train it, the usual one first.
        usual_for: the families that train it where no objective is named.
        heads: the heads that the model needs for it beside the vocabulary.
        wants_pairs: whether its documents are sources and targets.
        columns: the named fields that it reads of every record, where its documents are neither pairs nor running text.
        rows_for: objectives that read the rows of this one where both are trained; its rate is then that of both.
        shares_logits: whether it predicts by the vocabulary logits of the model's own hidden states.
        predicts_at: the feature that holds the positions of these predictions; None: it predicts at all positions.
        num_types: the type ids by which it tells the texts of a row apart; 0: none.
        nano: by family, how `lmjax train` trains it unless told otherwise.
    """

    config: ObjectiveConfig
    tokenizer: Tokenizer
    architecture: str
    length: int
    target_length: int
    vocab_chunk: int

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    usual_for: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[tuple[str, ...]] = ()
    wants_pairs: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = ()
    rows_for: ClassVar[tuple[type[Objective], ...]] = ()
    shares_logits: ClassVar[bool] = False
    predicts_at: ClassVar[str | None] = None
    num_types: ClassVar[int] = 0
    nano: ClassVar[Mapping[str, NanoRun]] = {
        "encoder": NanoRun(600, 16, 4e-3),
        "decoder": NanoRun(600, 16, 4e-3),
        "encoder_decoder": NanoRun(900, 8, 3e-3),
    }

    @property
    def family(self) -> Family:
        """The traits of the family that is trained."""
        return FAMILIES[self.architecture]

    @classmethod
    def target_places(cls, config: ObjectiveConfig, length: int) -> int:
        """Returns the tokens that a decoder's row needs beside an encoder's of `length`, so that both fill up alike.

        Here as many: a target is about as long as its source.
        """
        del config
        return length

    @abc.abstractmethod
    def rows(self, store: Store, seed: int) -> Rows:
        """Returns the rows that this objective makes of a store's documents."""

    def sources(self, store: Store, seed: int) -> tuple[Rows, ...]:
        """Returns the kinds of rows that this objective mixes in equal shares; each reads the whole store."""
        return (self.rows(store, seed),)

    def transform(self, features: Features, rng: np.random.Generator) -> Features:
        """Returns the features of a row after this objective's corruption, if it has one."""
        del rng
        return features

    @abc.abstractmethod
    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns by name the float32 scalar that each loss sum over `batch` is divided by; 0 for an empty batch."""

    @abc.abstractmethod
    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over `batch` by name: the objective's own, and what else it trains with it."""

    def prompt_format(self) -> PromptFormat:
        """Returns what stands around a text in this objective's rows, and ends what is written behind it.

        Writing and scoring give the model the rows that it was trained on. Here: of an encoder, one text between its
        special tokens; of a decoder, a text that is predicted from its beginning on.
        """
        t = self.tokenizer
        if not self.family.causal:
            return PromptFormat(before=(t.cls_id,), after=(t.sep_id,))
        return PromptFormat(before=(t.bos_id,), stop=(t.eos_id,), never=self.never())

    def sample(self, store: Store, room: int) -> Sample | None:
        """Returns what is shown of a trained model on held-out documents; None: nothing.

        Here: of a decoder, how it continues a text.

        Args:
            store: the held-out documents.
            room: the longest row of the model.
        """
        if not self.family.causal:
            return None
        return continuation(beginning(store, room), self.tokenizer, sampled=self.family.continues)

    def never(self) -> tuple[int, ...]:
        """Returns the special ids that this objective never predicts, and that are never written."""
        return tuple(sorted(self.tokenizer.special_ids - {self.tokenizer.eos_id}))

    def token_targets(self, batch: Batch | Features) -> dict[str, tuple[Any, Any]]:
        """Returns, for each sum that is over tokens, the targets and their weights: what perplexity and bytes need."""
        del batch
        return {}
