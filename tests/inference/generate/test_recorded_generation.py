"""Texts equal those of transformers' `generate`, token for token: 200 prompts of mixed lengths for each model."""

import functools
import pathlib

import numpy as np
import pytest

from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.runs.trained import load_model
from tests.inference.generate.cases import CASES, NEW_TOKENS, PAD, PROMPTS, Run, runs

FOLDER = pathlib.Path(__file__).parent / "recorded"


@functools.cache
def loaded(name: str):
    """Returns the model and what was recorded."""
    with np.load(FOLDER / name / "texts.npz") as texts:
        return load_model(str(FOLDER / name)), dict(texts)


def config(run: Run) -> GenerateConfig:
    """Returns lmjax's config for recorded settings."""
    values = {"max_new_tokens": NEW_TOKENS, "batch_size": PROMPTS}
    values["processors"] = {
        "repetition_penalty": run.repetition_penalty,
        "no_repeat_ngram": run.no_repeat_ngram,
    }
    if run.beams > 1:
        names = ("beams", "length_penalty", "early_stopping", "num_return")
        values["beams"] = {name: getattr(run, name) for name in names}
    return GenerateConfig.model_validate(values)


@pytest.mark.parametrize("name", CASES)
def test_the_same_texts_and_scores(name):
    model, expected = loaded(name)
    prompts = [row[row != PAD].tolist() for row in expected["prompts"]]
    assert len(prompts) == PROMPTS
    for i, run in enumerate(runs(CASES[name])):
        ids, lengths, scores = (expected[f"{kind}.{i}"] for kind in ("ids", "lengths", "scores"))
        found = generate(model, prompts, config(run))
        ours = [[list(each.ids) for each in texts] for texts in found]
        theirs = [[row[:n] for row, n in zip(*each, strict=True)] for each in zip(ids.tolist(), lengths, strict=True)]
        wrong = [each for each in zip(prompts, ours, theirs, strict=True) if each[1] != each[2]]
        assert not wrong, f"{run}: {len(wrong)} of {PROMPTS} differ; prompt, ours, theirs: {wrong[0]}"
        np.testing.assert_allclose([[each.score for each in ours] for ours in found], scores, rtol=1e-5, atol=1e-4)
