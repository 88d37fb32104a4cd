"""The engine writes for each request what `generate` writes for it alone, whoever joins, leaves or fails beside it."""

import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.model import abstract_adapter, make_model
from lmjax.adapters.several import together
from lmjax.commands.serve import with_base
from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.generate.processors import ProcessorConfig
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.model.parameters import unboxed
from lmjax.serving import slots
from lmjax.serving.engine import ClosedError, FullError
from lmjax.serving.ticket import CancelledError, Ended, OverdueError
from tests.inference.writers import MODELS, some_prompts, writer
from tests.serving.engines import SMALL, running, ticket
from tests.thinned import thinned

GREEDY = SamplingConfig()
SETTINGS = (
    {"sampling": GREEDY, "max_new_tokens": 9},
    {"sampling": SamplingConfig(temperature=1.0), "max_new_tokens": 12},
    {"sampling": SamplingConfig(temperature=0.7, top_k=5), "max_new_tokens": 5},
    {"sampling": GREEDY, "max_new_tokens": 7, "processors": ProcessorConfig(repetition_penalty=1.5)},
    {"sampling": SamplingConfig(temperature=2.0, top_p=0.5, min_p=0.02), "max_new_tokens": 11},
    {"sampling": SamplingConfig(temperature=1.3, typical_p=0.6), "max_new_tokens": 4},
    {"sampling": GREEDY, "max_new_tokens": 8, "processors": ProcessorConfig(no_repeat_ngram=2, min_new_tokens=4)},
)
LENGTHS = (3, 17, 1, 9, 12, 5, 2)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """The tiny batches of this file have several sizes too."""
    monkeypatch.setattr(slots, "_SMALLEST", 20)


@pytest.mark.parametrize("name", thinned(MODELS, 2))
def test_texts_do_not_depend_on_their_neighbours_and_nothing_is_compiled(name):
    loaded = writer(name)
    prompts = some_prompts(*(min(n, 12) if name == "learned" else n for n in LENGTHS))
    configs = [GenerateConfig(**values, prefill_chunk=16) for values in SETTINGS]
    wanted = [generate(loaded, [p], c, seeds=[i])[0][0] for i, (p, c) in enumerate(zip(prompts, configs, strict=True))]
    with running(loaded) as engine:
        # Three rows for fourteen texts: each joins beside others, which leave while it is written.
        made = [ticket(loaded, prompts[i], configs[i], i) for i in (*range(7), *reversed(range(7)))]
        engine.submit([each for each, _ in made])
        found = [box.result() for _, box in made]
        assert engine.counts.compiled == 0
        assert engine.counts.steps < sum(len(each.ids) for each in found), "texts are written together"
        each, box = ticket(loaded, prompts[2], GenerateConfig(max_new_tokens=4))
        engine.submit([each])
        box.result()
        slots = engine._rows.slots
        assert slots.now == slots.sizes[0], "the texts that have ended take no slots"
    for i, (each, alone) in enumerate(zip(found, [*wanted, *reversed(wanted)], strict=True)):
        assert (each.text, each.ids, each.finished) == (alone.text, alone.ids, alone.finished)
        # Repeated n-grams are banned by a mask, over whose ids the probabilities are normalised.
        if "processors" not in SETTINGS[min(i, 13 - i)] or not SETTINGS[min(i, 13 - i)]["processors"].no_repeat_ngram:
            assert each.score == pytest.approx(alone.score, abs=1e-3)


def test_a_mixture_of_ends_and_errors_leaves_others_as_they_are():
    loaded = writer("rope")
    config = GenerateConfig(max_new_tokens=20, prefill_chunk=16)
    prompts = some_prompts(4, 5, 6, 30, 7)
    wanted = generate(loaded, [prompts[4]], config, seeds=[0])[0][0]
    with running(loaded) as engine:
        cancelled, gone = ticket(loaded, prompts[0], config)
        overdue, late = ticket(loaded, prompts[1], config, deadline=time.monotonic())
        deaf, _ = ticket(loaded, prompts[2], config)
        deaf.send = None  # calling it fails, as when the event loop of its receiver has ended
        long, whole = ticket(loaded, prompts[3], config)
        kept, box = ticket(loaded, prompts[4], config)
        engine.submit([cancelled, overdue, deaf, long, kept])
        gone.next()
        cancelled.cancel()
        with pytest.raises(CancelledError):
            gone.result()
        with pytest.raises(OverdueError):
            late.result()
        assert box.result().ids == wanted.ids
        assert len(whole.result().ids) == 20
        counts = engine.counts
        assert (counts.cancelled, counts.overdue, counts.failed, counts.ended) == (2, 1, 0, 2)
        assert not any(engine.load), "every row is free again"


def test_a_full_queue_refuses_and_clients_take_turns():
    loaded = writer("rope")
    config = GenerateConfig(max_new_tokens=8, prefill_chunk=16)
    with running(loaded, SMALL.with_fields({"rows": 1, "queue": 4})) as engine:
        order, made, held = [], [], threading.Event()
        engine.call(held.wait)
        for client in ("greedy", "greedy", "greedy", "greedy", "other"):
            each, box = ticket(loaded, some_prompts(4)[0], config, client=client)
            send = each.send
            each.send = lambda event, send=send, client=client: (
                order.append(client) if isinstance(event, Ended) else None,
                send(event),
            )
            made.append((each, box))
        engine.submit([each for each, _ in made])
        with pytest.raises(FullError) as error:
            engine.submit([ticket(loaded, some_prompts(4)[0], config)[0]])
        assert error.value.after >= 1
        held.set()
        for _, box in made:
            box.result()
    assert order.index("other") <= 1, f"the other client waits for one text, not for four: {order}"


