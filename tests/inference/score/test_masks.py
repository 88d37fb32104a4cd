"""The bound on a text's likelihood: exact where all sets of masks are few, else estimated without bias."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.inference.score.masks import mask_sets
from lmjax.inference.score.score import rolling, score, summary
from lmjax.inference.score.texts import Item, ScoreConfig
from lmjax.objectives.masked_diffusion import MaskedDiffusionConfig
from tests.inference.scoring import log_probs, tiny, tokenizer

SMALL = ScoreConfig(row_length=16, batch_tokens=64)


@pytest.fixture(scope="module")
def loaded():
    return dataclasses.replace(tiny("encoder"), tasks={"masked_diffusion": MaskedDiffusionConfig()})


def orders(loaded, item):
    """Returns the log-likelihood of a continuation in each order of unmasking, from single forward passes."""
    t, begin = tokenizer(), 1 + len(item.context)
    row = [t.cls_id, *item.context, *item.continuation, t.sep_id]
    places = range(begin, begin + len(item.continuation))

    def predicted(hidden):
        found = log_probs(loaded, {"tokens": [t.mask_id if i in hidden else x for i, x in enumerate(row)]})
        return {i: found[i, row[i]] for i in hidden}

    sets = {s: predicted(s) for n in range(1, len(places) + 1) for s in itertools.combinations(places, n)}
    return [
        sum(sets[tuple(sorted(order[i:]))][order[i]] for i in range(len(order)))
        for order in itertools.permutations(places)
    ]


def test_a_short_continuation_has_the_mean_over_all_orders(loaded):
    items = [Item([120, 130], [150, 111, 160]), Item([], [140]), Item([130], [170, 112, 150, 150])]
    found = score(loaded, items, SMALL)
    for item, each in zip(items, found, strict=True):
        expected = orders(loaded, item)
        assert each.log_likelihood == pytest.approx(np.mean(expected), rel=1e-5)
        assert each.log_likelihood <= np.log(np.mean(np.exp(expected))) + 1e-6, "it must bound the likelihood"
        assert each.tokens == len(item.continuation)
    assert np.std(orders(loaded, items[0])) > 0.05


def test_few_sets_give_about_the_exact_bound(loaded):
    """Seven tokens have 127 sets of masks, which is more than 100."""
    item = Item([130], [170, 112, 150, 150, 120, 144, 139])
    (exact,) = score(loaded, [item], SMALL.model_copy(update={"draws": 127}))
    (estimate,) = score(loaded, [item], SMALL.model_copy(update={"draws": 100}))
    assert estimate.tokens == exact.tokens == 7
    assert estimate.log_likelihood != exact.log_likelihood
    assert estimate.log_likelihood == pytest.approx(exact.log_likelihood, rel=0.05)


def test_sets_are_spread_evenly_over_their_sizes():
    sets = list(mask_sets(40, 80))
    assert collections.Counter(len(s) for s, _ in sets) == dict.fromkeys(range(1, 41), 2)
    assert all(len(set(s)) == len(s) and min(s) >= 0 and max(s) < 40 for s, _ in sets)
    for count, draws in ((40, 80), (40, 7), (300, 64), (3, 64), (1, 1), (2, 1)):
        assert sum(factor * len(s) for s, factor in mask_sets(count, draws)) == pytest.approx(count)
    assert [s for s, _ in mask_sets(300, 64)] == [s for s, _ in mask_sets(300, 64)]


def test_an_estimate_has_no_bias():
    """Of any function of the masked token and the set: here one in which both matter."""

    def total(sets):
        return sum(factor * sum((1 + i) * len(s) ** 2 + (0 in s) * 30 for i in s) for s, factor in sets)

    assert total(mask_sets(12, 4000)) == pytest.approx(total(mask_sets(12, 4095)), rel=0.02)
    assert total(mask_sets(12, 4095)) == pytest.approx(6.5 * sum(n**2 for n in range(13)) + 30 / 12 * sum(range(13)))


def test_windows_of_a_long_text_add_up(loaded):
    """Each window is bounded given those tokens before it that it has room for."""
    ids = np.random.default_rng(0).integers(110, 180, 10).tolist()
    config = SMALL.model_copy(update={"max_length": 6})
    (whole,) = rolling(loaded, [ids], config)
    parts = score(loaded, [Item([], ids[:4]), Item([], ids[4:8]), Item(ids[6:8], ids[8:])], config)
    assert whole.log_likelihood == pytest.approx(sum(p.log_likelihood for p in parts), rel=1e-5)
    assert whole.tokens == 10
    assert summary([whole])["nats_per_token"] == pytest.approx(-whole.log_likelihood / 10)


def test_settings_that_do_not_apply_are_named(loaded):
    with pytest.raises(FlagError, match=r"--draws=8: is for a model that was trained to write by unmasking; leave"):
        score(tiny("encoder"), [Item("", "a")], ScoreConfig(draws=8))
    with pytest.raises(FlagError, match="within_word=True: this model is scored by masking random sets"):
        score(loaded, [Item("", "a")], ScoreConfig(within_word=True))
