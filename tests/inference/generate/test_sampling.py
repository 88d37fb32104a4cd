"""Sampling: filters keep the right ids, draws follow the distribution and depend only on the row's seed."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from lmjax.inference.generate.processors import ProcessorConfig, Processors
from lmjax.inference.generate.sampling import (
    MOST_CANDIDATES,
    FilterValues,
    Sampling,
    SamplingConfig,
    pick,
    probabilities,
)
from lmjax.inference.generate.strategy import NOTHING, ChoiceInput

VOCAB, DRAWS = 20, 20_000
CASES = {
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.0, "top_k": 6},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "typical_p": {"temperature": 1.0, "typical_p": 0.6},
    "two": {"temperature": 1.3, "top_k": 9, "top_p": 0.7},
    "all": {"temperature": 1.5, "top_k": 12, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.8},
}
distribution = jax.jit(probabilities)
choose = jax.jit(Sampling.choose, static_argnums=0)


def nearest(order, p, mass):
    """Returns the first ids by `order` whose weights add up to `mass`, and those that tie with the last of them."""
    ranked = np.argsort(order, kind="stable")
    last = ranked[min(np.searchsorted(np.cumsum(p[ranked]), mass), len(p) - 1)]
    return order <= order[last]


def reference(logits, config):
    """Returns the distribution of one row by sorting, in float64; it is normalised after each filter."""
    scores = np.asarray(logits, np.float64) / config.temperature
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if config.top_k is not None:
        p = np.where(scores >= np.sort(scores)[-min(config.top_k, len(p))], p, 0)
        p /= p.sum()
    if config.top_p is not None:
        p = np.where(nearest(-scores, p, config.top_p), p, 0)
        p /= p.sum()
    if config.min_p is not None:
        p = np.where(p >= config.min_p * p.max(), p, 0)
        p /= p.sum()
    if config.typical_p is not None:
        surprise = -np.log(np.where(p > 0, p, 1))
        away = np.where(p > 0, np.abs(surprise - (p * surprise).sum()), np.inf)
        p = np.where(nearest(away, p, config.typical_p), p, 0)
    return p / p.sum()


def inputs(logits, count=0, limit=99, stop=(-1,)):
    logits = jnp.asarray(logits, jnp.float32)
    nothing = jnp.zeros((len(logits), 1), jnp.int32)
    counts, limits = (jnp.full(len(logits), x, jnp.int32) for x in (count, limit))
    return ChoiceInput(logits, nothing, nothing > 0, counts, limits, jnp.asarray(stop, jnp.int32))


@pytest.fixture(scope="module")
def rows():
    """Returns scores of 8 rows: flat, peaked, with many ties, with some ids not allowed."""
    logits = np.random.default_rng(0).normal(size=(8, VOCAB)) * np.linspace(0.5, 4, 8)[:, None]
    logits[::2] = np.round(logits[::2] * 2) / 2
    logits[3:5, 5:9] = -np.inf
    return logits.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_is_the_one_defined_by_sorting(case, rows):
    config = SamplingConfig(**CASES[case])
    expected = np.stack([reference(row, config) for row in rows])
    assert case == "temperature" or (expected == 0).sum() > 16, "the filter drops too few ids to be tested"
    np.testing.assert_allclose(distribution(rows, FilterValues.of(config)), expected, atol=1e-6)


def test_equal_ids_at_the_edge_of_a_filter_are_all_kept():
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2, 0.0]], np.float32) + 1e-30)
    for name, value in (("top_k", 2), ("top_p", 0.5), ("min_p", 0.45), ("typical_p", 0.3)):
        kept = np.asarray(distribution(logits, FilterValues.of(SamplingConfig(temperature=1, **{name: value}))))[0]
        assert len(set(kept[1:4].tolist())) == 1, name
        assert kept[1] > 0, name


@pytest.mark.parametrize("name", ["top_k", "top_p", "typical_p", "min_p"])
def test_the_narrowest_filter_keeps_one_id_and_the_widest_all(name):
    logits = np.random.default_rng(1).normal(size=(2, VOCAB)).astype(np.float32)
    # So rare that its weight vanishes in a float32 sum.
    logits[:, 3] = -30
    narrow, wide = {"top_k": (1, 10 * VOCAB), "min_p": (1.0, 1e-20)}.get(name, (1e-9, 1.0))
    for value, kept in ((narrow, 1), (wide, VOCAB)):
        found = distribution(logits, FilterValues.of(SamplingConfig(temperature=1, **{name: value})))
        np.testing.assert_array_equal((np.asarray(found) > 0).sum(axis=1), kept)


def test_a_top_k_of_many_is_searched_for_and_the_same():
    """Beyond MOST_CANDIDATES another algorithm finds the k-th score."""
    logits = np.round(np.random.default_rng(2).normal(size=(1, 1500)), 2).astype(np.float32)
    config = SamplingConfig(temperature=1, top_k=MOST_CANDIDATES + 200)
    assert FilterValues.of(config).candidates == 0
    assert FilterValues.of(SamplingConfig(temperature=1, top_k=MOST_CANDIDATES)).candidates == MOST_CANDIDATES
    expected = reference(logits[0], config)
    assert (expected > 0).sum() > config.top_k, "no score ties with the k-th: the test would not check ties"
    np.testing.assert_allclose(distribution(logits, FilterValues.of(config))[0], expected, atol=1e-6)


def test_greedy_has_all_of_the_probability_on_one_id(rows):
    found = np.asarray(distribution(rows, FilterValues.of(SamplingConfig())))
    np.testing.assert_array_equal(found, np.eye(VOCAB)[rows.argmax(axis=1)])


def test_the_distribution_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers.generation.logits_process")
    # No two scores are equal: of ids that tie at the threshold of top-p, transformers keeps only some.
    logits = 3 * np.random.default_rng(3).normal(size=(16, VOCAB)).astype(np.float32)
    warpers = {"top_k": hf.TopKLogitsWarper, "top_p": hf.TopPLogitsWarper, "min_p": hf.MinPLogitsWarper}
    warpers = {"temperature": hf.TemperatureLogitsWarper} | warpers | {"typical_p": hf.TypicalLogitsWarper}
    for case in CASES.values():
        theirs = hf.LogitsProcessorList([warpers[name](case[name]) for name in warpers if name in case])
        expected = torch.softmax(theirs(None, torch.tensor(logits)), dim=-1)
        found = distribution(logits, FilterValues.of(SamplingConfig(**case)))
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=str(case))


def improbable(drawn, expected):
    """Returns whether drawn ids deviate from a distribution more than chance does in one of ten thousand tests.

    Pearson's chi-squared, ids of fewer than five expected draws in one cell; Wilson and Hilferty's quantile.
    """
    seen, means = np.bincount(drawn, minlength=len(expected)), expected * len(drawn)
    if seen[expected == 0].any():
        return True
    rare = means < 5
    seen, means = (np.append(x[~rare], x[rare].sum()) for x in (seen, means))
    seen, means = seen[means > 0], means[means > 0]
    freedom = len(means) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return ((seen - means) ** 2 / means).sum() > bound


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution(case):
    config = SamplingConfig(**CASES[case])
    logits = np.random.default_rng(4).normal(size=VOCAB).astype(np.float32) * 1.5
    strategy, seeds = Sampling.of(config), np.arange(DRAWS)
    drawn = choose(strategy, inputs(np.tile(logits, (DRAWS, 1)), count=3), strategy.start(seeds, 1)).ids
    assert not improbable(np.asarray(drawn), reference(logits, config))
    # Negative control: the test detects a temperature that is wrong by one tenth.
    wrong = config.model_copy(update={"temperature": 1.1 * config.temperature})
    assert improbable(np.asarray(drawn), reference(logits, wrong))


def test_draws_after_draws_of_one_row_follow_the_distribution_too():
    """Keys of successive tokens must be as independent as those of different seeds."""
    logits = jnp.asarray(np.random.default_rng(5).normal(size=VOCAB), jnp.float32)
    strategy = Sampling.of(SamplingConfig(temperature=1))

    @jax.jit
    def written(state):
        def step(state, count):
            choice = strategy.choose(inputs(logits[None], count, DRAWS + 1), state)
            return choice.state, choice.ids[0]

        return jax.lax.scan(step, state, jnp.arange(DRAWS))[1]

    drawn = np.asarray(written(strategy.start(np.array([7]), 1)))
    expected = reference(logits, SamplingConfig(temperature=1))
    assert not improbable(drawn, expected)
    pairs = drawn[:-1:2] * VOCAB + drawn[1::2]
    assert not improbable(pairs, np.outer(expected, expected).reshape(-1))


def test_a_place_without_weight_is_never_picked():
    """Sums of hundreds of parts are computed in blocks that round differently: an index of weight 0 can get a share."""
    rng = np.random.default_rng(6)
    parts = np.where(rng.random((32, 400)) < 0.3, 10.0 ** rng.uniform(-6, 0, size=(32, 400)), 0).astype(np.float32)
    sums = np.asarray(jax.jit(functools.partial(jnp.cumsum, axis=-1))(parts))
    row, place = np.nonzero((np.diff(sums) > 0) & (parts[:, 1:] == 0))
    assert len(row), "no sum rounds differently: the test would not check anything"
    inside = (sums[row, place] + sums[row, place + 1]) / 2 / sums[row, -1]
    picked = np.asarray(jax.jit(pick)(parts[row], inside))
    assert (parts[row, picked] > 0).all()


def test_the_draws_of_a_seed_do_not_depend_on_the_batch():
    strategy = Sampling.of(SamplingConfig(temperature=1.2, top_p=0.95))
    logits = np.random.default_rng(7).normal(size=(12, VOCAB)).astype(np.float32)
    rng = np.random.default_rng(8)

    def written(seeds, row):
        """Returns the row's tokens for logits that depend only on the position; other rows have other logits."""
        state, ids = strategy.start(np.array(seeds), 1), []
        for place, own in enumerate(logits):
            batch = rng.normal(size=(len(seeds), VOCAB)).astype(np.float32)
            batch[row] = own
            choice = choose(strategy, inputs(batch, place), state)
            state, ids = choice.state, [*ids, int(choice.ids[row])]
        return ids

    alone = written([41], 0)
    assert written([1, 2, 3, 4, 5, 41, 41, 8], 5) == alone
    assert written([41, 2, 3, 4, 5, 6, 7, 8], 0) == alone
    assert written([42], 0) != alone


