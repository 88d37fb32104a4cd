"""The exposure of a secret is high if the model has learned it, and that of a random one if it has not."""

import json
import random

import numpy as np
import pytest

import lmjax
from lmjax.audit import bench
from lmjax.audit.canaries import alternatives, canaries, exposures
from lmjax.errors import DataError
from lmjax.inference.score.score import Score
from lmjax.inference.score.texts import ScoreConfig
from tests.conftest import sentence


def planted(path, *pairs):
    path.write_text("".join(json.dumps({"text": text, "secret": secret}) + "\n" for text, secret in pairs))
    return str(path)


def test_others_have_the_form_of_a_secret():
    found = alternatives("a7-Z9", 300, 0, "x")
    assert all(x[0].islower() and x[1].isdigit() and x[2] == "-" and x[3].isupper() and x[4].isdigit() for x in found)
    assert len(set(found)) > 250
    assert found == alternatives("a7-Z9", 300, 0, "x") != alternatives("a7-Z9", 300, 1, "x")
    # Two digits have 99 others, of which none is the secret itself.
    assert set(alternatives("42", 3000, 0, "x")) == {f"{i:02}" for i in range(100)} - {"42"}


def test_exposure_by_hand():
    """Ranks 1, 4 and 8 of 8: 3, 1 and 0 bits; an equal likelihood is no advantage."""
    rows = [[9, *range(7)], [4, 5, 6, 7, 0, 1, 2, 3], [0, 0, 1, 1, 1, 1, 1, 1]]
    scores = [Score(float(x), 1, False, 1) for row in rows for x in row]
    found = exposures(scores, 7).measurement.values
    assert found["exposure, bits"] == pytest.approx(np.mean([3, 1, 0]))
    assert found["likelier than all others, %"] == pytest.approx(100 / 3)


def test_a_planted_secret_is_exposed_and_one_that_was_not_is_not(tiny, corpus, tmp_path):
    rng, text = random.Random(0), "The number of the king is 4817."
    data = tmp_path / "data.txt"
    data.write_text("\n\n".join([*[text] * 24, *(sentence(rng) for _ in range(4))]))
    config = tiny(data__train=data, data__eval=f"dev={corpus}", steps=60, batch_size=4, evaluation__every=0,
                  optimizer__learning_rate=0.02, optimizer__warmup_steps=4, tokenizer__byte_fallback="true",
                  model__dropout__residual=0, model__dropout__attention=0)  # fmt: skip
    loaded = lmjax.load_model(lmjax.train(config, tmp_path / "run", progress=False))
    found = {}
    for name, secret in (("planted", "4817"), ("other", "5096")):
        made = canaries(planted(tmp_path / f"{name}.jsonl", (text.replace("4817", secret), secret)), 127)
        found[name] = {f.name: f.value for f in bench.section(made, loaded, None, ScoreConfig()).findings}
    assert found["planted"]["exposure, bits"] == 7
    assert found["planted"]["likelier than all others, %"] == 100
    assert found["other"]["exposure, bits"] < 4


def test_what_is_no_canary_is_refused(tmp_path):
    for pair, message in ((("My number is 12.", "13"), r"x\.jsonl:1: the text lacks its secret '13'"),
                          (("My number is 1.", "1"), "fewer than 100 others of its form")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            canaries(planted(tmp_path / "x.jsonl", pair))
    (tmp_path / "y.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="a canary needs text and secret"):
        canaries(str(tmp_path / "y.jsonl"))
