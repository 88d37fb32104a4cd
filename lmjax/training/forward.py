"""The forward pass of a language model, through the interface that objectives use."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.unpadding import PLACE, SOURCE
from lmjax.model.dropout import DropoutRates
from lmjax.model.heads.electra import GeneratorHead
from lmjax.model.language_model import LanguageModel
from lmjax.model.moe import AUXILIARY, RouterLoss, auxiliary_sums
from lmjax.model.unpadding import packed, restored
from lmjax.objectives.base import Batch, Forward
from lmjax.objectives.sums import NO_PENALTIES, LossSum, Penalties
from lmjax.streams import named_key, prng_key

PyTree = Any


@dataclasses.dataclass(kw_only=True)
class ModelForward(Forward):
    """A language model and its parameters. Each forward pass applies dropout and records the losses of its routers.

    Attributes:
        model: the model.
        params: its parameters.
        dropout_rates: traced rates; `DropoutRates()` means no dropout.
        dropout_key: the key of the dropout masks.
        within: the name of a head that is a language model itself, whose states and logits are returned; None: those of
            the whole model.
        passes: the losses of the routers by name, for each pass so far.
    """

    model: LanguageModel
    params: PyTree
    dropout_rates: DropoutRates
    dropout_key: jax.Array
    within: str | None = None
    passes: list[dict[str, RouterLoss]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def again(self) -> ModelForward:
        """Returns a second pass with other dropout masks; both record passes in one list."""
        return dataclasses.replace(self, dropout_key=named_key(self.dropout_key, "second pass"))

    def states(self, batch: Batch) -> jax.Array:
        """Returns the final states of a batch, `[batch, length, embed]`."""
        read = packed(batch, batch[SOURCE]) if SOURCE in batch else batch
        hidden, left = self.model.apply(
            {"params": self.params},
            method=lambda model: self._of(model).states(read, self.dropout_rates),
            rngs={"dropout": self.dropout_key},
            mutable=[AUXILIARY],
        )
        self.passes.append(auxiliary_sums(left.get(AUXILIARY, {})))
        return restored(hidden, batch[SOURCE], batch[PLACE]) if SOURCE in batch else hidden

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits `[..., vocab]` for states `[..., embed]`."""
        return self.model.apply({"params": self.params}, method=lambda model: self._of(model).logits(hidden))

    def head(self, name: str, hidden: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        """Returns the outputs of a head for states `[batch, length, embed]`."""
        return self.model.apply({"params": self.params}, name, hidden, self.batch, method=LanguageModel.head)

    def submodel(self, name: str) -> ModelForward:
        """Returns the same interface to a head that is a language model itself; both record passes in one list."""
        return dataclasses.replace(self, within=name)

    def auxiliary_losses(self) -> dict[str, LossSum]:
        """Returns the routers' losses by name, averaged over the forward passes; empty without experts."""
        passes = [sums for sums in self.passes if sums]
        if not passes:
            return {}
        means = jax.tree.map(lambda *x: sum(x) / len(x), *passes)
        zero = jnp.zeros((), jnp.float32)
        return {name: LossSum(loss, weight, None, zero) for name, (loss, weight) in means.items()}

    def _of(self, model: LanguageModel) -> LanguageModel | GeneratorHead:
        return model if self.within is None else model.part(self.within)


def forward(
    model: LanguageModel,
    params: PyTree,
    batch: Batch,
    *,
    key: jax.Array,
    dropout_rates: DropoutRates,
    penalties: Penalties,
) -> ModelForward:
    """Returns the forward pass for objectives; `key` seeds dropout and what the objectives sample."""
    return ModelForward(
        batch=batch,
        # Another key than that of dropout, so that samples are independent of the masks.
        key=named_key(key, "objective"),
        penalties=penalties,
        model=model,
        params=params,
        dropout_rates=dropout_rates,
        dropout_key=dropout_rates.key(key),
    )


def evaluation_forward(model: LanguageModel, params: PyTree, batch: Batch) -> ModelForward:
    """Returns the forward pass of an evaluation, without dropout or penalties; each batch has the same random key."""
    key = prng_key(0, "evaluation")
    return forward(model, params, batch, key=key, dropout_rates=DropoutRates(), penalties=NO_PENALTIES)
