"""Speculative decoding: guesses change the speed, but neither the texts nor their distribution."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from lmjax.inference.generate.generate import GenerateConfig, generate, stream
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.sampling import FilterValues, Sampling, SamplingConfig
from lmjax.inference.generate.speculative import SpeculativeWriting
from lmjax.inference.generate.speculative_rounds import rounds
from tests.inference.generate.test_sampling import improbable, reference
from tests.inference.scoring import tokenizer
from tests.inference.writers import check_greedy, log_probs, some_prompts, writer

EOS = tokenizer().eos_id
PROMPT = some_prompts(7)[0]
# Tokens that occur twice in it can be guessed.
REPETITIVE = [*PROMPT, *PROMPT, *PROMPT[:2]]


def config(**values) -> GenerateConfig:
    return GenerateConfig.model_validate({"max_new_tokens": 12} | values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rope", {"draft_tokens": 3}),
        ("window", {"lookup": 2, "draft_tokens": 3}),
        ("both", {"lookup": 1, "draft_tokens": 1}),
    ],
)
def test_greedy_texts_are_those_of_whole_passes(name, values):
    """Guesses by another model or by lookup; the slots of windows are rewound and overwritten."""
    loaded = writer(name)
    draft = None if "lookup" in values else writer(name, seed=1)
    for prompt in (PROMPT, REPETITIVE, PROMPT[:1]):
        # The limit is reached in the middle of a round.
        for limit in (12, 6):
            found = generate(loaded, [prompt], config(max_new_tokens=limit, **values), draft=draft)[0]
            check_greedy(loaded, [prompt], found, limit, (EOS,))
    *pieces, whole = stream(loaded, prompt, config(max_new_tokens=limit, **values), draft=draft)
    assert whole == found[0]
    assert "".join(pieces) == whole.text


def test_guesses_beyond_the_last_position_are_seen_by_none():
    """The last token that is read uses the last row of the position table; guesses after it have no row."""
    loaded, prompts = writer("learned"), [[*REPETITIVE, 150]]
    found = generate(loaded, prompts, config(max_new_tokens=8, lookup=2, draft_tokens=4))[0]
    check_greedy(loaded, prompts, found, 8, (EOS,))
    assert len(found[0].ids) == 8


def test_penalties_see_the_guesses_in_front_of_them():
    """The same texts as without guesses, with penalties that change them."""
    loaded, prompts = writer("rope"), [REPETITIVE, PROMPT]
    processors = {"repetition_penalty": 1.5, "no_repeat_ngram": 2, "min_new_tokens": 5}
    plain = [generate(loaded, [p], config(processors=processors))[0][0] for p in prompts]
    found = generate(loaded, prompts, config(processors=processors, draft_tokens=3, lookup=2))
    assert [each[0].ids for each in found] == [each.ids for each in plain]
    np.testing.assert_allclose([each[0].score for each in found], [each.score for each in plain], rtol=1e-4)
    free = log_probs(loaded, prompts, [each.ids for each in plain])
    assert any(each.ids != tuple(x.argmax(-1)) for each, x in zip(plain, free, strict=True))


class Begun(SpeculativeWriting):
    """Returns a state that has read its prompt and generated nothing."""

    def advance(self, steps, allowed=None):
        pass


def begun(loaded, draft, sampling, settings, prompt=PROMPT):
    return Begun(loaded, draft, Request(0, 0, tuple(prompt)), Sampling.of(sampling), settings, ()).decoding


def test_a_draft_that_is_the_model_is_always_believed():
    """Twelve tokens in three rounds of four: in each round the model adds one token to three guesses."""
    loaded = writer("rope")
    count, text = followed(loaded, loaded)
    assert (count, len(text)) == (3, 12)


def test_a_draft_guesses_what_it_would_write_itself():
    """The draft's cache drops rejected guesses: as many rounds as computed by full passes of both models."""
    loaded, rng = writer("rope"), np.random.default_rng(5)
    params = jax.tree.map(lambda x: x * rng.normal(1, 0.5, x.shape).astype(np.float32), loaded.params)
    draft = dataclasses.replace(loaded, params=params)
    count, text = followed(loaded, draft)
    done, expected = 0, 0
    while done < len(text):
        guesses = ()
        for _ in range(3):
            rows = log_probs(draft, [PROMPT], [(*text[:done], *guesses, 0)])[0]
            guesses = (*guesses, int(rows[-1].argmax()))
        kept = [guess == token for guess, token in zip(guesses, text[done:], strict=False)]
        done, expected = done + 1 + (kept.index(False) if False in kept else len(kept)), expected + 1
    assert count == expected
    assert 3 < count < 12


def followed(loaded, draft) -> tuple[int, list[int]]:
    """Returns the rounds needed for a greedy text with three guesses in each, and the text."""
    now = begun(loaded, draft, SamplingConfig(), config(draft_tokens=3))
    forms = {"model": loaded.model, "draft": draft.model, "guesses": 3, "lookup": 0}
    with jax.set_mesh(loaded.mesh):
        now = rounds(loaded.params, draft.params, now, np.int32(99), **forms)
    assert bool(now.state.done[0])
    return int(now.rounds), np.asarray(now.tokens)[0, -16:][:12].tolist()


DRAWS, VOCAB, TOKENS = 20_000, 6, 3
FILTERED = SamplingConfig(temperature=1.3, top_k=4, top_p=0.9)
# The same compiled program, with filters that drop nothing.
WHOLE = SamplingConfig(temperature=0.8, top_k=VOCAB, top_p=1 - 1e-9)
SMALL = {"vocab_size": VOCAB, "embed_dim": 8, "mlp_dim": 8, "num_heads": 1}


def joint(loaded, prompt, sampling) -> np.ndarray:
    """Returns the probability of every text of three tokens, by full passes and filters that sort."""
    texts = list(itertools.product(range(VOCAB), repeat=TOKENS))
    # The last token is never read.
    rows = log_probs(loaded, [prompt] * VOCAB**2, [(*text, 0) for text in texts[::VOCAB] for text in [text[:2]]])
    chances = {}
    for (*before, _), logits in zip(texts[::VOCAB], rows, strict=True):
        steps = [reference(row, sampling) for row in logits]
        for last in range(VOCAB):
            text = (*before, last)
            chances[text] = np.prod([steps[i][t] for i, t in enumerate(text)])
    return np.array([chances[text] for text in texts])


@pytest.mark.parametrize("guessed_by", ["draft", "lookup"])
def test_sampled_texts_are_as_likely_as_without_guesses(guessed_by):
    """Chi-squared over all texts of three tokens, with a draft of another distribution (Leviathan et al. 2023)."""
    loaded, draft = writer("rope", seed=3, **SMALL), writer("rope", seed=4, **SMALL)
    draft = draft if guessed_by == "draft" else None
    prompt = [1, 2, 1, 4, 5, 1, 2]
    settings = config(max_new_tokens=TOKENS, draft_tokens=2)
    now = begun(loaded, draft, WHOLE, settings, prompt)
    start = now.tokens.shape[1] - 16
    forms = {"model": loaded.model, "draft": draft and draft.model, "guesses": 2, "lookup": 0 if draft else 2}

    @jax.jit
    def written(seeds, numbers):
        def one(seed):
            state = now.state.replace(keys=jax.random.key(seed)[None], numbers=numbers)
            params = loaded.params, draft and draft.params
            found = rounds(*params, now.replace(state=state), np.int32(TOKENS), **forms)
            return found.tokens[0, start : start + TOKENS], found.rounds

        return jax.lax.map(one, seeds, batch_size=1000)

    for sampling in (WHOLE, FILTERED):
        numbers = dataclasses.replace(FilterValues.of(sampling), candidates=now.state.numbers.candidates)
        texts, count = written(np.arange(DRAWS, dtype=np.uint32), numbers)
        drawn = np.ravel_multi_index(np.asarray(texts).T, (VOCAB,) * TOKENS)
        expected = joint(loaded, prompt, sampling)
        assert not improbable(drawn, expected)
        # Some guesses are accepted, others are rejected.
        assert 1 < np.mean(count) < TOKENS - 0.05
        # Negative controls: errors that the test detects.
        assert improbable(
            drawn, joint(loaded, prompt, sampling.model_copy(update={"temperature": 0.95 * sampling.temperature}))
        )
        if draft:
            assert improbable(drawn, joint(draft, prompt, sampling))
