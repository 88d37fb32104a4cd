"""The parts of a page that explains what a model does with many texts: one function for each method.

To add one: a function from a `Study` to a `Part`, and a line in `STUDIES`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from lmjax.analysis.attention import token_texts
from lmjax.analysis.features import Features, read_stream, top_contexts, train_features
from lmjax.analysis.inside import cut_rows
from lmjax.analysis.page import Part, coloured_text, curves, grid, ranges, table
from lmjax.analysis.probes import layer_vectors, probe, similarities
from lmjax.analysis.restored import downstream
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel

# Features that a page shows.
_SHOWN = 40
# Texts whose loss is measured with what features restore.
_TESTED = 40


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What is looked at over many texts.

    Attributes:
        loaded: the model.
        texts: of which the activations are read; empty: none were given.
        labels: a label for each text of a probe; empty: none were given.
        labelled: the texts of a probe.
        groups: of the control task, the group of each of these; None: each text is its own.
        tokens: which tokens of a text its vector is the mean of.
        seeds: splits of a probe.
        other: another model, whose layers are compared; None: those of the same model are.
        layer: whose features are found.
        features: how many.
        active: features of a token.
        steps: of training them.
        seed: of random draws.
    """

    loaded: LoadedModel
    texts: Sequence[str] = ()
    labels: Sequence[str] = ()
    labelled: Sequence[str] = ()
    groups: Sequence[str] | None = None
    tokens: Literal["mean", "first", "last"] = "mean"
    seeds: int = 5
    other: LoadedModel | None = None
    layer: int = 0
    features: int = 512
    active: int = 8
    steps: int = 2000
    seed: int = 0

    @functools.cached_property
    def some_texts(self) -> Sequence[str]:
        """Returns the texts; raises FlagError if there are none."""
        if not self.texts:
            raise FlagError("--method: cka and features need --data=FILE, the texts whose layers are looked at")
        return self.texts


def probes(study: Study) -> Part:
    """Returns how well a linear probe of each layer predicts labels, beside the control task."""
    if not study.labels:
        raise FlagError("--method=probe needs --labels=FILE, with a text and a label in each record")
    vectors = layer_vectors(study.loaded, cut_rows(study.loaded, study.labelled), study.tokens)
    found = probe(vectors, study.labels, study.groups, study.seeds)
    common = max(map(list(study.labels).count, set(study.labels))) / len(study.labels)
    names = [_layer(each.layer) for each in found]
    body = ranges({"labels": [x.accuracy[:3] for x in found], "control": [x.control[:3] for x in found]}, names)
    rows = [("layer", "accuracy (95 %)", "control (95 %)", "selectivity")]
    for name, each in zip(names, found, strict=True):
        cells = (f"{x.value:.3f} ({x.low:.3f} to {x.high:.3f})" for x in (each.accuracy, each.control))
        rows.append((name, *cells, f"{each.selectivity:+.3f}"))
    best = max(range(len(found)), key=lambda i: found[i].accuracy.value)
    note = (
        f"The accuracy of logistic regression from the residual stream after each layer ({_TOKENS[study.tokens]}) to "
        f"the label, on a quarter of {len(study.labels):,} texts, over {study.seeds} splits. Always the most common "
        f"label: {common:.3f}. The control task has random labels for each "
        f"{'text' if study.groups is None else 'group'} (Hewitt and Liang 2019); selectivity is the difference."
    )
    chosen = found[best].accuracy
    summary = (
        f"most common label: {common:.3f}",
        f"best layer: {names[best]}, accuracy {chosen.value:.3f} ({chosen.low:.3f} to {chosen.high:.3f})",
        f"selectivity there: {found[best].selectivity:+.3f}",
    )
    return Part("probes", note, body + table(rows), summary)


