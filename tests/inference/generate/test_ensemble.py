"""An ensemble generates by the mean of its members' logits, which full passes of each member give."""

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax

from lmjax.errors import FlagError
from lmjax.inference.ensemble import joined
from lmjax.inference.generate.generate import GenerateConfig, generate
from tests.inference.writers import log_probs, some_prompts, writer

PROMPTS = some_prompts(5, 9, 3)


def members(name):
    """Returns models of different sizes; their last one has as many layers as both others have."""
    return writer(name), writer(name, seed=1, embed_dim=24), writer(name, seed=2, num_layers=2)


def means(models, texts):
    """Returns for each prompt the log-probabilities `[tokens, vocab]` of its text by the mean logits of the models."""
    found = [log_probs(model, PROMPTS, texts) for model in models]
    return [log_softmax(sum(rows[i] for rows in found) / len(models), axis=-1) for i in range(len(PROMPTS))]


@pytest.mark.parametrize("name", ["rope"])
def test_greedy_texts_are_those_of_the_mean_logits(name):
    models = members(name)
    found = [each for (each,) in generate(joined(models), PROMPTS, GenerateConfig(max_new_tokens=10))]
    alone = [each for (each,) in generate(models[0], PROMPTS, GenerateConfig(max_new_tokens=10))]
    assert [each.ids for each in found] != [each.ids for each in alone]
    forced = len(models[0].prompts.forced)
    for each, rows in zip(found, means(models, [each.ids for each in found]), strict=True):
        never = list(models[0].prompts.never)
        rows[:, never] = -np.inf
        assert [int(row.argmax()) for row in rows[forced:]] == list(each.ids[forced:])


@pytest.mark.parametrize("name", ["both"])
def test_the_scores_of_beams_are_those_of_the_mean_logits(name):
    models = members(name)
    settings = GenerateConfig.model_validate({"max_new_tokens": 8, "beams": {"beams": 3, "length_penalty": 0.0}})
    found = [each for (each,) in generate(joined(models), PROMPTS, settings)]
    forced = len(models[0].prompts.forced)
    for each, rows in zip(found, means(models, [each.ids for each in found]), strict=True):
        own = sum(row[i] for row, i in list(zip(rows, each.ids, strict=True))[forced:])
        assert each.score == pytest.approx(own, abs=1e-4)


def test_an_ensemble_of_one_is_the_model_itself():
    assert joined([writer("rope")]) is writer("rope")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: writer("both"), "has the family encoder_decoder, and the first one decoder"),
        (lambda: writer("rope", vocab_size=200), "has the number of vocabulary rows 200, and the first one 192"),
        (
            lambda: dataclasses.replace(
                writer("rope"), model=dataclasses.replace(writer("rope").model, heads=("classifier",))
            ),
            "predicts no tokens",
        ),
    ],
)
def test_models_that_do_not_fit_together_are_refused(other, words):
    with pytest.raises(FlagError, match=words):
        joined([writer("rope"), other()])
