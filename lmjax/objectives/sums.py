"""What the losses of a batch are: sums with the sums of their weights, means shown beside them, and penalties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct


class Mean(NamedTuple):
    """A metric that is a mean, as float32 scalars: the weighted sum, and the sum of the weights."""

    total: jax.Array
    weight: jax.Array


class LossSum(struct.PyTreeNode):
    """A loss as a sum and the sum of its weights, so that microbatches of different sizes can be added.

    Attributes:
        loss: float32 scalar, the weighted sum of losses in nats: the cross entropy without penalties.
        weight: float32 scalar, the sum of the weights (for 0/1 weights, the number of predictions).
        correct: float32 scalar, the weighted number of predictions whose most likely class (the first, if several are
            equally likely) is the target; None for a loss without predictions.
        penalty: float32 scalar, what z-loss, label smoothing and R-Drop add to `loss` in training.
        means: by name, what is shown beside the loss in training and evaluation.
    """

    loss: jax.Array
    weight: jax.Array
    correct: jax.Array | None
    penalty: jax.Array
    means: Mapping[str, Mean] = struct.field(default_factory=dict)

    def __add__(self, other: LossSum) -> LossSum:
        """Returns the sums over both microbatches."""
        return jax.tree.map(jnp.add, self, other)


class Penalties(struct.PyTreeNode):
    """What training adds to the cross entropy: float32 scalars, None where nothing is added.

    They are traced arrays, so a new value does not compile the step again.

    Attributes:
        z_loss: factor on the squared logarithm of the softmax's denominator (Chowdhery et al. 2022, arXiv:2204.02311,
            section 5), which keeps the logits from drifting away from zero.
        label_smoothing: share of the target's probability that is spread evenly over all ids of the tokenizer (Szegedy
            et al. 2016, arXiv:1512.00567, section 7; Vaswani et al. 2017, arXiv:1706.03762, section 5.4).
        r_drop: weight of the divergence between two passes with different dropout (`lmjax.objectives.r_drop`).
    """

    z_loss: jax.Array | None = None
    label_smoothing: jax.Array | None = None
    r_drop: jax.Array | None = None


NO_PENALTIES = Penalties()
