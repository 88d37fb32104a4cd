"""Layers of a student matched with those of its teacher: hidden states and attention probabilities.

As TinyBERT (Jiao et al. 2020, arXiv:1909.10351, section 3), layer m of a student of M layers matches layer m * N / M of
a teacher of N layers. Hidden states differ by their mean squared error (equation 8), attention probabilities by the
divergence of MiniLM (Wang et al. 2020, arXiv:2002.10957, equation 5), which needs as many heads, but not the width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.config import ModelConfig
from lmjax.model.parameter_paths import UNROLLED
from lmjax.objectives.base import Batch
from lmjax.objectives.sums import LossSum

HIDDEN, ATTENTION = "teacher_hidden", "teacher_attention"
# Below it, a probability of the student counts as this one, so that the divergence is finite.
_LEAST = 1e-12


class Pair(NamedTuple):
    """A layer of the student and the one of the teacher that it matches.

    Attributes:
        prefix: with which the fields of their side of the model begin in a batch.
        student: the name of the student's layer, as in `lmjax.model.intercept`.
        teacher: that of the teacher's.
    """

    prefix: str
    student: str
    teacher: str


def pairs(student: ModelConfig, teacher: ModelConfig, layers: Sequence[int]) -> list[Pair]:
    """Returns the pairs of layers of all sides.

    Args:
        student: the config of the student.
        teacher: that of the teacher.
        layers: the teacher's layer for each of the student's, from 0; empty: spread evenly, the last with the last.
    """
    found = []
    for side in student.family.sides:
        ours, theirs = (config.side_layers(side.causal) for config in (student, teacher))
        chosen = layers or [max((i + 1) * theirs // ours - 1, 0) for i in range(ours)]
        place = side.prefix.replace("_", "/")
        found += [Pair(side.prefix, f"{place}{UNROLLED}{i}", f"{place}{UNROLLED}{j}") for i, j in enumerate(chosen)]
    return found


def attention(layer: str) -> str:
    """Returns the name of a layer's attention probabilities."""
    return f"{layer}/attention/weights"


def tokens(found: Sequence[Pair], batch: Batch) -> jax.Array:
    """Returns the number of tokens of a batch, those of both sides together, by which the sums are divided."""
    return sum(jnp.sum(batch[f"{prefix}segment_ids"] > 0, dtype=jnp.float32) for prefix in {p.prefix for p in found})


def matched(
    found: Sequence[Pair], ours: Mapping[str, jax.Array], theirs: Mapping[str, jax.Array], batch: Batch
) -> dict[str, LossSum]:
    """Returns the sums over tokens of the mean over a side's layers, by name, of what was recorded.

    Args:
        found: the pairs of layers.
        ours: the student's recorded activations by name.
        theirs: the teacher's.
        batch: what both have read.
    """
    sums, zero = {}, jnp.zeros((), jnp.float32)
    count = len(found) // len({pair.prefix for pair in found})
    for name, key, apart in ((HIDDEN, str, _squared), (ATTENTION, attention, _divergence)):
        if key(found[0].student) in ours:
            total = zero
            for prefix, student, teacher in found:
                present = (batch[f"{prefix}segment_ids"] > 0).astype(jnp.float32)
                total += jnp.sum(present * apart(ours[key(student)], theirs[key(teacher)])) / count
            sums[name] = LossSum(total, tokens(found, batch), None, zero)
    return sums


def _squared(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns float32 `[batch, length]`, the mean squared error of hidden states `[batch, length, embed]`."""
    return jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)), axis=-1)


def _divergence(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns `[batch, queries]`, KL(teacher || student), the mean over heads, of `[batch, heads, queries, keys]`."""
    logs = jnp.log(jnp.maximum(student, _LEAST))
    return jnp.mean(jnp.sum(jax.scipy.special.xlogy(teacher, teacher) - teacher * logs, axis=-1), axis=1)