def test_an_error_of_the_device_fails_its_texts_and_the_next_ones_are_written(monkeypatch):
    loaded = writer("rope")
    config = GenerateConfig(max_new_tokens=6, prefill_chunk=16)
    prompt = some_prompts(4)[0]
    with running(loaded) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine._rows, "step", lambda *_: 1 / 0)
            lost, box = ticket(loaded, prompt, config)
            engine.submit([lost])
            with pytest.raises(ZeroDivisionError):
                box.result()
        after, box = ticket(loaded, prompt, config)
        engine.submit([after])
        assert box.result().ids == generate(loaded, [prompt], config, seeds=[0])[0][0].ids
        assert engine.counts.compiled == 0


def test_an_error_of_one_prompt_fails_its_ticket_alone():
    loaded = writer("rope")
    config = GenerateConfig(max_new_tokens=12, prefill_chunk=16)
    first, second = some_prompts(4, 5)
    with running(loaded) as engine:
        kept, box = ticket(loaded, first, config)
        engine.submit([kept])
        box.tokens.append(box.next())
        wrong, lost = ticket(loaded, second, config, bias={10**9: 1.0})
        engine.submit([wrong])
        with pytest.raises(IndexError):
            lost.result()
        assert box.result().ids == generate(loaded, [first], config, seeds=[0])[0][0].ids


def test_what_waits_is_finished_when_the_engine_drains():
    loaded = writer("rope")
    config = GenerateConfig(max_new_tokens=6, prefill_chunk=16)
    with running(loaded) as engine:
        made = [ticket(loaded, prompt, config) for prompt in some_prompts(3, 4, 5, 6, 7)]
        engine.submit([each for each, _ in made])
        work = engine.call(lambda: 7)
        assert engine.drain(60)
        assert all(box.result().ids for _, box in made)
        assert work.result() == 7
        with pytest.raises(ClosedError):
            engine.submit([made[0][0]])


def test_each_row_has_its_adapter_and_zeros_are_the_base():
    base = writer("rope", num_layers=2)
    adapter = AdapterConfig(kind="lora", rank=2, targets="query|out")
    model = make_model(base.config, (), adapter)
    shapes = unboxed(abstract_adapter(model))
    adapters = {}
    for name, seed in (("a", 1), ("b", 2)):
        rng = np.random.default_rng(seed)
        own = jax.tree.map(lambda x, rng=rng: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
        adapters[name] = (adapter, own)
    several = with_base(together(adapters), "base")
    shared = dataclasses.replace(base, model=model)
    config = GenerateConfig(max_new_tokens=8, prefill_chunk=16)
    prompt = some_prompts(5)[0]
    wanted = [generate(base, [prompt], config, seeds=[0])[0][0].ids]
    for name in ("a", "b"):
        alone = dataclasses.replace(shared, params=several.one(base.params, name))
        wanted.append(generate(alone, [prompt], config, seeds=[0])[0][0].ids)
    assert len(set(wanted)) == 3, "each adapter changes the text"
    search = GenerateConfig(max_new_tokens=8, prefill_chunk=16, beams=BeamConfig(beams=2))
    best = generate(alone, [prompt], search, seeds=[0])[0][0]
    with running(shared, SMALL.with_fields({"beams": 2}), several) as engine:
        made = [ticket(shared, prompt, config, adapter=number) for number in (2, 0, 1, 0, 2, 1)]
        engine.submit([each for each, _ in made])
        found = [box.result().ids for _, box in made]
        searched, box = ticket(shared, prompt, search, adapter=2)
        engine.submit([searched])
        assert box.next().generations[0].ids == best.ids
        assert engine.counts.compiled == 0
    assert found == [wanted[number] for number in (2, 0, 1, 0, 2, 1)]


@pytest.mark.parametrize("name", ["rope", "learned", "window"])
def test_a_prompt_that_begins_like_another_reads_only_its_rest(name):
    """A conversation of growing prompts, a prompt within it and one beside it; a layer with a window keeps none."""
    loaded = writer(name, max_length=64)
    whole = some_prompts(60)[0]
    prompts = [whole[:18], whole[:30], whole[:44], whole[:25], [*whole[:22], *whole[:6]], whole[:30], whole[40:60]]
    config = GenerateConfig(max_new_tokens=5, prefill_chunk=16)
    wanted = [each[0].ids for each in generate(loaded, prompts, config, seeds=[0] * len(prompts))]
    with running(loaded) as engine:
        known = []
        for prompt, ids in zip(prompts, wanted, strict=True):
            before = engine.counts.known_tokens
            each, box = ticket(loaded, prompt, config)
            engine.submit([each])
            assert box.result().ids == ids
            known.append(engine.counts.known_tokens - before)
        assert engine.counts.compiled == 0
    assert known == ([0] * 7 if name == "window" else [0, 18, 30, 24, 22, 29, 0])
