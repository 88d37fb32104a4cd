"""Patching, ablation, lenses and steering equal what is computed by hand, one change at a time."""

import numpy as np
import pytest

from lmjax.analysis import patch, record
from lmjax.analysis.causal import ablation, neurons, patching, without_heads
from lmjax.analysis.flow import flow, induction, mixing, rollout
from lmjax.analysis.lens import direct, logit_lens
from lmjax.analysis.steering import direction, steer
from lmjax.analysis.subject import decision, masked_token, next_token, sentence
from lmjax.analysis.tuned_lens import tune, tuned_values
from lmjax.errors import FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.score.score import score
from lmjax.inference.score.texts import Item
from lmjax.streams import random_stream
from tests.analysis.test_inside import classifier
from tests.inference.scoring import tiny

CLEAN, CORRUPTED = "The old king goes", "The young king goes"
TOKENS = 2, 9


def pair(architecture="decoder", **fields):
    """Returns the subjects of two prompts that differ in a token, and the difference of two logits as their number."""
    loaded = tiny(architecture, num_layers=2, **fields)
    rows = [list(loaded.encode(CLEAN)) for _ in range(2)]
    rows[1][2] = TOKENS[1]
    return [next_token(loaded, row, 20, 30) for row in rows]


def number(loaded, outputs, subject):
    """Returns the difference of the logits at the subject's position."""
    logits = outputs["logits"][0, int(subject.ask.position)]
    return float(logits[20] - logits[30])


@pytest.mark.parametrize(
    ("what", "end"), [("residual", ""), ("mlp", "/mlp"), ("attention", "/attention"), ("heads", "/attention/heads")]
)
def test_a_grid_equals_a_loop_over_its_cells(what, end):
    clean, corrupted = pair()
    loaded = clean.loaded
    grid = patching(clean, corrupted, what)
    for layer in range(2):
        name = f"layer_{layer}{end}"
        given, own = (record(loaded, x.fields, [name])[name] for x in (clean, corrupted))
        for column in range(len(grid.columns)):
            mixed = own.copy()
            at = (slice(None), slice(None), column) if what == "heads" else (slice(None), column)
            mixed[at] = given[at]
            expected = number(loaded, patch(loaded, corrupted.fields, {name: mixed}), clean)
            assert grid.values[layer, column] == pytest.approx(expected, abs=1e-4)
    assert grid.changed == pytest.approx(corrupted.value, abs=1e-4)
    if what == "residual":
        # Before the changed token nothing differs; the last position after the last layer restores all.
        np.testing.assert_allclose(grid.effects[:, :2], 0, atol=1e-3)
        assert grid.effects[1, -1] == pytest.approx(1, abs=1e-3)


def test_cross_attention_and_the_encoder_are_patched_by_their_names():
    loaded = tiny("encoder_decoder", num_layers=2)
    rows = [list(loaded.encode(CLEAN)) for _ in range(2)]
    rows[1][1] = TOKENS[1]
    clean, corrupted = (next_token(loaded, row, 20, 30) for row in rows)
    encoder = patching(clean, corrupted, "residual", side="encoder_")
    given, mixed = (record(loaded, x.fields, ["encoder/layer_0"])["encoder/layer_0"] for x in (clean, corrupted))
    mixed = np.concatenate([mixed[:, :1], given[:, 1:2], mixed[:, 2:]], axis=1)
    outputs = patch(loaded, corrupted.fields, {"encoder/layer_0": mixed})
    assert encoder.values[0, 1] == pytest.approx(number(loaded, outputs, clean), abs=1e-4)
    crossed = patching(clean, corrupted, "cross_heads")
    assert crossed.values.shape == (2, loaded.config.num_heads)
    with pytest.raises(FlagError, match="side='memory_'"):
        patching(clean, corrupted, side="memory_")


