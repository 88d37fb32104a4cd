"""Beam search: the best texts of a model that is small enough for a full search, and when it stops, by hand.

The model is a table: the last token gives the logits of the next one.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from lmjax.inference.generate.beam import BeamConfig, BeamSearch
from lmjax.inference.generate.processors import ProcessorConfig, Processors
from lmjax.inference.generate.strategy import ChoiceInput

STOP = 0


@functools.partial(jax.jit, static_argnums=0)
def step(strategy, table, tokens, count, limit, stop, state):
    """Returns tokens, state and who is finished after one more token; row i of a request continues by its table."""
    last = jnp.take_along_axis(tokens, count[None, None], axis=1)[:, 0]
    logits = jnp.repeat(table, strategy.rows, axis=0)[jnp.arange(len(tokens)), last]
    # The prompt is one token.
    written = jnp.broadcast_to(jnp.arange(tokens.shape[1]) <= count, tokens.shape)
    counts, limits = (jnp.full(len(tokens), x) for x in (count, limit))
    choice = strategy.choose(ChoiceInput(logits, tokens, written, counts, limits, stop), state)
    tokens = tokens[choice.parents].at[:, count + 1].set(choice.ids)
    return tokens, choice.state, strategy.finished(choice.state)


def search(config, table, limit, *, stop=(STOP,), first=1, room=16, extra=0):
    """Returns ids, lengths and scores of every request, `[requests, num_return, ...]`, and the tokens considered.

    Args:
        config: of beams.
        table: probabilities `[requests, vocab, vocab]`.
        limit: the most tokens.
        stop: ids that end a text.
        first: the prompt, one token.
        room: columns.
        extra: further tokens after all requests are finished.
    """
    strategy = BeamSearch.of(config)
    with np.errstate(divide="ignore"):
        logits = jnp.log(jnp.asarray(table, jnp.float32))
    tokens = jnp.full((len(table) * strategy.rows, room), first, jnp.int32)
    state = strategy.start(jnp.zeros(len(table), jnp.uint32), room)
    count, finished, scalar = 0, False, functools.partial(jnp.asarray, dtype=jnp.int32)
    while not finished or extra:
        extra -= bool(finished)
        tokens, state, done = step(
            strategy, logits, tokens, scalar(count), scalar(limit), jnp.array(stop, jnp.int32), state
        )
        count, finished = count + 1, bool(done.all())
        # The rows follow their parents, so they must hold the texts of the scores.
        live = np.isfinite(state.running).reshape(-1)
        written = np.asarray(state.written).reshape(len(tokens), -1)[live, :count]
        np.testing.assert_array_equal(np.asarray(tokens)[live, 1 : count + 1], written)
    return *map(np.asarray, strategy.results(state)), count


def some_table(seed, requests=1, vocab=6, spread=1.0):
    """Returns random probabilities `[requests, vocab, vocab]`."""
    logits = spread * np.random.default_rng(seed).normal(size=(requests, vocab, vocab))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def sum_of(table, text, first=1):
    """Returns the log-probability of a text under the table of one request."""
    return sum(np.log(table[last, token]) for last, token in itertools.pairwise([first, *text]))


def every_text(vocab, limit):
    """Yields every text that ends with its first stop id or has the greatest length."""
    for length in range(1, limit + 1):
        for text in itertools.product(range(vocab), repeat=length):
            if STOP not in text[:-1] and (text[-1] == STOP or length == limit):
                yield text


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_enough_beams_find_the_best_texts_there_are(penalty):
    table = some_table(0)
    config = BeamConfig(beams=125, length_penalty=penalty, early_stopping="never", num_return=8)
    ids, lengths, scores, _ = search(config, table, 4)
    best = sorted(every_text(6, 4), key=lambda text: -sum_of(table[0], text) / len(text) ** penalty)[:8]
    assert [tuple(text[:n]) for text, n in zip(ids[0], lengths[0], strict=True)] == best
    np.testing.assert_allclose(scores[0], [sum_of(table[0], t) / len(t) ** penalty for t in best], rtol=1e-5)
    assert not ids[0][np.arange(ids.shape[-1])[None] >= lengths[0][:, None]].any()


# From 1: stop at 0.4, or on to 2; from 2: stop at 0.55, or on to 2. Nothing else can be.
FORK = np.array([[[1, 0, 0], [0.4, 0, 0.6], [0.55, 0, 0.45]]])


@pytest.mark.parametrize(
    ("penalty", "text", "score"),
    [
        (0.0, [0], np.log(0.4)),
        (1.0, [2, 0], np.log(0.6 * 0.55) / 2),
        (2.0, [2, 2, 0], np.log(0.6 * 0.45 * 0.55) / 9),
        (-1.0, [0], np.log(0.4)),
    ],
)
def test_the_length_penalty_decides_between_short_and_likely_texts(penalty, text, score):
    ids, lengths, scores, _ = search(BeamConfig(beams=2, length_penalty=penalty), FORK, 3)
    assert ids[0, 0, : lengths[0, 0]].tolist() == text
    np.testing.assert_allclose(scores[0, 0], score, rtol=1e-6)


@pytest.mark.parametrize(
    ("early_stopping", "penalty", "count"),
    [
        # [0] and [2 0] are two finished texts after two tokens.
        (True, 1.0, 2),
        # Then 2 2 has -1.309 / 2 = -0.655, above [0] with -0.916. After three: 2 2 2 has -2.108 / 3 = -0.703, below
        # 2 2 0 with -1.907 / 3 = -0.636.
        (False, 1.0, 3),
        # 2 written n times has -0.511 - 0.799 (n - 1); a tenth of that falls below -0.636 at n = 9.
        ("never", 1.0, 9),
        # Longer texts do not get a better score: 2 2 with -1.309 is already below [2 0] with -1.109.
        ("never", 0.0, 2),
        (False, 0.0, 2),
    ],
)
def test_when_it_stops(early_stopping, penalty, count):
    config = BeamConfig(beams=2, length_penalty=penalty, early_stopping=early_stopping)
    assert search(config, FORK, 10)[3] == count


def test_what_has_not_ended_at_the_limit_counts_as_it_is():
    table = np.array([[[1, 0, 0], [0.01, 0.09, 0.9], [0.01, 0.09, 0.9]]])
    ids, lengths, scores, count = search(BeamConfig(beams=2, num_return=2), table, 3)
    assert count == 3
    np.testing.assert_array_equal(lengths, [[3, 3]])
    np.testing.assert_array_equal(ids[0, 0, :3], [2, 2, 2])
    np.testing.assert_allclose(scores[0], [np.log(0.9), np.log(0.9**2 * 0.09) / 3], rtol=1e-5)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_every_request_finds_what_it_finds_alone(early_stopping):
    """Also after it is finished, while others continue: no text may be added to its finished texts any more."""
    table = some_table(1, requests=6, spread=1.5)
    config = BeamConfig(beams=3, num_return=3, early_stopping=early_stopping)
    together = search(config, table, 10, extra=2)
    counts = []
    for i in range(len(table)):
        *alone, count = search(config, table[i : i + 1], 10)
        for ours, theirs in zip(together, alone, strict=False):
            np.testing.assert_array_equal(ours[i], theirs[0])
        counts.append(count)
    assert early_stopping == "never" or len(set(counts)) > 1


def test_however_many_ids_stop_the_search_goes_on():
    """After 3 or 4, the six likeliest continuations of two beams all end their texts; no beam may be lost."""
    table = np.full((1, 5, 5), 0.2)
    table[0, 1] = (0.02, 0.02, 0.01, 0.5, 0.45)
    table[0, 3:] = (0.31, 0.3, 0.29, 0.06, 0.04)
    config = BeamConfig(beams=2, num_return=2, length_penalty=3.0, early_stopping="never")
    ids, lengths, scores, _ = search(config, table, 3, stop=(0, 1, -1, 2))
    np.testing.assert_array_equal(lengths, [[3, 3]])
    np.testing.assert_array_equal(ids[0, :, :3], [[3, 3, 0], [3, 3, 1]])
    np.testing.assert_allclose(scores[0], np.log(np.array([0.31, 0.3]) * 0.5 * 0.06) / 27, rtol=1e-5)


def test_fewer_texts_than_asked_for():
    """If only one text is possible, the other returned texts are empty."""
    table = np.array([[[0, 1, 0], [0, 0, 1], [1, 0, 0]]])
    ids, lengths, scores, _ = search(BeamConfig(beams=3, num_return=3), table, 5)
    np.testing.assert_array_equal(lengths, [[2, 0, 0]])
    np.testing.assert_array_equal(ids[0, 0, :2], [2, 0])
    np.testing.assert_array_equal(scores, [[0, -np.inf, -np.inf]])


def test_groups_differ_and_scores_are_the_models():
    """With a penalty above every difference, no group chooses a token that an earlier group chose in the same step."""
    table = some_table(3, requests=2, vocab=8, spread=0.5)
    table[..., STOP] = 1e-6
    table /= table.sum(-1, keepdims=True)
    config = BeamConfig(beams=6, groups=3, diversity=100.0, num_return=6)
    ids, lengths, scores, _ = search(config, table, 4)
    plain = search(BeamConfig(beams=2, num_return=2), table, 4)
    assert (lengths == 4).all()
    for i in range(2):
        texts = [tuple(text[:4].tolist()) for text in ids[i]]
        np.testing.assert_allclose(scores[i], [sum_of(table[i], t) / 4 for t in texts], rtol=1e-5)
        # The first group equals a search with one group.
        first = [tuple(text[:4].tolist()) for text in plain[0][i]]
        assert set(first) <= set(texts)
        used = [{t[place] for t in first} for place in range(4)]
        others = [t for t in texts if t not in first]
        assert len(others) == 4
        assert all(t[place] not in used[place] for t in others for place in range(4))


def test_a_small_diversity_weighs_against_likelihood():
    """By hand: the first group takes 2 with 0.6; the second compares 0.6 e^-d with 0.4."""
    table = np.array([[[1, 0, 0, 0], [0, 0, 0.6, 0.4], [1, 0, 0, 0], [1, 0, 0, 0]]])
    for diversity, second in ((0.3, 2), (0.5, 3)):
        config = BeamConfig(beams=2, groups=2, diversity=diversity, num_return=2)
        ids, _, scores, _ = search(config, table, 4)
        np.testing.assert_array_equal(ids[0, :, :2], [[2, 0], [second, 0]])
        np.testing.assert_allclose(scores[0, 1], np.log({2: 0.6, 3: 0.4}[second]) / 2, rtol=1e-5)


def test_other_numbers_are_the_same_program():
    one = BeamSearch.of(BeamConfig(beams=2, length_penalty=0.5))
    other = BeamSearch.of(BeamConfig(beams=2, length_penalty=2.0, early_stopping="never", num_return=2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != BeamSearch.of(BeamConfig(beams=2, groups=2, diversity=0.5))
    assert one != BeamSearch.of(BeamConfig(beams=2), Processors.of(ProcessorConfig(no_repeat_ngram=2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": 0}, "greater than or equal to 1"),
        ({"beams": 4, "groups": 3, "diversity": 0.5}, "groups=3 must divide beams=4"),
        ({"beams": 2, "num_return": 3}, "num_return=3 is more than beams=2"),
        ({"length_penalty": float("nan")}, "finite"),
        ({"length_penalty": 40}, "less than or equal to 8"),
        ({"beams": 4, "groups": 2, "diversity": float("nan")}, "finite"),
        ({"beams": 4, "groups": 2}, "groups=2 would all find the same"),
        ({"diversity": 0.5}, "groups=1"),
        ({"early_stopping": "always"}, "never"),
    ],
)
def test_what_cannot_be_searched_is_said(values, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        BeamConfig(**values)