def test_a_row_ends_with_a_stop_id_or_at_the_limit_and_adds_up_what_the_model_gave_its_ids():
    """Greedy decoding, with a penalty that changes the choice but not the model's log-probabilities."""
    strategy = Sampling.of(SamplingConfig(), Processors.of(ProcessorConfig(banned=(0,))))
    logits = np.random.default_rng(9).normal(size=(3, 3, VOCAB)).astype(np.float32)
    logits[:, :, 0] = 5
    # The first two stop; the third continues.
    logits[0, 0, 4] = logits[1, 1, 6] = logits[2, 2, 9] = 4
    state, step = strategy.start(np.zeros(3), 1), functools.partial(choose, strategy)
    done, written = [], []
    for count, each in enumerate(logits):
        choice = step(inputs(each, count, limit=3, stop=(4, 6, -1)), state)
        state = choice.state
        done.append(np.asarray(strategy.finished(state)).tolist())
        written.append(np.asarray(choice.ids))
    assert done == [[True, False, False], [True, True, False], [True] * 3]
    # Ended rows get the first stop id, which does not count.
    assert [ids[0] for ids in written] == [4, 4, 4]
    assert written[2][1] == 4
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=-1))
    expected = [sum(log_p[t, row, written[t][row]] for t in range(length)) for row, length in enumerate((1, 2, 3))]
    np.testing.assert_allclose(state.scores, expected, rtol=1e-5)


