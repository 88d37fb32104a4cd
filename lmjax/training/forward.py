"""A language model as the objectives see it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.model.groups import DropoutRates
from lmjax.model.heads.electra import GeneratorHead
from lmjax.model.language_model import LanguageModel
from lmjax.model.moe import AUXILIARY, RouterLoss, auxiliary_sums
from lmjax.objectives.base import Batch, Forward, LossSum, Penalties
from lmjax.streams import named_key

PyTree = Any


@dataclasses.dataclass(kw_only=True)
class ModelForward(Forward):
    """A language model and its parameters; each pass may drop activations, and leaves the losses of its routers.

    Attributes:
        model: the model.
        params: its parameters.
        dropout_rates: traced; none given: no dropout.
        dropout_key: for the masks of dropout.
        within: name of the head whose states and logits are meant; None: the model's own.
        passes: the losses of the routers in every pass so far, by name.
    """

    model: LanguageModel
    params: PyTree
    dropout_rates: DropoutRates
    dropout_key: jax.Array
    within: str | None = None
    passes: list[dict[str, RouterLoss]] = dataclasses.field(default_factory=list)

    def states(self, batch: Batch) -> jax.Array:
        """Returns `[batch, length, embed]`, the final states for a batch."""
        hidden, left = self.model.apply(
            {"params": self.params},
            method=lambda model: self._of(model).states(batch, self.dropout_rates),
            rngs={"dropout": self.dropout_key},
            mutable=[AUXILIARY],
        )
        self.passes.append(auxiliary_sums(left.get(AUXILIARY, {})))
        return hidden

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 `[..., vocab]` for `[..., embed]`."""
        return self.model.apply({"params": self.params}, method=lambda model: self._of(model).logits(hidden))

    def head(self, name: str, hidden: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        """Returns what a head gives for `[batch, length, embed]`."""
        return self.model.apply({"params": self.params}, name, hidden, self.batch, method=LanguageModel.head)

    def submodel(self, name: str) -> ModelForward:
        """Returns the same of a head that is a language model itself; its passes count as the model's."""
        return dataclasses.replace(self, within=name)

    def auxiliary_losses(self) -> dict[str, LossSum]:
        """Returns the sums of the routers' losses by name, a mean over the forward passes; none without experts."""
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
    """Returns what the objectives read; `key` is for dropout and for what objectives draw."""
    return ModelForward(
        batch=batch,
        # Of its own, so that what is drawn repeats no mask of dropout.
        key=named_key(key, "objective"),
        penalties=penalties,
        model=model,
        params=params,
        dropout_rates=dropout_rates,
        dropout_key=key,
    )
