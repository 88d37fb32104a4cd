"""Which words a classifier's decision rests on: what it says when each word in turn is left out.

Unlike attention weights, this asks the model itself (Li et al. 2016, arXiv:1612.08220, section 2). Of words that say
the same, each changes little when it is left out, because the others remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmjax.analysis.figures import BLUE, RED, new_axes, plain
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.predict import predict
from lmjax.objectives.classification import Classification
from lmjax.objectives.text_task import TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The least and the most probability, so that log-odds are finite.
_SURE = 1e-6


class Occlusion(NamedTuple):
    """What the words of a text change.

    Attributes:
        label: the label that is explained.
        probability: its probability for the whole text.
        words: of the text.
        changes: by how much the label's log-odds fall when each word is left out, in nats; negative: they rise.
    """

    label: str
    probability: float
    words: tuple[str, ...]
    changes: tuple[float, ...]


def occlusion(loaded: LoadedModel, text: str, label: str | None = None) -> Occlusion:
    """Returns how much each word of a text changes the log-odds of a label.

    Args:
        loaded: a classifier of single texts.
        text: with at least two words.
        label: the label to explain; None: the likeliest.

    Raises:
        FlagError: the model is no classifier, or has no such label, or the text has fewer than two words.
    """
    if not loaded.has_task or loaded.task.name != Classification.name:
        raise FlagError(f"an occlusion needs a classifier; train one with --objective={Classification.name}")
    words = text.split()
    if len(words) < 2:
        raise FlagError(f"text={text!r}: has {len(words)} word(s); give at least two, of which one can be left out")
    texts = [" ".join(words), *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    documents = as_documents([{TEXT: each} for each in texts], loaded.task, gold=False)
    scores = [each["scores"] for each in predict(loaded, encoded(loaded, documents, gold=False))]
    label = max(scores[0], key=scores[0].get) if label is None else label
    if label not in scores[0]:
        raise FlagError(f"label={label!r}: the model has no such label; it has {', '.join(scores[0])}")
    shares = np.clip([each[label] for each in scores], _SURE, 1 - _SURE)
    odds = np.log(shares) - np.log1p(-shares)
    return Occlusion(label, float(scores[0][label]), tuple(words), tuple((odds[0] - odds[1:]).tolist()))


def occlusion_bars(found: Sequence[Occlusion] | Occlusion) -> Figure:
    """Returns a figure of one or several occlusions: blue words speak for the label, red ones against it."""
    several = [found] if isinstance(found, Occlusion) else list(found)
    figure, axes = new_axes(6.5, 0.6 + sum(0.7 + 0.24 * len(each.words) for each in several))
    place, places, names = 0, [], []
    for each in several:
        axes.text(0, place, f" {plain([each.label])[0]}: {each.probability:.2f}", va="center", weight="bold")
        place += 1
        rows = range(place, place + len(each.words))
        axes.barh(rows, each.changes, color=[BLUE if x > 0 else RED for x in each.changes], height=0.75)
        places, names, place = [*places, *rows], [*names, *plain(each.words)], place + len(each.words) + 1
    axes.set_yticks(places, names)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set(ylim=(place - 1.4, -0.7), xlabel="log-odds of the label that the word adds (nats)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure
