"""Attributions equal those of captum, sum up to the change of the output, and follow a change of each token by hand."""

import dataclasses
import itertools
import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.analysis.attribution import METHODS, Attribution, AttributionConfig, attribute
from lmjax.analysis.subject import Subject, answer, decision, likeness, masked_token, next_token, sentence, values
from lmjax.analysis.values import Ask
from lmjax.errors import FlagError
from lmjax.interop.checkpoint import Checkpoint
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.quantized import QuantizationConfig, quantize_layers
from lmjax.objectives.question_answering import QuestionAnsweringConfig
from tests.analysis import captum_numbers
from tests.analysis.test_inside import classifier
from tests.inference.scoring import tiny

TEXT, TARGET = "The old king goes", "A queen"
MASKED = "The old [MASK] goes"


def answerer():
    """Returns a model that answers questions."""
    base = tiny("encoder", max_length=32)
    model = LanguageModel(base.config, ("span",))
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), shapes)
    tasks = {"question_answering": QuestionAnsweringConfig()}
    return dataclasses.replace(base, model=model, params=params, tasks=tasks, length=32)


SUBJECTS = {
    "next token": lambda: next_token(tiny("decoder", num_layers=2), TEXT),
    "difference": lambda: next_token(tiny("decoder", num_layers=2), TEXT, " king", " queen"),
    "masked token": lambda: masked_token(tiny("encoder"), MASKED),
    "label": lambda: decision(classifier(), {"text": TEXT}, "fine"),
    "answer": lambda: answer(answerer(), {"question": "who goes", "context": "The old king goes"}),
    "likeness": lambda: likeness(tiny("encoder"), TEXT, TARGET),
    "generated": lambda: sentence(tiny("encoder_decoder"), TEXT, max_new_tokens=4)[1],
    "target": lambda: sentence(tiny("decoder"), TEXT, TARGET)[1],
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request) -> Subject:
    return SUBJECTS[request.param]()


