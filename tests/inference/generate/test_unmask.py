"""Unmasking: the texts and their distribution equal those of single forward passes, whatever the batch is."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from lmjax.errors import FlagError
from lmjax.inference.generate import unmask as module
from lmjax.inference.generate.generate import GenerateConfig, Generation, generate, stream
from lmjax.inference.generate.unmask import UnmaskConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.objectives.masked_diffusion import MaskedDiffusionConfig
from tests.inference.scoring import log_probs, tiny, tokenizer

# Three ids that a test of the distribution leaves.
IDS = (111, 150, 160)
OTHERS = tuple(i for i in range(192) if i not in IDS)
PROMPTS = ([120, 130], [140], [150, 160, 170, 120])


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A model whose predictions depend on the other tokens: with small parameters, an error in the order hides."""
    model = tiny("encoder", num_layers=2)
    params = jax.tree.map(lambda x: 1.5 * x, model.params)
    # As of every opened model, ids that the tokenizer does not have are never written.
    prompts = dataclasses.replace(model.prompts, never=tuple(range(tokenizer().vocab_size, 192)))
    return dataclasses.replace(
        model, params=params, prompts=prompts, tasks={"masked_diffusion": MaskedDiffusionConfig()}
    )


def around(ids):
    t = tokenizer()
    return [t.cls_id, *ids, t.sep_id]


def config(**fields):
    unmask = UnmaskConfig(**{name: fields.pop(name) for name in ("steps", "order", "block") if name in fields})
    return GenerateConfig(unmask=unmask, **{"max_new_tokens": 5} | fields)


def predicted(loaded, row):
    """Returns the log-probabilities of each mask of a row, by place."""
    found = log_probs(loaded, {"tokens": list(row)})
    return {i: found[i] for i, token in enumerate(row) if token == tokenizer().mask_id}


