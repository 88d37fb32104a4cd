"""Figures of the distribution that the next token is drawn from, and of how likely generated texts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.analysis.attention import token_texts
from lmjax.analysis.figures import BLUE, GREY, RED, new_axes, new_figure, plain
from lmjax.errors import FlagError
from lmjax.inference.generate.sampling import FilterValues, SamplingConfig, probabilities
from lmjax.inference.generate.text import Generation
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.score.score import Item, score
from lmjax.inference.texts import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def next_token_distributions(
    loaded: LoadedModel, prompt: Text, samplings: Sequence[SamplingConfig]
) -> list[np.ndarray]:
    """Returns float32 `[vocab]` for each setting: the distribution that the token after a prompt is drawn from.

    Args:
        loaded: a model that predicts tokens; an encoder-decoder reads the prompt and predicts its first token.
        prompt: what the model reads.
        samplings: settings of sampling; a temperature of 0 gives the likeliest token probability 1.

    Raises:
        FlagError: the model is an encoder or predicts no tokens, or it cannot read the prompt.
    """
    loaded.check_vocabulary()
    if not loaded.config.family.causal:
        raise FlagError(f"a next token needs a decoder, and this is a {loaded.config.family.label}")
    found = loaded([prompt])
    logits = found.logits[0, found.mask[0].nonzero()[0][-1]][None]
    return [np.asarray(probabilities(logits, FilterValues.of(each)))[0] for each in samplings]


def next_token(loaded: LoadedModel, prompt: Text, samplings: Mapping[str, SamplingConfig], count: int = 12) -> Figure:
    """Returns a figure of the probabilities of the next token after a prompt, a panel for each setting of sampling.

    All panels have the same tokens: those that the model finds likeliest. What a filter drops has no bar, and grey
    bars are the model's own probabilities (a temperature of 1 without filters).

    Args:
        loaded: as for `next_token_distributions`, with its errors.
        prompt: what the model reads.
        samplings: settings of sampling by the title of their panel.
        count: tokens to show.
    """
    own, *changed = next_token_distributions(loaded, prompt, [SamplingConfig(temperature=1.0), *samplings.values()])
    ids = np.argsort(-own, kind="stable")[:count]
    names = plain(token_texts(loaded, ids))
    figure = new_figure(1.2 + 1.9 * len(samplings), 1.1 + 0.22 * len(ids))
    panels = figure.subplots(1, len(samplings), sharey=True, squeeze=False)[0]
    for axes, title, shares in zip(panels, samplings, changed, strict=True):
        places = np.arange(len(ids))
        axes.barh(places, own[ids], color=GREY, height=0.8)
        axes.barh(places, shares[ids], color=BLUE, height=0.45)
        axes.set_title(f"{title}\n{np.count_nonzero(shares):,} possible", fontsize=9)
        axes.set_xlim(0, min(1.0, 1.08 * max(shares.max(), own.max())))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(np.arange(len(ids)), names, fontsize=9)
    panels[0].invert_yaxis()
    figure.supxlabel("probability of the next token", fontsize=9)
    return figure


def likelihoods(loaded: LoadedModel, prompt: Text, found: Mapping[str, Sequence[Generation]]) -> Figure:
    """Returns a figure of how likely a model finds texts after a prompt, a row of points for each strategy.

    A point is the mean log-probability of a text's tokens under the model's own distribution, whatever strategy wrote
    it, so that texts of different lengths can be compared. The red mark is the median.

    Args:
        loaded: the model.
        prompt: what the texts continue or answer.
        found: texts by the name of their strategy; those without tokens are left out.

    Raises:
        FlagError: the model predicts no tokens, or a text is too long for it.
    """
    figure, axes = new_axes(7, 1.0 + 0.4 * len(found))
    ids = {name: [text.ids for text in texts if text.ids] for name, texts in found.items()}
    scores = iter(score(loaded, [Item(prompt, each) for texts in ids.values() for each in texts]))
    for place, texts in enumerate(ids.values()):
        means = [one.log_likelihood / one.tokens for one, _ in zip(scores, texts, strict=False)]
        axes.plot(means, [place] * len(means), "o", color=BLUE, alpha=0.6, markersize=5)
        axes.plot([np.median(means)] if means else [], [place] * bool(means), "|", color=RED, markersize=16, mew=2)
    axes.set_yticks(range(len(found)), plain(list(found)))
    axes.set(ylim=(len(found) - 0.5, -0.5), xlabel="mean log-probability of a token (nats)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure
