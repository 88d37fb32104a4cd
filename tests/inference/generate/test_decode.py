"""The decode loop: a text that joins a running batch equals the text generated alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.inference.generate import decode
from lmjax.inference.generate.beam import BeamConfig, BeamSearch
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.generate.processors import ProcessorConfig, Processors
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.sampling import Sampling, SamplingConfig
from lmjax.inference.generate.writing import read_prompts
from lmjax.model.cache import Cache
from tests.inference.writers import some_prompts, writer

pytestmark = pytest.mark.long

PROMPTS = some_prompts(5, 17, 9, 12, 3)
LIMITS = (12, 7, 16, 9, 5)
# Steps, then the request that the next text replaces: an ended one, a running one, and one after more steps.
JOINS = ((6, 0), (3, 1), (9, 1))
SAMPLED = SamplingConfig(temperature=1.0, top_k=20)
PENALTIES = ProcessorConfig(repetition_penalty=1.3, min_new_tokens=3)


def _begin(loaded, strategy, prompts, texts, **kwargs):
    """Returns a batch of texts with their first token chosen, and the column of that token."""
    starts = (*loaded.prompts.start, *loaded.prompts.forced)
    requests = [Request(text, text, tuple(prompts[text])) for text in texts]
    if loaded.config.architecture == "encoder_decoder":
        requests = [Request(r.index, r.seed, starts, r.prompt) for r in requests]
    logits, cache, known = read_prompts(
        loaded, requests, new_columns=16, limit=0, stop=loaded.prompts.stop, chunk=16, **kwargs
    )
    known["limit"] = np.array([LIMITS[text] for text in texts], np.int32)
    state = strategy.start(np.array(texts, np.uint32), known["tokens"].shape[1])
    return decode.begin(logits, cache, state, known, None, strategy=strategy), int(known["column"][0])


def _join_and_leave(loaded, strategy, results, prompts=PROMPTS, **kwargs):
    """Yields the number and `results` of each ended text; all are generated in one batch of two requests.

    Args:
        loaded: the model.
        strategy: chooses the tokens.
        results: of a batch, a request in it, and the column at which its text starts.
        prompts: of the texts.
        **kwargs: of `read_prompts`.
    """

    def run(batch, steps):
        return decode.run(loaded.params, batch, np.int32(steps), None, model=loaded.model, strategy=strategy)

    batch, start = _begin(loaded, strategy, prompts, (1, 0), **kwargs)
    texts, starts = [1, 0], [start, start]
    for text, (steps, request) in enumerate(JOINS, 2):
        batch = run(batch, steps)
        if strategy.finished(batch.state)[request]:
            yield texts[request], results(batch, request, starts[request])
        other, starts[request] = _begin(loaded, strategy, prompts, (text,), **kwargs)
        texts[request] = text
        batch = decode.join(batch, other, np.int32(request), strategy=strategy)
    batch = run(batch, 99)
    for request, text in enumerate(texts):
        yield text, results(batch, request, starts[request])


def _written(batch, request, start):
    ids = np.asarray(batch.tokens)[request, start : int(batch.column[request])]
    return tuple(ids.tolist()), float(batch.state.scores[request])


# Every model; with each kind of cache a full and a local layer, and a sampled and a greedy text.
@pytest.mark.parametrize(
    ("name", "sampling", "kind"),
    [
        ("rope", SAMPLED, "compute"),
        ("rope", SamplingConfig(), "int8"),
        ("learned", SAMPLED, "compute"),
        ("window", SamplingConfig(), "compute"),
        ("window", SAMPLED, "int8"),
        ("both", SAMPLED, "compute"),
        ("both", SamplingConfig(), "int8"),
    ],
    ids=lambda x: x if isinstance(x, str) else "sampled" if x is SAMPLED else "greedy",
)
def test_texts_that_join_late_are_written_as_alone(name, sampling, kind):
    loaded = writer(name)
    strategy = Sampling.of(sampling, Processors.of(PENALTIES, loaded.prompts))
    found = dict(_join_and_leave(loaded, strategy, _written, kind=kind))
    assert set(found) >= {1, 2, 3, 4}
    for text, (ids, score) in found.items():
        config = GenerateConfig(
            max_new_tokens=LIMITS[text], sampling=sampling, processors=PENALTIES, cache=kind, prefill_chunk=16
        )
        alone = generate(loaded, [PROMPTS[text]], config, seeds=[text])[0][0]
        assert (*(loaded.prompts.forced), *ids) == alone.ids
        np.testing.assert_allclose(score, alone.score, atol=1e-4)


def test_beams_that_join_late_find_what_they_find_alone():
    loaded, config = writer("rope"), BeamConfig(beams=3, num_return=3)
    strategy = BeamSearch.of(config, Processors.of(ProcessorConfig(), loaded.prompts))

    def found(batch, request, start):
        ids, lengths, scores = strategy.results(batch.state)
        return [row[:length].tolist() for row, length in zip(ids[request], lengths[request], strict=True)], scores[
            request
        ]

    # All prompts have the same columns, and their beam states the same room.
    prompts = [prompt[:12] for prompt in PROMPTS]
    for text, (texts, scores) in _join_and_leave(loaded, strategy, found, prompts):
        alone = generate(loaded, [prompts[text]], GenerateConfig(max_new_tokens=LIMITS[text], beams=config))[0]
        assert texts == [list(each.ids) for each in alone]
        np.testing.assert_allclose(scores, [each.score for each in alone], atol=1e-4)


def test_a_batch_that_has_one_number_of_slots_for_all_writes_other_texts(monkeypatch):
    """Negative control: the joining request is at another slot than its batch."""
    loaded, strategy = writer("rope"), Sampling.of(SamplingConfig(), Processors.of(PENALTIES))
    right = dict(_join_and_leave(loaded, strategy, _written))
    put = Cache.put
    monkeypatch.setattr(Cache, "put", lambda *args: _levelled(put(*args)))
    decode._join.clear_cache()
    wrong = dict(_join_and_leave(loaded, strategy, _written))
    decode._join.clear_cache()
    assert right[1] == wrong[1], "the broken batch must not change the text that did not join"
    assert [text for text in right if right[text] != wrong[text]]


def _levelled(cache):
    return cache.replace(filled=jnp.full_like(cache.filled, jnp.min(cache.filled)))


def test_a_text_that_has_ended_stays_as_it_is_while_others_are_written():
    """Its positions too: a table of learned positions may have no row beyond the limit."""
    loaded, strategy = writer("learned"), Sampling.of(SamplingConfig())
    short, _ = _begin(loaded, strategy, PROMPTS, (4, 0))
    model, fields = loaded.model, ("tokens", "written", "positions", "column", "count")

    def run(batch, steps):
        return decode.run(loaded.params, batch, np.int32(steps), None, model=model, strategy=strategy)

    ended = run(short, LIMITS[4] - 1)
    assert list(strategy.finished(ended.state)) == [True, False]
    before = {name: np.asarray(getattr(ended, name)) for name in fields}
    after = run(ended, 4)
    for name in fields:
        found = np.asarray(getattr(after, name))
        np.testing.assert_array_equal(found[0], before[name][0], err_msg=name)
        assert (found[1] != before[name][1]).any()
    assert before["positions"][0] == len(PROMPTS[4]) + LIMITS[4] - 1
