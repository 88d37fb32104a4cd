"""The base class of objectives: a host half in numpy (documents -> features), a device half in JAX (-> loss sums)."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import numpy as np
from pydantic import Field

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.data.record_format import PLAIN, RecordFormat
from lmjax.data.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.model.traits import FAMILIES, Family
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.samples import Sample, beginning, continuation
from lmjax.objectives.sums import NO_PENALTIES, LossSum, Penalties
from lmjax.schema import Schema

if TYPE_CHECKING:
    from lmjax.objectives.divergences import Measure

Features = dict[str, np.ndarray]
Batch = dict[str, jax.Array]


class ObjectiveConfig(Schema):
    """The settings that every objective has; a subclass adds its own.

    Attributes:
        weighting: the fields that only `loss_weights` reads, so that they are traced.
    """

    weighting: ClassVar[tuple[str, ...]] = ("loss_weight",)

    loss_weight: float = Field(1.0, description="factor on its loss in the sum of all objectives")
    rate: float = Field(1.0, gt=0, description="how often its rows come in a mixture, relative to the others")

    def loss_weights(self, name: str) -> dict[str, float]:
        """Returns, for each loss sum of the objective `name`, its weight in the total loss."""
        return {name: self.loss_weight}


@dataclasses.dataclass(kw_only=True)
class Forward(abc.ABC):
    """The model applied to one batch, for the device halves: an output is computed only if an objective uses it.

    Attributes:
        batch: the batch that `hidden` is computed from.
        key: random key for what an objective samples on the device.
        penalties: what is added to the cross entropy.
    """

    batch: Batch
    key: jax.Array
    penalties: Penalties = NO_PENALTIES

    @functools.cached_property
    def hidden(self) -> jax.Array:
        """Returns `[batch, length, embed]`, the final states (the decoder's if there is one), computed only once."""
        return self.states(self.batch)

    @property
    @abc.abstractmethod
    def again(self) -> Forward:
        """Returns a second pass over the same batch, with other dropout masks; always the same one."""

    @abc.abstractmethod
    def states(self, batch: Batch) -> jax.Array:
        """Returns `[batch, length, embed]`, the final states for another batch than `self.batch`."""

    @abc.abstractmethod
    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns the vocabulary logits, float32 `[..., vocab]`, for hidden states `[..., embed]`."""

    @abc.abstractmethod
    def head(self, name: str, hidden: jax.Array) -> Any:
        """Returns the outputs of a head in `Objective.heads` for hidden states `[batch, length, embed]`.

        One array, or a tuple of arrays if the head declares several outputs (`lmjax.model.heads`).
        """

    @abc.abstractmethod
    def submodel(self, name: str) -> Forward:
        """Returns, for this batch, the `Forward` of a head that is itself a model, such as ELECTRA's generator."""


class Rows(abc.ABC):
    """The rows of one objective, by index. They must be picklable, because worker processes get a copy.

    Attributes:
        store: the documents that the rows are made from.
    """

    store: Store

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of rows of one epoch."""

    @abc.abstractmethod
    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the arrays of one row, without a batch dimension; they depend on the arguments alone."""

    @abc.abstractmethod
    def documents(self, index: int) -> Sequence[int]:
        """Returns the document of each segment of a row, in the order of segment ids; one, if the row has only one."""


class NanoRun(NamedTuple):
    """The steps, rows per batch and learning rate with which a nano model learns most in two minutes on 2 CPU cores."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A training objective; `ObjectiveConfig` is the base class of its settings.

    Attributes:
        config: the objective's own settings.
        tokenizer: gives the special ids and word boundaries.
        architecture: the family of the model that is trained.
        length: tokens in a row (in an encoder-decoder, of the encoder's row).
        target_length: in an encoder-decoder, tokens in the decoder's row.
        vocab_chunk: positions of each row whose logits are in memory at the same time; 0 for all.
        name: its name in flags, configs and metrics.
        architectures: the families that can train it, the default one first.
        instead: what other families can train in its place, for the message that refuses them; empty: nothing is said.
        usual_for: the families that train it when no objective is named.
        heads: the heads that the model needs for it in addition to the vocabulary head.
        wants_pairs: whether its documents are (source, target) pairs.
        columns: the named fields that it reads from each record; empty if its documents are pairs or running text.
        rows_for: objectives that use the rows of this one if both are trained; its rate is then that of both.
        shares_logits: whether it predicts with the vocabulary logits of the model's own hidden states.
        predicts_at: the feature with the positions of these predictions; None if it predicts at all positions.
        unmasks: whether a trained encoder writes text, by replacing masks step by step, and scores it by a bound on its
            likelihood.
        num_types: number of type ids, which tell the texts of a row apart; 0 for none.
        compares_rows: whether its loss compares rows of the whole batch, so that it is no sum over microbatches. It
            then has `representations` and `compared`, not `losses`, and a step over microbatches calls the first twice
            for each of them: before the loss is computed, and to differentiate them.
        refers: whether its loss compares the model with the one that the run starts from, the reference.
        nano: by family, the default training run of `lmjax train`.
        recipe: by dotted path, values of the config for a run that starts from pretrained parameters.
        learned: fields of its settings that follow from the training data where the config leaves them empty (`learn`);
            a workdir keeps each in a JSON file of this name.
        of_head: other fields of its settings that say what the outputs of its head mean: a run from the parameters of
            such a head takes over these and the learned ones.
    """

    config: ObjectiveConfig
    tokenizer: Tokenizer
    architecture: str
    length: int
    target_length: int
    vocab_chunk: int

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    instead: ClassVar[str] = ""
    usual_for: ClassVar[tuple[str, ...]] = ()
    heads: ClassVar[tuple[str, ...]] = ()
    wants_pairs: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = ()
    rows_for: ClassVar[tuple[type[Objective], ...]] = ()
    shares_logits: ClassVar[bool] = False
    predicts_at: ClassVar[str | None] = None
    unmasks: ClassVar[bool] = False
    num_types: ClassVar[int] = 0
    compares_rows: ClassVar[bool] = False
    refers: ClassVar[bool] = False
    nano: ClassVar[Mapping[str, NanoRun]] = {
        "encoder": NanoRun(600, 16, 4e-3),
        "decoder": NanoRun(600, 16, 4e-3),
        "encoder_decoder": NanoRun(900, 8, 3e-3),
    }

    recipe: ClassVar[Mapping[str, Any]] = {}
    learned: ClassVar[tuple[str, ...]] = ()
    of_head: ClassVar[tuple[str, ...]] = ()

    @property
    def family(self) -> Family:
        """Returns the traits of the family of the model that is trained."""
        return FAMILIES[self.architecture]

    @classmethod
    def learn(cls, config: Any, stores: Sequence[Store]) -> Any:
        """Returns its settings with the fields in `learned` filled in from the training data."""
        del stores
        return config

    @classmethod
    def continued(cls, form: Callable[[], PromptFormat]) -> dict[str, Any]:
        """Returns the fields of its settings that follow from the prompt format of the model that a run starts from.

        Args:
            form: returns the format.
        """
        del form
        return {}

    @classmethod
    def penalised_by(cls, config: Any) -> tuple[str, ...]:
        """Returns which fields of `Penalties` its losses take; a penalty that no loss of a run takes is refused."""
        del config
        # R-Drop needs to know how far apart two predictions are.
        without = () if cls.diverges() else ("r_drop",)
        return tuple(field.name for field in dataclasses.fields(Penalties) if field.name not in without)

    @classmethod
    def diverges(cls) -> bool:
        """Returns whether it says how far apart two predictions are, which R-Drop and a teacher need."""
        return cls.divergences is not Objective.divergences

    @classmethod
    def encoder(cls, config: Any, tokenizer: Tokenizer) -> Encoder | None:
        """Returns what makes tokens of its documents; None: each text is encoded as a whole."""
        del config, tokenizer
        return None

    @classmethod
    def running_text(cls, config: Any, document: Document) -> str:
        """Returns the text of a document as a tokenizer is trained on it."""
        del config
        return document.text

    @classmethod
    def known_columns(cls, config: Any) -> tuple[Column, ...]:
        """Returns its columns, with what its settings know of their values."""
        del config
        return cls.columns

    @classmethod
    def record_format(cls, config: Any) -> RecordFormat:
        """Returns how its records stand in files."""
        del config
        return PLAIN

    @classmethod
    def model_fields(cls, config: Any) -> dict[str, Any]:
        """Returns the fields of the model's config that follow from its settings, by dotted path."""
        del config
        return {}

    @classmethod
    def default_target_length(cls, config: ObjectiveConfig, length: int) -> int:
        """Returns the length of a decoder's row, so that it fills up as fast as an encoder's row of `length` tokens.

        By default both are equal, because a target is about as long as its source.
        """
        del config
        return length

    @abc.abstractmethod
    def rows(self, store: Store, seed: int) -> Rows:
        """Returns the rows that this objective makes from the documents of a store."""

    def sources(self, store: Store, seed: int) -> tuple[Rows, ...]:
        """Returns the kinds of rows that this objective mixes in equal shares; each kind covers the whole store."""
        return (self.rows(store, seed),)

    def transform(self, features: Features, rng: np.random.Generator) -> Features:
        """Returns the features of a row after this objective's corruption; unchanged by default."""
        del rng
        return features

    @abc.abstractmethod
    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns by name the float32 scalar by which each loss sum over `batch` is divided; 0 for an empty batch."""

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the loss sums over `batch` by name: the objective's own, and those of models trained with it."""
        assert self.compares_rows, f"{self.name} has no losses"
        return self.compared(self.representations(forward, batch), batch)

    def divergences(self, forward: Forward, other: Forward, batch: Batch, measure: Measure) -> dict[str, jax.Array]:
        """Returns by its name how far the predictions of two passes or models are apart, summed like its losses.

        R-Drop and a teacher add it. An objective without this method takes neither.
        """
        raise NotImplementedError

    def representations(self, forward: Forward, batch: Batch) -> Any:
        """Returns float32 arrays `[rows, ...]`, of which each row depends on this row of the batch alone."""
        raise NotImplementedError

    def compared(self, representations: Any, batch: Batch) -> dict[str, LossSum]:
        """Returns the loss sums over `batch` by name, given the representations of all of its rows."""
        raise NotImplementedError

    def prompt_format(self) -> PromptFormat:
        """Returns the tokens around a text in this objective's rows, and those that end generated text.

        Generation and scoring need it, so that the model reads rows like those it was trained on. The default for an
        encoder is one text between [CLS] and [SEP]; for other families, a text after BOS, ended by EOS.
        """
        t = self.tokenizer
        if not self.family.causal:
            return PromptFormat(before=(t.cls_id,), after=(t.sep_id,))
        return PromptFormat(before=(t.bos_id,), stop=(t.eos_id,), never=self.never())

    def sample(self, store: Store, room: int) -> Sample | None:
        """Returns an example of what a trained model does with a held-out document; None if there is none.

        By default a decoder continues a text.

        Args:
            store: the held-out documents.
            room: the most tokens in a row of the model.
        """
        if not self.family.causal:
            return None
        return continuation(beginning(store, room), self.tokenizer, sampled=self.family.continues)

    def never(self) -> tuple[int, ...]:
        """Returns the special ids that this objective never predicts, so that generation leaves them out."""
        return tuple(sorted(self.tokenizer.special_ids - {self.tokenizer.eos_id}))

    def token_targets(self, batch: Batch | Features) -> dict[str, tuple[Any, Any]]:
        """Returns the targets and weights of each sum over tokens, from which perplexity and bits per byte follow."""
        del batch
        return {}
