"""A compressed workdir is served as it generates: its texts, its beams and its attention, without a new program."""

import pathlib

import numpy as np
import pytest

from lmjax import cli
from lmjax.analysis.attention import all_attention
from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.runs.trained import load_model
from tests.serving.engines import SMALL, running, ticket
from tests.thinned import thinned

RECORDED = pathlib.Path(__file__).parent.parent / "inference/generate/recorded/gpt2_trained"


@pytest.mark.parametrize("method", thinned(["int8", "nf4", "int8_activations", "magnitude"], 4))
def test_a_compressed_model_is_served_as_it_generates(tmp_path, method, capsys):
    more = ["--group=16"] if method in ("int8", "nf4") else ["--amount=0.5"] if method == "magnitude" else []
    cli.run(["compress", f"--model={RECORDED}", f"--method={method}", *more, f"--to={tmp_path / 'small'}"])
    loaded = load_model(tmp_path / "small")
    prompts = [[3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    greedy = GenerateConfig(max_new_tokens=8, prefill_chunk=16)
    search = GenerateConfig(max_new_tokens=8, prefill_chunk=16, beams=BeamConfig(beams=2))
    wanted = [generate(loaded, prompts, config, seeds=[0, 0]) for config in (greedy, search)]
    with running(loaded, SMALL.with_fields({"max_length": 32, "beams": 2})) as engine:
        made = [ticket(loaded, prompt, config) for config in (greedy, search) for prompt in prompts]
        for part in (made[:2], made[2:]):
            engine.submit([each for each, _ in part])
        assert [box.result().ids for _, box in made[:2]] == [texts[0].ids for texts in wanted[0]]
        assert [box.next().generations[0].ids for _, box in made[2:]] == [texts[0].ids for texts in wanted[1]]
        (maps,) = engine.call(lambda: all_attention(loaded, loaded.rows([prompts[0]]))).result()
        assert engine.counts.compiled == 0
    np.testing.assert_allclose(maps.weights.sum(-1), 1, atol=1e-4)