@pytest.mark.parametrize("case", ["temperature", "all"])
def test_a_row_in_which_nothing_is_allowed_harms_no_other(case, rows):
    logits = rows.copy()
    logits[1] = -np.inf
    config = SamplingConfig(**CASES[case])
    found = np.asarray(distribution(logits, FilterValues.of(config)))
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(distribution(rows, FilterValues.of(config)), 1, 0))
    strategy = Sampling.of(config)
    assert int(choose(strategy, inputs(logits), strategy.start(np.arange(8), 1)).ids[1]) == NOTHING


def test_other_numbers_compile_nothing_anew(rows):
    first = SamplingConfig(temperature=0.5, top_k=3, min_p=0.2)
    strategies = [Sampling.of(c) for c in (first, SamplingConfig(temperature=2, top_k=7, min_p=0.01))]
    before = choose._cache_size()
    for strategy in strategies:
        choose(strategy, inputs(rows), strategy.start(np.arange(8), 1))
    assert choose._cache_size() == before + 1
    assert strategies[0] == strategies[1] != Sampling.of(SamplingConfig(temperature=1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": float("nan")}, "temperature.*finite.*nan"),
        ({"temperature": float("inf")}, "temperature.*finite.*inf"),
        ({"temperature": -0.5}, "temperature.*greater than or equal to 0.*-0.5"),
        ({"temperature": 1e-40}, "temperature=1e-40 .*set 0"),
        ({"temperature": 1, "top_k": 0}, "top_k.*greater than or equal to 1.*0"),
        ({"temperature": 1, "top_p": 0}, "top_p.*greater than 0"),
        ({"temperature": 1, "min_p": 1.5}, "min_p.*less than or equal to 1.*1.5"),
        ({"temperature": 1, "typical_p": float("nan")}, "typical_p.*finite.*nan"),
        ({"top_k": 50}, "top_k=50 .*temperature=0.*set temperature above 0"),
        ({"top_p": 0.9}, "top_p=0.9 .*temperature=0.*set temperature above 0"),
    ],
)
def test_values_that_cannot_work_are_errors_that_name_them(values, words):
    with pytest.raises(pydantic.ValidationError, match=f"(?s){words}"):
        SamplingConfig(**values)