def similarity(study: Study) -> Part:
    """Returns the similarity of the layers of a model with each other, or with those of another model."""
    texts = study.some_texts
    own = layer_vectors(study.loaded, cut_rows(study.loaded, texts), study.tokens)
    others = own if study.other is None else layer_vectors(study.other, cut_rows(study.other, texts), study.tokens)
    found = similarities(own, others)
    rows, columns = ([_layer(name) for name in vectors] for vectors in (own, others))
    body = grid(found, rows, columns, [[f"{x:.2f}" for x in row] for row in found])
    with_whom = "each other" if study.other is None else "those of the other model (columns)"
    note = (
        f"Linear CKA (Kornblith et al. 2019) of the layers with {with_whom}, from 0 to 1, by the vectors of "
        f"{len(texts):,} texts ({_TOKENS[study.tokens]}). Widths may differ; with fewer texts than numbers in a vector "
        "it is too high."
    )
    if study.other is None:
        near = [f"{x:.2f}" for x in np.diagonal(found, 1)]
        summary = (f"each layer with the next: {', '.join(near)}",) if near else ()
    else:
        best = found.argmax(axis=1)
        summary = tuple(f"{rows[i]}: {columns[j]} {found[i, j]:.2f}" for i, j in enumerate(best))
    return Part("similarity of layers", note, body, summary)


def dictionary(study: Study) -> Part:
    """Returns the features of a sparse autoencoder of a layer, each with the places where it is largest."""
    stream = read_stream(study.loaded, study.some_texts, study.layer)
    found = train_features(
        stream.vectors,
        study.features,
        study.active,
        groups=stream.texts,
        steps=study.steps,
        seed=study.seed,
    )
    numbers, sizes = found.encode(stream.vectors)
    shares, strengths = (np.zeros(study.features) for _ in range(2))
    np.add.at(shares, numbers[sizes > 0], 1 / len(numbers))
    np.add.at(strengths, numbers, sizes)
    name, losses = "variance that is not restored, while it trains", _thinned(found.losses)
    body = curves({name: losses}, ("0", f"{study.steps:,} steps"))
    order = [i for i in np.argsort(-strengths, kind="stable") if shares[i] > 0][:_SHOWN]
    for i in order:
        body += f"<p><b>feature {i}</b> <span class='dim'>at {shares[i]:.2%} of the tokens</span></p>"
        contexts = top_contexts((numbers, sizes), stream, int(i))
        most = max(float(each.sizes.max()) for each in contexts)
        for each in contexts:
            body += coloured_text(token_texts(study.loaded, each.ids), each.sizes, most=most)
    note = (
        f"A top-k sparse autoencoder (Gao et al. 2024) of the residual stream after layer {study.layer}: "
        f"{study.features:,} features, {study.active} for each of {len(numbers):,} tokens, {study.steps:,} steps. "
        f"Shown: the {len(order)} features that write most, with the places where each is largest (bluer: larger)."
    )
    quality = _quality(study, found)
    return Part("features", note, table(quality) + body, tuple(f"{a}: {b}" for a, b in quality[1:]))


def _quality(study: Study, found: Features) -> list[tuple[str, str]]:
    """Returns the rows of a table that says how well a sparse autoencoder restores its vectors."""
    count, family = len(found.weights.offset), study.loaded.config.family
    rows = [
        ("of texts that were not trained on", "value"),
        ("variance that is not restored", f"{found.error:.1%}"),
        ("dead features, of all texts", f"{found.dead:,} of {count:,}"),
    ]
    if family.continues and study.loaded.model.has_vocabulary:
        texts = [study.some_texts[i] for i in found.tested[:_TESTED]]
        loss = downstream(study.loaded, texts, study.layer, found)
        won = "none is lost with the mean" if math.isnan(loss.recovered) else f"{loss.recovered:.1%}"
        rows += [
            ("nats per token of the model", f"{loss.whole:.3f}"),
            ("with what the features restore", f"{loss.restored:.3f}"),
            ("with the mean of all tokens", f"{loss.centre:.3f}"),
            ("loss that the features win back", won),
        ]
    return rows


STUDIES: Mapping[str, Callable[[Study], Part]] = {"probe": probes, "cka": similarity, "features": dictionary}

_TOKENS = {"mean": "mean of the tokens", "first": "first token", "last": "last token"}


def _layer(name: str) -> str:
    """Returns the name of an activation for a reader: "layer 3" for "layer_3"."""
    return name.replace("/", " ").replace("_", " ")


def _thinned(losses: np.ndarray, points: int = 200) -> np.ndarray:
    """Returns the means of at most so many parts of a curve."""
    return np.array([part.mean() for part in np.array_split(losses, min(points, len(losses)))])
