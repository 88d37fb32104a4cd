"""Kahneman-Tversky optimisation: answers that are rated alone, each good or bad, measured from a reference model.

Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1. With the log-ratio r of an answer to the reference, and an
estimate z of the divergence of the model from the reference, the loss of a good answer is 1 - sigmoid(beta (r - z)) and
that of a bad one 1 - sigmoid(beta (z - r)), each with a weight.

z is the mean log-ratio of answers to other prompts than their own, over the whole batch and at least 0, without a
gradient. As in TRL, the answer that is put behind a prompt for that is always the same, so that its log-probability
under the reference is computed once; here it is that of another record of the whole data, drawn at random.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.data.columns import Column
from lmjax.data.preferences import COMPLETION, LABEL, PROMPT
from lmjax.data.store import Store
from lmjax.errors import DataError
from lmjax.objectives.base import Batch, Features, Forward, Rows
from lmjax.objectives.preference import Preference, PreferenceConfig
from lmjax.objectives.sums import LossSum, Mean
from lmjax.streams import random_stream


class KTOConfig(PreferenceConfig):
    """Settings of Kahneman-Tversky optimisation."""

    beta: float = Field(0.1, gt=0, description="how strongly the reference holds the model; lower: it moves further")
    desirable_weight: float = Field(1.0, gt=0, description="factor on the loss of good answers")
    undesirable_weight: float = Field(
        1.0, gt=0, description="factor on the loss of bad ones; set both so that weight times number is about equal"
    )


@functools.lru_cache(maxsize=8)
def partners(count: int) -> np.ndarray:
    """Returns int64 `[count]`: for each record another one, whose answer is put behind its prompt."""
    order = random_stream(0, "mismatched answers", count).permutation(count)
    found = np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found


@dataclasses.dataclass(frozen=True)
class KTO(Preference):
    """Learns from answers that are rated alone, with a reference."""

    config: KTOConfig
    name: ClassVar[str] = "kto"
    refers: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True
    paired: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (Column(PROMPT), Column(COMPLETION), Column(LABEL, "integer"))
    recipe: ClassVar[Mapping[str, Any]] = {**Preference.recipe, "batch_size": 64}

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns one row for each record; raises DataError if there is only one."""
        if store.num_documents < 2:
            raise DataError(
                f"--data: one record for {self.name}, which also puts the answers of other records behind a prompt; "
                "give at least two"
            )
        return super().rows(store, seed)

    def answers(self, store: Store, index: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns the ids of a record's prompt, and those of its own answer and of the answer of another record."""
        other = int(partners(store.num_documents)[index])
        return store.texts(index, PROMPT)[0], [self.ended(store.texts(i, COMPLETION)[0]) for i in (index, other)]

    def record(self, store: Store, index: int) -> Features:
        """Returns the features of `Preference.record`, and `labels`: 1 for a good answer, 0 for a bad one."""
        return super().record(store, index) | {"labels": np.int32(store.value(index, LABEL))}

    def representations(self, forward: Forward, batch: Batch) -> jax.Array:
        """Returns the log-ratios of the answer and of the mismatched one of each row, `[rows, 2]`."""
        return self.log_ratios(forward, batch)[0]

    def compared(self, representations: jax.Array, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the answers; an answer is right if its log-ratio is on its side of z."""
        c, weights, good = self.config, batch["row_weights"], batch["labels"] > 0
        ratios, others = representations[:, 0], representations[:, 1]
        count = jnp.sum(weights)
        z = jax.lax.stop_gradient(jnp.maximum(jnp.sum(weights * others) / jnp.maximum(count, 1.0), 0.0))
        over = jnp.where(good, ratios - z, z - ratios)
        factors = jnp.where(good, c.desirable_weight, c.undesirable_weight)
        rewards = c.beta * ratios
        means = {
            "kl": Mean(z * count, count),
            "desirable_reward": Mean(jnp.sum(weights * good * rewards), jnp.sum(weights * good)),
            "undesirable_reward": Mean(jnp.sum(weights * ~good * rewards), jnp.sum(weights * ~good)),
        }
        loss, right = jnp.sum(weights * factors * jax.nn.sigmoid(-c.beta * over)), jnp.sum(weights * (over > 0))
        return {self.name: LossSum(loss, count, right, jnp.zeros((), jnp.float32), means)}
