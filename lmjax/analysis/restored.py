"""What a language model loses if the residual stream of a layer is replaced by what features restore of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.analysis.features import Features
from lmjax.analysis.inside import cut_rows, fields_of, patch, role_tokens
from lmjax.inference.loaded import LoadedModel

# Texts that are computed together: their logits are large.
_BATCH = 4


class Downstream(NamedTuple):
    """The loss of a decoder, in nats per token.

    Attributes:
        whole: of the model as it is.
        restored: with what the features restore in place of the residual stream after the layer.
        centre: with its mean in place of it.
    """

    whole: float
    restored: float
    centre: float

    @property
    def recovered(self) -> float:
        """Returns the share of the loss between mean and model that the features win back (Gao et al. 2024, 4.1).

        It is NaN if the mean costs nothing, as in a layer that does nothing for these texts.
        """
        lost = self.centre - self.whole
        return (self.centre - self.restored) / lost if lost > 0 else math.nan


def downstream(loaded: LoadedModel, texts: Sequence[str], layer: int, found: Features) -> Downstream:
    """Returns the loss of a decoder on texts, with and without the features; special tokens keep their vectors.

    Args:
        loaded: a decoder that predicts tokens.
        texts: that the features were not trained on.
        layer: of the features.
        found: the features.
    """
    special = list(role_tokens(loaded))
    centre = found.scale * np.asarray(found.weights.centre)
    rows, name = cut_rows(loaded, texts), f"layer_{layer}"
    losses, tokens = np.zeros(3), 0
    for start in range(0, len(rows), _BATCH):
        fields, count = fields_of(loaded, rows[start : start + _BATCH])
        fields = {key: x[:count] for key, x in fields.items()}
        given = patch(loaded, fields, {}, [name, "logits"])
        plain = (fields["segment_ids"] > 0) & ~np.isin(fields["tokens"], special)
        restored, mean = given[name].copy(), given[name].copy()
        restored[plain] = found.decode(*found.encode(given[name][plain]))
        mean[plain] = centre
        logits = [given["logits"], *(patch(loaded, fields, {name: x}, ["logits"])["logits"] for x in (restored, mean))]
        targets, real = fields["tokens"][:, 1:], fields["segment_ids"][:, 1:] > 0
        losses += [_nats(x[:, :-1], targets)[real].sum() for x in logits]
        tokens += int(real.sum())
    return Downstream(*(losses / tokens).tolist()) if tokens else Downstream(*[math.nan] * 3)


def _nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns float64 `[rows, length]`, the negative log-likelihoods of targets."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return np.log(np.exp(x).sum(axis=-1)) - np.take_along_axis(x, targets[..., None], axis=-1)[..., 0]
