"""Where attention leads over all layers: rollout and flow (Abnar and Zuidema 2020, arXiv:2005.00928), and induction.

Each layer adds what it reads to what it has, so a row of its matrix is half the token itself and half the mean of its
heads (section 3). Rollout multiplies these matrices (section 3.1); flow takes them as capacities of a network, and
gives the most that can flow from each input token to each output (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmjax.analysis.inside import record
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.streams import random_stream

# Capacities are whole numbers: shares in millionths.
_WHOLE = 1_000_000


def mixing(attentions: Sequence[np.ndarray]) -> np.ndarray:
    """Returns float64 `[layers, tokens, tokens]`, rows that sum to 1: half the token itself, half what it attends to.

    Args:
        attentions: `[heads, tokens, tokens]` of each layer, without padding.
    """
    mean = np.stack([np.asarray(x, np.float64).mean(axis=0) for x in attentions])
    mixed = (mean + np.eye(mean.shape[1])[None]) / 2
    return mixed / mixed.sum(axis=-1, keepdims=True)


def rollout(attentions: Sequence[np.ndarray]) -> np.ndarray:
    """Returns float64 `[layers, tokens, inputs]`: the share of each input in each token after each layer."""
    found = [np.eye(attentions[0].shape[-1])]
    for layer in mixing(attentions):
        found.append(layer @ found[-1])
    return np.stack(found[1:])


def flow(attentions: Sequence[np.ndarray], tokens: Sequence[int] | None = None) -> np.ndarray:
    """Returns float64 `[tokens, inputs]`: the most that flows from each input to each token of the last layer.

    Args:
        attentions: as for `mixing`.
        tokens: of the last layer; None: all, which takes the square of their number of computations.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    layers = mixing(attentions)
    count, size = layers.shape[1], layers.shape[1] * (len(layers) + 1)
    capacities = np.zeros((size, size), np.int32)
    for i, layer in enumerate(layers):
        # From token k below the layer to token q above it.
        capacities[i * count : (i + 1) * count, (i + 1) * count : (i + 2) * count] = np.rint(layer.T * _WHOLE)
    network = csr_array(capacities)
    above = len(layers) * count
    chosen = range(count) if tokens is None else tokens
    found = [[maximum_flow(network, k, above + q).flow_value / _WHOLE for k in range(count)] for q in chosen]
    return np.asarray(found)


def induction(loaded: LoadedModel, length: int = 16, rows: int = 32, seed: int = 0) -> np.ndarray:
    """Returns float64 `[layers, heads]`: how much a head attends to what followed the same token before.

    Random tokens are read twice in a row. An induction head attends from a token of the second part to the token after
    its first occurrence (Olsson et al. 2022, arXiv:2209.11895, section "Argument 4"). 1 is the most. The rows repeat
    different numbers of tokens, so that a head that attends to a fixed distance is none.

    Args:
        loaded: a decoder.
        length: the most tokens that are repeated, the least being half of it; twice as many must fit into a row.
        rows: rows of random tokens.
        seed: of the tokens.

    Raises:
        FlagError: the model is no decoder, or its rows are shorter.
    """
    if not loaded.config.family.continues:
        raise FlagError(f"induction heads are those of a decoder, and this is a {loaded.config.family.label}")
    rng, before = random_stream(seed, "induction"), list(loaded.prompts.before)
    counts = np.linspace(max(2, length // 2), length, rows).astype(int)
    drawn = [rng.choice(loaded.tokenizer.text_ids, count).tolist() for count in counts]
    found = record(loaded, [[*before, *row, *row] for row in drawn], ["layer_*/attention/weights"])
    scores = []
    for weights in found.values():
        each = []
        for row, count in zip(weights, counts, strict=True):
            queries = len(before) + count + np.arange(count - 1)
            each.append(row[:, queries, queries - count + 1].mean(axis=-1))
        scores.append(np.mean(each, axis=0))
    return np.stack(scores).astype(np.float64)