def test_an_ablated_head_writes_nothing_and_an_ablated_neuron_is_silent():
    subject, _ = pair()
    loaded = subject.loaded
    grid = ablation(subject)
    fallen = neurons(subject, 1)
    for head in range(loaded.config.num_heads):
        outputs = patch(loaded, subject.fields, {"layer_1/attention/heads": lambda x, h=head: x.at[:, :, h].set(0)})
        assert grid.values[1, head] == pytest.approx(number(loaded, outputs, subject), abs=1e-4)
    outputs = patch(loaded, subject.fields, {"layer_1/mlp/hidden": lambda x: x.at[..., 5].set(0)})
    assert fallen[5] == pytest.approx(subject.value - number(loaded, outputs, subject), abs=1e-4)
    assert fallen.shape == (loaded.config.mlp_dim,)
    assert without_heads(subject, [(1, 0)]) == pytest.approx(grid.values[1, 0], abs=1e-4)
    silent = patch(loaded, subject.fields, {f"layer_{i}/attention/heads": lambda x: 0 * x for i in range(2)})
    every = [(layer, head) for layer in range(2) for head in range(loaded.config.num_heads)]
    assert without_heads(subject, every) == pytest.approx(number(loaded, silent, subject), abs=1e-4)
    texts = [CLEAN, "A queen"]
    found, mask = record(loaded, texts, ["layer_0/mlp"])["layer_0/mlp"], loaded(texts).mask
    mean = found[mask].mean(axis=0)
    outputs = patch(loaded, subject.fields, {"layer_0/mlp": lambda x: x.at[:, 2].set(mean)})
    means = ablation(subject, "mlp", texts=texts)
    assert means.values[0, 2] == pytest.approx(number(loaded, outputs, subject), abs=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "rope", "norm": "rmsnorm"},
        {"positions": "rope", "block": "parallel"},
        {"positions": "rope", "norm_position": "sandwich"},
        {"architecture": "encoder_decoder"},
    ],
)
def test_direct_parts_sum_to_the_logit(fields):
    subject, _ = pair(**fields)
    found = direct(subject)
    parts = found.heads.sum() + found.cross.sum() + found.mlp.sum() + found.inputs + found.constant
    assert parts == pytest.approx(found.total, abs=1e-3)
    assert found.total == pytest.approx(subject.value, abs=1e-4)
    assert np.abs(found.heads).max() > 1e-3
    assert found.cross.size == (4 if fields.get("architecture") else 0)


@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder_decoder", "classifier"])
def test_the_lens_after_the_last_layer_is_the_model(architecture):
    if architecture == "classifier":
        subject = decision(classifier(), {"text": CLEAN})
    elif architecture == "encoder":
        subject = masked_token(tiny("encoder", num_layers=2), "The old [MASK] goes")
    else:
        subject = next_token(tiny(architecture, num_layers=2), CLEAN)
    lens = logit_lens(subject)
    assert lens.values[-1] == pytest.approx(subject.value, abs=1e-4)
    assert len(lens.values) == len(lens.layers) == subject.loaded.config.num_layers + 1
    if architecture == "classifier":
        return
    # Of a row, the likeliest token at the position of the subject is the one that was asked about.
    at = [token.position for token in subject.tokens if token.side == subject.loaded.config.family.predicts]
    assert lens.likeliest[-1][at.index(int(subject.ask.position))] == subject.name
    assert lens.shares[-1][at.index(int(subject.ask.position))] == pytest.approx(subject.probability, abs=1e-4)


def test_a_lens_reads_the_stream_of_its_layer():
    """The number of a layer is that of a model of which that layer is the last."""
    subject, _ = pair()
    loaded = subject.loaded
    stream = record(loaded, subject.fields, ["inputs", "layer_0"])
    for number_of, name in zip(logit_lens(subject).values, ["inputs", "layer_0"], strict=False):
        outputs = patch(loaded, subject.fields, {"layer_1": stream[name]})
        assert number_of == pytest.approx(number(loaded, outputs, subject), abs=1e-4)


def test_rollout_and_flow_of_two_layers_by_hand():
    attentions = [np.array([[[1.0, 0.0], [0.6, 0.4]]]), np.array([[[1.0, 0.0], [0.2, 0.8]]])]
    first, second = mixing(attentions)
    np.testing.assert_allclose(first, [[1, 0], [0.3, 0.7]])
    np.testing.assert_allclose(rollout(attentions)[1], second @ first)
    np.testing.assert_allclose(rollout(attentions).sum(axis=-1), 1)
    found = flow(attentions)
    # From input 0 to token 1: over token 0, 0.1 goes on of 1; over token 1, 0.3 arrives, of which 0.9 could go on.
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.1 + 0.3, 0.7]], atol=1e-5)
    np.testing.assert_allclose(flow(attentions, [1]), found[1:], atol=1e-5)