@pytest.fixture(scope="module")
def bert() -> Subject:
    """Returns the subject of `captum_numbers`."""
    base = tiny("encoder")
    checkpoint = Checkpoint(captum_numbers.FOLDER)
    description = checkpoint.description
    model = LanguageModel(description.config, description.heads)
    loaded = dataclasses.replace(base, model=model, params=checkpoint.params(description.config, base.mesh))
    ids = np.array([captum_numbers.IDS], np.int32)
    fields = {"tokens": ids, "segment_ids": np.ones_like(ids)}
    return Subject(loaded, fields, Ask("classifier", "logit", index=captum_numbers.LABEL), "")


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_gradients_equal_those_of_captum_in_float64(method, bert):
    expected = json.loads(captum_numbers.RECORDED.read_text())[method]
    found = attribute(bert, method, AttributionConfig(baseline="pad", tolerance=1e-6))
    np.testing.assert_allclose(found.scores, expected, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_captum_still_gives_the_recorded_numbers():
    pytest.importorskip("captum")
    pytest.importorskip("transformers")
    recorded = json.loads(captum_numbers.RECORDED.read_text())
    for method, scores in captum_numbers.attributions().items():
        np.testing.assert_allclose(scores, recorded[method], atol=1e-10)


def test_integrated_gradients_are_complete_for_each_kind_of_output(subject):
    found = attribute(subject, "integrated")
    assert found.gap <= 1e-3
    assert abs(found.value - found.baseline) > 1e-3, "nothing to explain"
    assert found.scores.sum() == pytest.approx(found.value - found.baseline, abs=2e-3)
    kept = [token.kept for token in subject.tokens]
    np.testing.assert_allclose(found.scores[kept], 0, atol=1e-6)
    assert np.abs(found.scores).max() > 1e-3


def test_points_are_not_doubled_to_no_purpose_where_activations_are_rounded():
    """Their gradient sums to the change only up to the rounding; a judged attribution is computed for each stage."""
    base = tiny("decoder")
    form = QuantizationConfig(weights="int8", activations="int8", stored=True)
    model = base.model.clone(config=base.config.with_fields({"quantization": form}))
    rounded = dataclasses.replace(base, model=model, params=quantize_layers(base.params, form))
    both = [attribute(next_token(loaded, TEXT, " king"), "integrated") for loaded in (rounded, base)]
    assert 1e-3 < both[0].gap < 0.2 * abs(both[0].value - both[0].baseline)
    assert both[0].passes == 2 + 16 + 32 + 64
    np.testing.assert_allclose(both[0].scores, both[1].scores, atol=0.1 * np.abs(both[1].scores).max())


def test_an_occlusion_is_the_change_when_a_token_becomes_a_mask(subject):
    loaded, found = subject.loaded, attribute(subject, "occlusion", AttributionConfig(baseline="mask"))
    for number, token in enumerate(subject.tokens):
        fields = {name: x.copy() for name, x in subject.fields.items()}
        if not token.kept:
            fields[f"{token.side}tokens"][0, token.position] = loaded.tokenizer.mask_id
        changed = values(loaded, fields, subject.ask)[0]
        assert found.scores[number] == pytest.approx(subject.value - changed, abs=1e-4)


def test_only_what_was_read_has_a_part_in_a_generated_token():
    """Each token of a sentence is explained by the prompt and the tokens before it, in the same row."""
    first, second, *_ = sentence(tiny("encoder_decoder"), TEXT, max_new_tokens=4)
    assert len(second.tokens) == len(first.tokens) + 1
    assert second.tokens[-1].text == first.name
    assert {token.side for token in first.tokens} == {"encoder_", "decoder_"}
    later = {name: x.copy() for name, x in first.fields.items()}
    later["decoder_tokens"][0, first.ask.position + 1 :] = 7
    assert values(first.loaded, later, first.ask)[0] == pytest.approx(first.value, abs=1e-5)


def test_the_number_of_a_subject_is_that_of_the_models_own_output():
    loaded = tiny("decoder", num_layers=2)
    subject = next_token(loaded, TEXT)
    found = loaded([TEXT])
    logits = found.logits[0, found.mask[0].sum() - 1].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert subject.ask.index == shares[: loaded.tokenizer.vocab_size].argmax()
    assert subject.probability == pytest.approx(shares[subject.ask.index], abs=1e-5)
    both = next_token(loaded, TEXT, 20, 30)
    assert both.value == pytest.approx(logits[20] - logits[30], abs=1e-4)
    text, other = loaded([TEXT]), loaded([TARGET])
    vectors = [x.hidden[0][x.mask[0]].mean(axis=0) for x in (text, other)]
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert likeness(loaded, TEXT, TARGET).value == pytest.approx(cosine, abs=1e-5)


class Game:
    """A function of which of three tokens are there, in place of a model."""

    def __init__(self, worth, **settings):
        self.config = AttributionConfig(**settings)
        self.subject = type("Three", (), {"free": np.arange(3), "tokens": (None,) * 3, "value": worth((1, 1, 1))})
        self._worth = worth

    def __call__(self, there):
        return np.array([self._worth(tuple(int(x) for x in row)) for row in there], np.float64)


def test_lime_finds_the_weights_of_a_linear_function():
    pytest.importorskip("sklearn")
    game = Game(lambda x: 3.0 * x[0] - 2.0 * x[1] + 0.5, samples=500, ridge=1e-3)
    np.testing.assert_allclose(METHODS["lime"](game)[0], [3.0, -2.0, 0.0], atol=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_kernel_shap_finds_shapley_values():
    pytest.importorskip("shap")

    def worth(x):
        return 2.0 * x[0] * x[1] + x[2] - 0.5 * x[0] * x[2] + 1.0

    expected = np.zeros(3)
    for order in itertools.permutations(range(3)):
        there = [0, 0, 0]
        for i in order:
            before = worth(there)
            there[i] = 1
            expected[i] += (worth(there) - before) / math.factorial(3)
    scores, sums = METHODS["shap"](Game(worth))
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert sums


def test_smoothgrad_without_noise_is_gradient_x_input(bert):
    plain = attribute(bert, "gradient").scores
    found = attribute(bert, "smoothgrad", AttributionConfig(noise=1e-6, samples=3))
    np.testing.assert_allclose(found.scores, plain, atol=1e-4)
    noisy = attribute(bert, "smoothgrad", AttributionConfig(noise=0.3, samples=20))
    assert np.abs(noisy.scores - plain).max() > 1e-3
    assert isinstance(noisy, Attribution)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: next_token(tiny("encoder"), TEXT), "a next token needs a decoder"),
        (lambda: masked_token(tiny("decoder"), TEXT), "only an encoder fills masks"),
        (lambda: masked_token(tiny("encoder"), TEXT), r"has 0 .MASK."),
        (lambda: decision(classifier(), {"text": TEXT}, "dul"), "did you mean dull"),
        (lambda: decision(answerer(), {"text": TEXT}), "a decision needs a classifier"),
        (lambda: answer(classifier(), {"question": "a", "context": "b"}), "an answer needs a model"),
        (lambda: decision(tiny("decoder"), {"text": TEXT}), "was not fine-tuned"),
        (lambda: sentence(tiny("encoder"), TEXT), "a sentence is generated by a decoder"),
        (lambda: likeness(tiny("encoder_decoder"), TEXT, TEXT), "has no vectors"),
        (lambda: next_token(tiny("decoder"), TEXT, 999), "id 999 is not in the vocabulary"),
        (lambda: next_token(tiny("decoder"), TEXT, ""), "has no tokens"),
        (lambda: attribute(next_token(tiny("decoder"), TEXT), "integratd"), "did you mean integrated"),
    ],
)
def test_what_cannot_be_explained_is_refused(make, message):
    with pytest.raises(FlagError, match=message):
        make()
