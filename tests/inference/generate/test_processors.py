"""Penalties and bans, compared with slow references and with transformers' processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from lmjax.inference.generate.processors import ProcessorConfig, Processors, apply, repeats
from lmjax.inference.generate.strategy import ChoiceInput
from lmjax.inference.loaded import PromptFormat

VOCAB, ROOM, ROWS = 6, 14, 12
process = jax.jit(apply)


def inputs(texts, *, count=0, stop=(-1,), room=ROOM):
    """Returns the inputs after `texts` as in the decode loop: padding before short rows, unused columns after all."""
    longest = max(map(len, texts))
    tokens, written = np.zeros((len(texts), room), np.int32), np.zeros((len(texts), room), bool)
    for row, text in enumerate(texts):
        tokens[row, longest - len(text) : longest] = text
        written[row, longest - len(text) : longest] = True
    # Columns that are not written may hold any id; here, one that would change the result.
    tokens[~written] = 1
    scores = jnp.zeros((len(texts), VOCAB))
    counts, limits = (jnp.full(len(texts), x, jnp.int32) for x in (count, 99))
    return ChoiceInput(scores, *map(jnp.asarray, (tokens, written)), counts, limits, jnp.asarray(stop))


@pytest.fixture(scope="module")
def ragged():
    rng = np.random.default_rng(0)
    texts = [rng.integers(2, VOCAB, size=n).tolist() for n in rng.integers(1, 11, size=ROWS)]
    scores = rng.normal(size=(ROWS, VOCAB)).astype(np.float32)
    scores[0, 2:4] = -np.inf, 0
    return texts, scores


def completing(text, n):
    """Returns the ids that would complete an n-gram of `text` a second time, by the definition."""
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    return {i for i in range(VOCAB) if len(text) >= n and (*text[len(text) - n + 1 :], i) in grams}


def test_an_id_that_occurred_is_penalised_once_whatever_its_sign_and_padding_is_not(ragged):
    texts, scores = ragged
    processors = Processors.of(ProcessorConfig(repetition_penalty=1.5))
    expected = scores.copy()
    for row, text in enumerate(texts):
        for i in set(text):
            expected[row, i] *= 1.5 if scores[row, i] < 0 else 1 / 1.5
    np.testing.assert_allclose(process(scores, inputs(texts), processors), expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_occurs_twice(ragged, n):
    texts, scores = ragged
    found = np.asarray(process(scores, inputs(texts), Processors.of(ProcessorConfig(no_repeat_ngram=n))))
    banned = [completing(text, n) for text in texts]
    assert any(banned), "the texts have no repetition: the test would not check anything"
    expected = scores.copy()
    for row, ids in enumerate(banned):
        expected[row, list(ids)] = -np.inf
    np.testing.assert_array_equal(found, expected)


def test_an_ngram_longer_than_the_room_bans_nothing():
    np.testing.assert_array_equal(repeats(inputs([[2, 3]], room=2), 3, VOCAB), [[VOCAB]])


@pytest.mark.parametrize(("count", "may_end"), [(1, False), (2, True)])
def test_a_text_may_not_end_before_so_many_tokens(ragged, count, may_end):
    texts, scores = ragged
    processors = Processors.of(ProcessorConfig(min_new_tokens=2))
    found = np.asarray(process(scores, inputs(texts, count=count, stop=(4, -1)), processors))
    expected = scores.copy()
    if not may_end:
        expected[:, 4] = -np.inf
    # -1 means no id; as an index it would ban the last id of the vocabulary.
    np.testing.assert_array_equal(found, expected)


def test_banned_ids_are_never_written_and_another_number_compiles_nothing(ragged):
    texts, scores = ragged
    first = Processors.of(ProcessorConfig(banned=(3,), repetition_penalty=2.0), PromptFormat(never=(5, 3)))
    second = Processors.of(ProcessorConfig(banned=(2, 4), repetition_penalty=1.2))
    before = process._cache_size()
    for processors, ids in ((first, [3, 5]), (second, [2, 4])):
        found = np.asarray(process(scores, inputs(texts), processors))
        assert np.isneginf(found[:, ids]).all()
        assert np.isfinite(np.delete(found[1:], ids, axis=1)).all()
    assert process._cache_size() == before + 1


def test_the_default_changes_nothing(ragged):
    texts, scores = ragged
    for config in (ProcessorConfig(), ProcessorConfig(repetition_penalty=1)):
        assert apply(scores, inputs(texts), Processors.of(config)) is scores


@pytest.mark.parametrize(
    ("field", "value"),
    [("repetition_penalty", v) for v in (0, -1, float("nan"), float("inf"))]
    + [("no_repeat_ngram", -1), ("min_new_tokens", -1), ("banned", (-1,))],
)
def test_a_value_without_meaning_is_an_error_that_names_it(field, value):
    with pytest.raises(pydantic.ValidationError, match=field):
        ProcessorConfig(**{field: value})


def test_the_scores_are_those_of_transformers():
    """All processors at once, in transformers' order, on rows of one length: its processors treat padding as text."""
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(1)
    texts, scores = rng.integers(0, VOCAB, size=(8, 9)), rng.normal(size=(8, VOCAB)).astype(np.float32)
    ids = torch.tensor(texts)
    theirs = hf.LogitsProcessorList([
        hf.RepetitionPenaltyLogitsProcessor(1.3),
        hf.NoRepeatNGramLogitsProcessor(2),
        hf.NoBadWordsLogitsProcessor([[1], [3], [int(texts[0, -1]), 4], [*texts[1, -2:].tolist(), 2]], 3),
        hf.MinLengthLogitsProcessor(10, 3),
        hf.MinNewTokensLengthLogitsProcessor(5, 5, 3, device="cpu"),
        hf.SuppressTokensAtBeginLogitsProcessor([0], 9),
    ])  # fmt: skip
    config = ProcessorConfig(repetition_penalty=1.3, no_repeat_ngram=2, min_new_tokens=5, min_length=10)
    form = PromptFormat(
        never=(1,),
        never_words=((int(texts[0, -1]), 4), (*texts[1, -2:].tolist(), 2)),
        never_first=(0,),
        forced=(1, 1, 1, 1),
    )
    ours = process(scores, inputs(texts.tolist(), count=4, stop=(3,)), Processors.of(config, form))
    np.testing.assert_allclose(ours, theirs(ids, torch.tensor(scores)), rtol=1e-6)


