"""Beam search in the engine: the texts of `generate`, the tree of what was compared, and nothing lost for others."""

import dataclasses
import time
from collections import Counter

import numpy as np
import pytest

from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.serving.engine import FullError
from lmjax.serving.ticket import CancelledError, Found
from tests.inference.writers import log_probs, some_prompts, writer
from tests.serving.engines import SMALL, running, ticket
from tests.thinned import thinned

WITH_BEAMS = SMALL.with_fields({"beams": 3})
CASES = (
    (3, {}),
    (1, {}),
    (2, {"length_penalty": 2.0, "num_return": 2}),
    (3, {"early_stopping": True, "num_return": 3}),
)


def result(box) -> Found:
    event = box.next()
    if isinstance(event, Found):
        return event
    raise event.error


def check_tree(loaded, prompt, found, beams):
    """Nodes are consistent with the model, and the kept ones are the likeliest of each step."""
    nodes, forced = found.nodes, loaded.prompts.forced if loaded.config.family.paired else ()
    assert all(node.parent < 0 or nodes[node.parent].fate == "kept" for node in nodes)
    depths = with_depths(nodes)
    for depth in {at for at, _ in depths}:
        step = [node for at, node in depths if at == depth]
        fates = Counter(node.fate for node in step)
        assert fates["kept"] <= beams
        assert len(step) <= 2 * beams + beams
        going = [node.sum for node in step if node.fate == "kept"]
        dropped = [node.sum for node in step if node.fate == "dropped" and node.token not in loaded.prompts.stop]
        assert not going or not dropped or min(going) >= max(dropped)
    for each, last in zip(found.generations, found.last, strict=True):
        path, at = [], last
        while at >= 0:
            path.append(nodes[at])
            at = nodes[at].parent
        path.reverse()
        own = each.ids[len(forced) :]
        assert tuple(node.token for node in path) == own
        assert path[-1].fate == "ended"
        (rows,) = log_probs(loaded, [prompt], [each.ids])
        wanted = [row[i] for row, i in zip(rows[len(forced) :], own, strict=True)]
        np.testing.assert_allclose([node.log_prob for node in path], wanted, atol=2e-4)


# The second prompt is that of the last search too, which then reads only its rest.
PROMPTS = [*some_prompts(5, 20, 3), some_prompts(5, 20)[1]]
FEW = CASES[:1] + CASES[2:3]
MODELS = [("rope", CASES), ("window", FEW), ("prefix", FEW), ("learned", FEW)]