def greedy(loaded, row, steps=None, block=None):
    """Returns the ids and the score of a row that is unmasked by one forward pass for every step."""
    t, row = tokenizer(), list(row)
    holes = [i for i, token in enumerate(row) if token == t.mask_id]
    text, score = t.is_text.nonzero()[0], 0.0
    steps = min(steps or len(holes), len(holes))
    for step in range(steps):
        best = {i: text[p[text].argmax()] for i, p in predicted(loaded, row).items()}
        gains = {i: p[best[i]] for i, p in predicted(loaded, row).items()}
        wanted = (step + 1) * len(holes) // steps - (len(holes) - len(best))
        for i in sorted(best, key=lambda i: (holes.index(i) // (block or len(holes)), -gains[i]))[:wanted]:
            row[i], score = best[i], score + gains[i]
    return tuple(row[i] for i in holes), score


@pytest.mark.parametrize("settings", [{}, {"steps": 2}, {"steps": 9}, {"block": 2}, {"steps": 3, "block": 2}], ids=str)
def test_the_likeliest_tokens_come_first(loaded, settings):
    """Greedy and by confidence, of several prompts in a batch; with blocks, from left to right."""
    found = generate(loaded, [around(p) for p in PROMPTS], config(**settings))
    mask = tokenizer().mask_id
    for prompt, (each,) in zip(PROMPTS, found, strict=True):
        ids, score = greedy(loaded, around([*prompt, *[mask] * 5]), **settings)
        assert each.ids == ids
        assert each.score == pytest.approx(score, rel=1e-4)
        assert each.finished == "length"


def test_the_settings_matter(loaded):
    """Negative control of the test above: orders, steps and blocks give different texts."""
    prompts = [around([i, i + 3]) for i in range(110, 170, 4)]
    settings = ({}, {"steps": 1}, {"block": 1}, {"order": "random"})
    found = [[each[0].ids for each in generate(loaded, prompts, config(**s, max_new_tokens=8))] for s in settings]
    assert all(a != b for a, b in itertools.combinations(found, 2))


def any_order(loaded, row, orders):
    """Returns the probability of each text whose masks are replaced one by one, in an order drawn from `orders`."""
    holes = [i for i, token in enumerate(row) if token == tokenizer().mask_id]
    known = {}

    def shares(state):
        if state not in known:
            odds = {i: np.exp(p[list(IDS)]) for i, p in predicted(loaded, state).items()}
            known[state] = {i: p / p.sum() for i, p in odds.items()}
        return known[state]

    found = collections.Counter()
    for text, order in itertools.product(itertools.product(range(len(IDS)), repeat=len(holes)), orders):
        state, p = list(row), 1.0
        for k in order:
            p *= shares(tuple(state))[holes[k]][text[k]]
            state[holes[k]] = IDS[text[k]]
        found[tuple(IDS[i] for i in text)] += p / len(orders)
    return found


@pytest.mark.parametrize(
    ("settings", "orders"),
    [
        ({"order": "random"}, list(itertools.permutations(range(3)))),
        ({"order": "random", "block": 2}, [(0, 1, 2), (1, 0, 2)]),
        ({"order": "confidence", "block": 1}, [(0, 1, 2)]),
    ],
    ids=["any order", "blocks", "left to right"],
)
def test_samples_have_the_distribution_of_the_model(loaded, settings, orders):
    """One token a step: the exact distribution, by enumerating all texts and all orders."""
    t, count = tokenizer(), 3000
    row = around([130, t.mask_id, t.mask_id, 120, t.mask_id])
    exact = any_order(loaded, row, orders)
    assert sum(exact.values()) == pytest.approx(1)
    sampling = {"sampling": {"temperature": 1.0}, "processors": {"banned": OTHERS}, "batch_size": 512}
    found = collections.Counter(each.ids for (each,) in generate(loaded, [row] * count, config(**settings, **sampling)))
    assert set(found) <= set(exact)
    assert chance(found, exact, count) > 1e-3
    others = any_order(loaded, row, [o[::-1] for o in orders[:1]])
    assert chance(found, others, count) < 1e-6, "the orders must differ for this to show anything"


def chance(found, exact, count):
    """Returns the p-value of counts under a distribution; texts that are expected less than ten times are one."""
    often = [text for text, p in exact.items() if p * count >= 10]
    seen, wanted = [found[text] for text in often], [exact[text] * count for text in often]
    return scipy.stats.chisquare([*seen, count - sum(seen) + 1e-9], [*wanted, count - sum(wanted) + 1e-9]).pvalue


def test_a_batch_changes_nothing(loaded):
    """Prompts of different lengths, some with masks, greedy and sampled, in batches of one and of four."""
    t = tokenizer()
    prompts = [*map(around, PROMPTS), around([t.mask_id, 150, t.mask_id]), "The old [MASK] goes"]
    for settings in ({}, {"sampling": {"temperature": 1.0, "top_k": 20}}, {"order": "random", "steps": 2}):
        whole = generate(loaded, prompts, config(**settings, batch_size=4, seed=3))
        alone = [generate(loaded, [p], config(**settings, seed=3 + i))[0] for i, p in enumerate(prompts)]
        for a, b in zip(itertools.chain(*whole), itertools.chain(*alone), strict=True):
            assert (a.ids, a.text) == (b.ids, b.text)
            assert a.score == pytest.approx(b.score, rel=1e-4)


def test_seeds_draw_different_texts_and_the_same_seed_the_same(loaded):
    drawn = config(sampling={"temperature": 1.0})
    found = [each.ids for (each,) in generate(loaded, [around([120])] * 4, drawn, seeds=[1, 2, 1, 3])]
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_special_tokens_are_never_written(loaded):
    """Nor ids that the tokenizer does not have: the model has 192 rows for 180 ids."""
    t = tokenizer()
    hot = config(order="random", sampling={"temperature": 1e4}, max_new_tokens=10, batch_size=64)
    ids = {i for (each,) in generate(loaded, [around([120])] * 200, hot) for i in each.ids}
    assert ids == set(t.text_ids.tolist())


def test_text_follows_the_prompt_or_is_all_of_it(loaded):
    t = tokenizer()
    ((after,),) = generate(loaded, ["The old king"], config())
    assert len(after.ids) == 5
    assert t.decode([*t.encode("The old king"), *after.ids]) == f"The old king{after.text}"
    ((inside,),) = generate(loaded, ["The [MASK] king[MASK]."], config(max_new_tokens=9))
    assert len(inside.ids) == 2, "masks of a prompt are replaced, and none are added"
    the, king, end = (t.encode(text) for text in ("The", " king", "."))
    assert inside.text == t.decode([*the, inside.ids[0], *king, inside.ids[1], *end])


def test_a_text_ends_before_a_stop_string(loaded):
    ((whole,),) = generate(loaded, ["The old king"], config())
    middle = whole.text[2:4]
    ((found,),) = generate(loaded, ["The old king"], config(stop=(middle,)))
    assert found.text == whole.text[: whole.text.index(middle)]
    assert (found.finished, found.ids, found.score) == ("stop", whole.ids, whole.score)


def test_a_stream_is_one_part_and_the_text(loaded):
    (whole,) = generate(loaded, ["The old king"], config())[0]
    assert [*stream(loaded, "The old king", config())] == [whole.text, whole]
    assert isinstance(whole, Generation)


def test_steps_blocks_and_seeds_share_a_program(loaded):
    rows = [around(p) for p in PROMPTS[:2]]
    before = module._unmask._cache_size()
    for settings in ({"steps": 1}, {"steps": 4}, {"block": 2}, {"seed": 5}, {"max_new_tokens": 7}):
        generate(loaded, rows, config(**settings))
    assert module._unmask._cache_size() <= before + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": {"beams": 4}}, r"--beams=4: this model writes by replacing masks, in no order .*; leave it out"),
        ({"stop_ids": (3,)}, r"--stop_id=\(3,\): this model"),
        ({"regex": "a+"}, r"--regex=a\+: this model"),
        ({"lookup": 2}, "--lookup=2: this model"),
        ({"cache": "int8"}, "--cache_dtype=int8: this model"),
        ({"processors": {"no_repeat_ngram": 2}}, "--no_repeat_ngram=2: this model"),
        ({"processors": {"banned": tuple(range(192))}}, "processors.banned: bans every token"),
        ({"max_new_tokens": 20}, r"--prompt has 23 tokens with --max_new_tokens=20, .* 16; .* to at most 13"),
    ],
)
def test_what_does_not_apply_is_named(loaded, settings, message):
    with pytest.raises(FlagError, match=message):
        generate(loaded, [around([120])], config(**settings))


