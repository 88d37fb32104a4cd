"""Figures of attention, of the next token and of decisions show the model's own numbers, each beside its token."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.analysis.attention import alignment, attention_maps, self_attention, token_texts
from lmjax.analysis.figures import pixels
from lmjax.analysis.next_token import likelihoods, next_token, next_token_distributions
from lmjax.analysis.occlusion import occlusion, occlusion_bars
from lmjax.errors import FlagError
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.generate.text import Generation
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.objectives.classification import ClassificationConfig
from tests.inference.scoring import tiny

pytest.importorskip("matplotlib")
TEXT, TARGET = "The old king goes", "A queen sees"


def named(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_map_for_each_head_shows_the_weights_between_the_tokens_of_the_text():
    loaded = tiny("decoder", positions="rope", num_layers=2)
    figure = self_attention(loaded, TEXT, layer=0)
    found = loaded([TEXT], output_attentions=True)
    names = token_texts(loaded, found.tokens[0][found.mask[0]])
    maps = [axes for axes in figure.axes if axes.images]
    for head, axes in enumerate(maps):
        size = len(names)
        np.testing.assert_allclose(axes.images[0].get_array(), found.attentions[0][0, head, :size, :size], rtol=1e-6)
        assert named(axes.xaxis) == names
    assert named(maps[0].yaxis) == names
    assert len(maps) == loaded.config.num_heads
    assert pixels(figure).shape[2] == 3
    with pytest.raises(FlagError, match="layer=2: the model has 2 layers"):
        self_attention(loaded, TEXT, layer=2)


def test_an_alignment_names_each_row_by_the_token_that_is_predicted_there():
    loaded = tiny("encoder_decoder", num_layers=2)
    figure = alignment(loaded, TEXT, TARGET)
    targets = token_texts(loaded, loaded.tokenizer.encode(TARGET))
    sources = token_texts(loaded, loaded.encode(TEXT))
    found = loaded([TEXT], targets=[TARGET], output_attentions=True)
    maps = [axes for axes in figure.axes if axes.images]
    for layer, axes in enumerate(maps):
        assert named(axes.xaxis) == sources
        expected = found.cross_attentions[layer][0].mean(axis=0)[: len(targets), : len(sources)]
        np.testing.assert_allclose(axes.images[0].get_array(), expected, rtol=1e-6)
    assert named(maps[0].yaxis) == targets
    assert len(maps) == 2
    with pytest.raises(FlagError, match="an alignment needs an encoder-decoder"):
        alignment(tiny("decoder"), TEXT, TARGET)


def test_many_maps_stand_in_rows_and_an_empty_place_has_no_axes():
    figure = attention_maps(np.full((6, 9, 9), 1 / 3), ["a", "$x$", "b"], ["a", "c"])
    assert [bool(axes.images) for axes in figure.axes[:8]] == [True] * 6 + [False] * 2
    assert figure.axes[0].images[0].get_array().shape == (3, 2)
    assert figure.axes[4].get_yticklabels()[1].get_text() == r"\$x\$"


def test_panels_show_what_a_filter_leaves_of_the_models_own_distribution():
    loaded = tiny("decoder")
    settings = {
        "colder": SamplingConfig(temperature=0.5),
        "the first 3": SamplingConfig(temperature=1.0, top_k=3),
        "greedy": SamplingConfig(),
    }
    found = loaded([TEXT])
    logits = found.logits[0, found.mask[0].sum() - 1].astype(np.float64)
    own = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    colder, first, greedy = next_token_distributions(loaded, TEXT, list(settings.values()))
    np.testing.assert_allclose(colder, own**2 / (own**2).sum(), rtol=1e-4)
    best = np.argsort(-own)[:3]
    np.testing.assert_allclose(first[best], own[best] / own[best].sum(), rtol=1e-4)
    assert np.count_nonzero(first) == 3
    assert greedy[best[0]] == 1
    figure = next_token(loaded, TEXT, settings, count=5)
    assert named(figure.axes[0].yaxis) == token_texts(loaded, np.argsort(-own)[:5])
    bars = [bar.get_width() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(bars, [*np.sort(own)[::-1][:5], *np.sort(first)[::-1][:5]], rtol=1e-4)
    assert "3 possible" in figure.axes[1].get_title()
    with pytest.raises(FlagError, match="a next token needs a decoder"):
        next_token(tiny("encoder"), TEXT, settings)


def test_likelihoods_are_means_under_the_model_whatever_the_strategys_own_score_is():
    loaded = tiny("decoder")
    ids = tuple(loaded.tokenizer.encode("the river"))
    texts = [Generation("the river", ids, score, "stop") for score in (-1.0, 100.0)]
    axes = likelihoods(loaded, TEXT, {"beams": texts, "nothing": [Generation("", (), 0.0, "stop")]}).axes[0]
    points = axes.lines[0].get_xdata()
    row = [*loaded.encode(TEXT), *ids]
    found = loaded([row])
    logits = found.logits[0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    start = len(row) - len(ids)
    expected = np.mean([logs[start + i - 1, token] for i, token in enumerate(ids)])
    np.testing.assert_allclose(points, [expected] * 2, rtol=1e-4)
    assert named(axes.yaxis) == ["beams", "nothing"]


def classifier():
    base = tiny("encoder")
    model = LanguageModel(base.config, ("classifier",))
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), shapes)
    tasks = {"classification": ClassificationConfig(labels=("dull", "fine"))}
    return dataclasses.replace(base, model=model, params=params, tasks=tasks)


def test_an_occlusion_is_the_change_of_the_log_odds_when_a_word_is_left_out():
    loaded, words = classifier(), TEXT.split()
    found = occlusion(loaded, TEXT, "fine")
    texts = [TEXT, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    odds = [float(np.subtract(*loaded([text]).heads["classifier"][0][::-1])) for text in texts]
    np.testing.assert_allclose(found.changes, odds[0] - np.array(odds[1:]), atol=1e-3)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-odds[0])), abs=1e-4)
    other = occlusion(loaded, TEXT, "dull")
    np.testing.assert_allclose(other.changes, -np.array(found.changes), atol=1e-3)
    assert occlusion(loaded, TEXT).probability == max(found.probability, other.probability)
    axes = occlusion_bars([found, other]).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [*found.changes, *other.changes])
    assert named(axes.yaxis) == [*words, *words]


@pytest.mark.parametrize(
    ("text", "label", "message"), [("king", None, "has 1 word"), (TEXT, "good", "no such label; it has dull, fine")]
)
def test_an_occlusion_without_a_label_or_words_to_leave_out_is_refused(text, label, message):
    with pytest.raises(FlagError, match=message):
        occlusion(classifier(), text, label)
    with pytest.raises(FlagError, match="needs a classifier"):
        occlusion(tiny("decoder"), TEXT)