def test_induction_is_the_attention_to_what_followed_before():
    loaded = tiny("decoder", num_layers=2, positions="rope")
    found = induction(loaded, length=5, rows=2, seed=3)
    expected, before = [], list(loaded.prompts.before)
    drawn = random_stream(3, "induction")
    for count in (2, 5):
        row = drawn.choice(loaded.tokenizer.text_ids, count).tolist()
        weights = np.stack(loaded([[*before, *row, *row]], output_attentions=True).attentions)[:, 0]
        start = len(before)
        # Token i of the second part attends to token i + 1 of the first part.
        pairs = [(start + count + i, start + i + 1) for i in range(count - 1)]
        expected.append(np.mean([weights[:, :, q, k] for q, k in pairs], axis=0))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-5)
    with pytest.raises(FlagError, match="those of a decoder"):
        induction(tiny("encoder"))


def test_a_steered_model_generates_and_scores_as_if_the_vector_was_in_its_stream():
    loaded = tiny("decoder", num_layers=2)
    way = direction(loaded, [CLEAN], [CORRUPTED, "A queen"], 0)
    stream = record(loaded, [CLEAN, CORRUPTED, "A queen"], ["layer_0"])["layer_0"]
    last = [stream[i, loaded([t]).mask.sum() - 1] for i, t in enumerate([CLEAN, CORRUPTED, "A queen"])]
    np.testing.assert_allclose(way, last[0] - (last[1] + last[2]) / 2, atol=1e-5)
    steered = steer(loaded, {"layer_0": 3 * way})
    expected = patch(loaded, [CLEAN], {"layer_0": lambda x: x + 3 * way.reshape(1, 1, -1)})["logits"]
    np.testing.assert_allclose(steered([CLEAN]).logits, expected, atol=1e-4)
    config = GenerateConfig(max_new_tokens=4)
    before = generate(loaded, [CLEAN], config)[0][0]
    written = generate(steered, [CLEAN], config)[0][0]
    # Greedy decoding with a cache equals the likeliest token of each forward pass.
    row = list(loaded.encode(CLEAN))
    for token in written.ids:
        logits = patch(loaded, [row], {"layer_0": lambda x: x + 3 * way.reshape(1, 1, -1)})["logits"]
        assert logits[0, len(row) - 1].argmax() == token
        row.append(token)
    assert written.ids != before.ids
    # The programs of the model itself are still its own.
    assert generate(loaded, [CLEAN], config)[0][0].ids == before.ids
    both = [score(model, [Item(CLEAN, " queen")])[0].log_likelihood for model in (loaded, steered)]
    assert abs(both[0] - both[1]) > 1e-3
    with pytest.raises(FlagError, match="is 16 wide"):
        steer(loaded, {"layer_0": np.zeros(3)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patching(pair()[0], next_token(tiny("decoder", num_layers=2), "A queen")), "with as many tokens"),
        (lambda: patching(*pair(), "residuals"), "did you mean residual"),
        (lambda: ablation(pair()[0], "cross_heads"), "has no such activations"),
        (lambda: without_heads(pair()[0], [(2, 0)]), "head 2.0: there are 2 layers of 2 heads"),
        (lambda: neurons(pair()[0], 9), "layer=9: has no MLP"),
        (lambda: direct(decision(classifier(), {"text": CLEAN})), "needs the logit of a decoder's token"),
        (lambda: patching(*(sentence(tiny("decoder"), CLEAN, " queen") * 2)).effects, "have the same number"),
        (lambda: direction(tiny("decoder"), [], [CLEAN], 0), "at least one text"),
    ],
)
def test_what_cannot_be_done_is_refused(make, message):
    with pytest.raises(FlagError, match=message):
        make()


def test_a_tuned_lens_comes_closer_to_the_model_than_the_lens_and_ends_as_the_model():
    subject, _ = pair()
    loaded = subject.loaded
    texts = [CLEAN, CORRUPTED, "A queen sees the river", "the tree", "The young king sees"]
    lens = tune(loaded, texts, steps=120, rate=3e-2, batch_size=4)
    assert lens.losses.shape == (120, 2)
    # At first the maps do nothing: the divergence is that of the logit lens.
    before, after = lens.losses[:5].mean(axis=0), lens.losses[-5:].mean(axis=0)
    assert (after < 0.3 * before).all()
    found, plain = tuned_values(subject, lens), logit_lens(subject).values
    assert found[-1] == pytest.approx(subject.value, abs=1e-4)
    assert abs(found[1] - subject.value) < abs(plain[1] - subject.value)
    untouched = tuned_values(subject, lens._replace(matrix=0 * lens.matrix, bias=0 * lens.bias))
    np.testing.assert_allclose(untouched, plain, atol=1e-4)
    with pytest.raises(FlagError, match="a tuned lens needs texts"):
        tune(loaded, [])