@pytest.mark.parametrize("longest", [2, 6])
def test_words_are_found_at_the_end_of_what_is_written_and_nowhere_else(longest):
    """Compared with the definition: a row has no word longer than itself, and padding is not part of a word."""
    rng = np.random.default_rng(2)
    texts = [rng.integers(0, 3, size=n).tolist() for n in rng.integers(1, longest, size=40)]
    words = tuple({tuple(rng.integers(0, 3, size=n).tolist()) for n in rng.integers(2, 5, size=12)})
    scores = jnp.zeros((len(texts), VOCAB))
    found = np.asarray(
        process(scores, inputs(texts), Processors.of(ProcessorConfig(), PromptFormat(never_words=words)))
    )
    for text, row in zip(texts, found, strict=True):
        banned = {w[-1] for w in words if tuple(text[len(text) - len(w) + 1 :]) == w[:-1] and len(text) >= len(w) - 1}
        assert set(np.flatnonzero(np.isneginf(row)).tolist()) == banned


@pytest.mark.parametrize(("count", "forced"), [(97, False), (98, True)])
def test_the_last_token_is_the_one_that_is_forced(count, forced):
    form = PromptFormat(last=(4,), never=(4,))
    found = np.asarray(
        process(jnp.zeros((1, VOCAB)), inputs([[3]], count=count), Processors.of(ProcessorConfig(), form))
    )
    expected = np.where(np.arange(VOCAB) == 4, *((0, -np.inf) if forced else (-np.inf, 0)))
    np.testing.assert_array_equal(found[0], expected)