def test_other_mistakes_are_named(loaded):
    t = tokenizer()
    with pytest.raises(FlagError, match=r"--draft: this model writes by replacing masks"):
        generate(loaded, [around([120])], config(), draft=loaded)
    with pytest.raises(FlagError, match=r"--prompt has 22 tokens, and the model's rows have 16; shorten it$"):
        generate(loaded, [around([t.mask_id] * 20)])
    with pytest.raises(FlagError, match="--unmask_steps=3: is for an encoder that was trained on masked diffusion"):
        generate(tiny("decoder"), ["The"], config(steps=3))
    with pytest.raises(FlagError, match="generates no text unless it was trained on masked diffusion"):
        generate(tiny("encoder"), ["The"])


@pytest.mark.usefixtures("all_devices")
@pytest.mark.parametrize("settings", [{}, {"order": "random", "sampling": {"temperature": 1.0}}], ids=str)
def test_devices_that_split_a_model_change_nothing(loaded, settings):
    split = tiny("encoder", devices=2, tensor=2, num_layers=2)
    split = dataclasses.replace(loaded, params=jax.tree.map(lambda x: 1.5 * x, split.params), mesh=split.mesh)
    rows = [around(p) for p in PROMPTS]
    for (a,), (b,) in zip(*(generate(m, rows, config(**settings)) for m in (loaded, split)), strict=True):
        assert a.ids == b.ids
        assert a.score == pytest.approx(b.score, rel=1e-4)