@pytest.mark.parametrize(("name", "cases"), [*thinned(MODELS, 4), ("both", FEW)])
def test_searches_find_the_texts_of_generate_and_change_no_other(name, cases):
    loaded = writer(name)
    prompts = [prompt[:12] if name == "learned" else prompt for prompt in PROMPTS[: len(cases)]]
    configs = [
        GenerateConfig(max_new_tokens=7, beams=BeamConfig(beams=n, **more), prefill_chunk=16) for n, more in cases
    ]
    greedy = GenerateConfig(max_new_tokens=9, prefill_chunk=16)
    alone = generate(loaded, [prompts[0]], greedy, seeds=[0])[0][0]
    with running(loaded, WITH_BEAMS) as engine:
        made = [ticket(loaded, prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
        engine.submit([each for each, _ in made])
        beside, box = ticket(loaded, prompts[0], greedy)
        engine.submit([beside])
        results = [result(each) for _, each in made]
        assert box.result().ids == alone.ids
        assert engine.counts.compiled == 0
        assert not any(engine.load)
        if name == "rope":
            assert engine.counts.known_tokens >= 19
    for prompt, config, found in zip(prompts, configs, results, strict=True):
        wanted = generate(loaded, [prompt], config, seeds=[0])[0]
        assert [(x.text, x.ids, x.finished) for x in found.generations] == [(x.text, x.ids, x.finished) for x in wanted]
        np.testing.assert_allclose([x.score for x in found.generations], [x.score for x in wanted], atol=1e-4)
        check_tree(loaded, prompt, found, config.beams.beams)


def test_texts_that_end_early_end_the_search_as_in_generate():
    """With ids that often end a text, and fewer beams than there may be: the best and the last ones of many."""
    loaded = writer("rope")
    likely = {i for prompt in PROMPTS for i in generate(loaded, [prompt], GenerateConfig(max_new_tokens=6))[0][0].ids}
    stop = (*loaded.prompts.stop, *sorted(likely)[::2])
    loaded = dataclasses.replace(loaded, prompts=dataclasses.replace(loaded.prompts, stop=stop))
    steps, ended = [], set()
    with running(loaded, WITH_BEAMS) as engine:
        for early in (True, False):
            fields = {"beams": 2, "num_return": 2, "early_stopping": early}
            config = GenerateConfig(max_new_tokens=12, beams=fields, prefill_chunk=16)
            wanted = generate(loaded, PROMPTS[:3], config, seeds=[0] * 3)
            for prompt, texts in zip(PROMPTS, wanted, strict=False):
                each, box = ticket(loaded, prompt, config)
                before = engine.counts.search_steps
                engine.submit([each])
                found = result(box)
                assert [x.ids for x in found.generations] == [x.ids for x in texts]
                check_tree(loaded, prompt, found, 2)
                steps.append(engine.counts.search_steps - before)
                ended |= {x.finished for x in texts}
                if early:
                    # It stops as soon as two texts have ended, and not when three have.
                    ends = sorted(depth for depth, node in with_depths(found.nodes) if node.fate == "ended")
                    assert steps[-1] == ends[1]
    assert "stop" in ended
    assert min(steps) < 11


def with_depths(nodes):
    depths = []
    for node in nodes:
        depths.append(0 if node.parent < 0 else depths[node.parent] + 1)
    return list(zip(depths, nodes, strict=True))


def test_texts_do_not_wait_for_searches_which_end_when_nobody_waits(monkeypatch):
    loaded = writer("rope")
    search = GenerateConfig(max_new_tokens=40, beams=BeamConfig(beams=3, early_stopping="never"), prefill_chunk=16)
    text = GenerateConfig(max_new_tokens=4, prefill_chunk=16)
    prompt = some_prompts(5)[0]
    with running(loaded, WITH_BEAMS.with_fields({"queue": 2})) as engine:
        order = []
        searches = [ticket(loaded, prompt, search) for _ in range(3)]
        for each, _ in searches:
            send = each.send
            each.send = lambda event, send=send: (order.append(event), send(event))
        engine.submit([each for each, _ in searches])
        with pytest.raises(FullError):
            engine.submit([ticket(loaded, prompt, search)[0]])
        made = [ticket(loaded, prompt, text) for _ in range(4)]
        engine.submit([each for each, _ in made[:4]])
        for _, box in made:
            box.result()
        assert sum(isinstance(event, Found) for event in order) <= 1, "a text waits for no search but beside it"
        for each, _ in searches:
            each.cancel()
        ends = [box.next() for _, box in searches]
        assert all(isinstance(end, Found) or isinstance(end.error, CancelledError) for end in ends)
        deadline = time.monotonic() + 20
        while any(engine.load):
            assert time.monotonic() < deadline
        # An error of a search is its own.
        with monkeypatch.context() as patch:
            patch.setattr(engine._searches, "_stepped", lambda _: 1 / 0)
            lost, box = ticket(loaded, prompt, search)
            kept, beside = ticket(loaded, prompt, text)
            engine.submit([lost])
            engine.submit([kept])
            with pytest.raises(ZeroDivisionError):
                result(box)
            assert len(beside.result().ids) == 4
        again, box = ticket(loaded, prompt, search)
        engine.submit([again])
        assert result(box).generations
        assert engine.counts.compiled == 0
