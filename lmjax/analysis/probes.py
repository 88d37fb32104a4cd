"""What layers know: linear probes with a control task, and the similarity of layers and of models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lmjax.analysis.inside import record
from lmjax.errors import FlagError
from lmjax.evaluation.intervals import required
from lmjax.evaluation.seeds import Interval, mean_interval
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text
from lmjax.streams import random_stream

# The share of the texts that a probe is tested on.
_TEST = 0.25


class Probe(NamedTuple):
    """The accuracy of linear probes of a layer on texts that they were not trained on.

    Attributes:
        layer: its name.
        accuracy: the mean over seeds, with its 95 % interval.
        control: the same on labels that were drawn at random for each group of texts.
    """

    layer: str
    accuracy: Interval
    control: Interval

    @property
    def selectivity(self) -> float:
        """Returns how much more accurate the probe is than on random labels: what is not its own memory."""
        return self.accuracy.value - self.control.value


def layer_vectors(
    loaded: LoadedModel,
    texts: Sequence[Text],
    tokens: Literal["mean", "first", "last"] = "mean",
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Returns by name of the layer the residual stream of each text, float32 `[texts, embed]`.

    Args:
        loaded: the model; of an encoder-decoder, its encoder is read.
        texts: the texts.
        tokens: the mean of the tokens of a text, or one of them.
        batch_size: texts that are computed together.

    Raises:
        FlagError: the model cannot read a text.
    """
    side = "encoder_" if loaded.config.family.paired else ""
    pattern, found = f"{side.replace('_', '/')}layer_*", {}
    for start in range(0, len(texts), batch_size):
        part = list(texts[start : start + batch_size])
        real = loaded.rows(part)[f"{side}segment_ids"][: len(part)] > 0
        if tokens == "first":
            real = real & (np.arange(real.shape[1]) == 0)
        if tokens == "last":
            real = real & (np.arange(real.shape[1]) == real.sum(axis=1, keepdims=True) - 1)
        shares = real / real.sum(axis=1, keepdims=True)
        for name, x in record(loaded, part, [pattern]).items():
            found.setdefault(name, []).append(np.einsum("rl,rle->re", shares, x))
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in found.items()}


def probe(
    vectors: dict[str, np.ndarray],
    labels: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    seeds: int = 5,
) -> list[Probe]:
    """Returns a probe of each layer: logistic regression by scikit-learn, on 3/4 of the texts.

    The control task has the same number of labels, drawn at random for each group, so a probe can learn it only by
    heart (Hewitt and Liang 2019, arXiv:1909.03368, section 2).

    Args:
        vectors: as of `layer_vectors`.
        labels: of the texts.
        groups: texts of one group have one random label, such as their word; None: each text is its own group, so the
            control is at chance.
        seeds: numbers of splits, each with a control task of its own.

    Raises:
        FlagError: there are too few texts of a label, or the numbers of texts differ.
    """
    linear, pipeline, scaling = (
        required(f"sklearn.{name}", "explain") for name in ("linear_model", "pipeline", "preprocessing")
    )
    kinds, gold = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
    _, group = np.unique(np.array([str(g) for g in (groups or range(len(labels)))]), return_inverse=True)
    count = len(gold)
    if len(kinds) < 2 or np.bincount(gold).min() < 4:
        raise FlagError("a probe needs at least two labels, and four texts of each")
    if {len(x) for x in vectors.values()} != {count} or len(group) != count:
        raise FlagError(f"there are {count} labels; give a vector and a group for each")
    splits = []
    for seed in range(seeds):
        rng = random_stream(seed, "probe")
        order = rng.permutation(count)
        splits.append(
            (order[int(_TEST * count) :], order[: int(_TEST * count)], rng.integers(len(kinds), size=count)[group])
        )

    def accuracy(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
        if len(set(y[train])) < 2:
            return float(np.mean(y[test] == y[train][0]))
        model = pipeline.make_pipeline(scaling.StandardScaler(), linear.LogisticRegression(max_iter=1000))
        return float(model.fit(x[train], y[train]).score(x[test], y[test]))

    found = []
    for name, x in vectors.items():
        own = [accuracy(x, gold, train, test) for train, test, _ in splits]
        control = [accuracy(x, random, train, test) for train, test, random in splits]
        found.append(Probe(name, mean_interval(own), mean_interval(control)))
    return found


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the linear CKA of two layers, from 0 to 1 (Kornblith et al. 2019, arXiv:1905.00414, section 3).

    Args:
        x: the vectors of some texts, `[texts, width]`.
        y: vectors of the same texts of another layer or model; its width may differ.

    Raises:
        FlagError: the numbers of texts differ.
    """
    if len(x) != len(y):
        raise FlagError(f"{len(x)} and {len(y)} texts; give the vectors of the same texts")
    x, y = (np.asarray(z, np.float64) - np.mean(z, axis=0, dtype=np.float64) for z in (x, y))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.square(np.linalg.norm(y.T @ x)) / norms) if norms else 0.0


def similarities(vectors: dict[str, np.ndarray], others: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Returns float64 `[layers, layers]`, the CKA of each layer with each of another model; None: of the same."""
    others = vectors if others is None else others
    return np.array([[cka(x, y) for y in others.values()] for x in vectors.values()])
