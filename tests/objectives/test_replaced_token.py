"""Replaced-token detection: every token is classified, and the generator gets no gradient from the discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objectives.losses import vocab_loss
from lmjax.objectives.task import TaskConfig

VOCAB = 12


def batch_of():
    """Returns a row of six tokens, two of them masked, and one unused prediction; and a row of padding."""
    return {
        "tokens": jnp.array([[1, 9, 3, 9, 5, 6, 0, 0], [0] * 8]),
        "segment_ids": jnp.array([[1] * 6 + [0, 0], [0] * 8]),
        "prediction_positions": jnp.array([[1, 3, 0], [0, 0, 0]]),
        "targets": jnp.array([[2, 4, 0], [0, 0, 0]]),
        "weights": jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
        "replaced_token_weights": jnp.array([[1.0] * 6 + [0, 0], [0.0] * 8]),
    }


def run(make_task, forward_of, guesses, **fields):
    """Returns the sums, and the tokens that the discriminator reads, for a generator that predicts `guesses`."""
    batch, seen = batch_of(), []
    logits = 50.0 * jax.nn.one_hot(jnp.array(guesses), VOCAB)

    def states(b):
        seen.append(b["tokens"])
        return b["tokens"][..., None].astype(jnp.float32)

    forward = forward_of(
        batch,
        states=states,
        generator_states=lambda b: jnp.zeros((2, 8, 3)),
        generator_logits=lambda h: logits[:, : h.shape[1]],
        # Predicts "replaced" for token 7 alone.
        replaced_token=lambda h: jnp.where(h[..., 0] == 7, 2.0, -1.0),
    )
    task = make_task("rtd", "encoder", length=8, rtd={"mask_rate": 0.3}, **fields)
    return task.losses(forward, batch), seen, task.weights(batch)


def test_guesses_are_put_in_and_told_apart(make_task, forward_of):
    """The first guess is correct, so it counts as original; the second is 7, which the discriminator detects."""
    sums, seen, weights = run(make_task, forward_of, [[2, 7, 11], [3, 3, 3]])
    assert [t.tolist() for t in seen] == [[[1, 2, 3, 7, 5, 6, 0, 0], [0] * 8]]
    found = sums["rtd"]
    np.testing.assert_allclose(found.loss, 5 * np.log1p(np.exp(-1)) + np.log1p(np.exp(-2)), rtol=1e-6)
    assert (found.weight, found.correct) == (6, 6)
    generator = sums["rtd_generator"]
    assert (generator.weight, generator.correct) == (2, 1)
    np.testing.assert_allclose(generator.loss, 50, rtol=1e-5)
    assert {name: float(w) for name, w in weights.items()} == {"rtd": 6, "rtd_generator": 2}


def test_a_missed_replacement_is_wrong(make_task, forward_of):
    sums, _, _ = run(make_task, forward_of, [[8, 4, 0], [0, 0, 0]])
    assert sums["rtd"].correct == 5
    np.testing.assert_allclose(sums["rtd"].loss, 5 * np.log1p(np.exp(-1)) + np.log1p(np.exp(1)), rtol=1e-6)


def test_room_for_predictions_that_a_row_lacks_leaves_its_first_token(make_task, forward_of):
    """An unused prediction has position 0, and the token there must not be replaced."""
    _, seen, _ = run(make_task, forward_of, [[2, 4, 11], [11, 11, 11]])
    assert seen[0][:, 0].tolist() == [1, 0]


@pytest.fixture
def toy(make_task, toy_forward, corpus, rng_of, tokenizer):
    """Returns a task, a batch of it, and a toy model's forward of the batch."""

    def make(**fields):
        task = make_task("rtd", "encoder", length=32, **fields)
        examples = task.examples(corpus, 0)
        rows = [examples(i, rng_of(i)) for i in range(8)]
        batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
        return task, batch, toy_forward(batch)

    return make


def test_every_mask_is_filled_in_and_every_token_judged(toy, tokenizer):
    task, batch, forward = toy()
    assert (batch["tokens"] == tokenizer.mask_id).sum() == batch["weights"].sum(), "the generator reads originals"
    sums = task.losses(forward, batch)
    (seen,) = (x["tokens"] for name, x in forward.calls if name == "states")
    changed = np.asarray(seen != batch["tokens"])
    masked = np.asarray(batch["tokens"] == tokenizer.mask_id)
    assert not changed[~masked].any(), "a token that was not masked is changed"
    assert changed[masked].mean() > 0.95
    assert sums["rtd"].weight == (batch["segment_ids"] > 0).sum()


def test_draws_follow_the_generator(make_task, forward_of):
    """Tokens are sampled by their probability; with the argmax the discriminator would always read the same token."""
    task = make_task("rtd", "encoder", length=8)
    p = np.array([0.5, 0.3, 0.2])
    hidden = jnp.zeros((1, 4000, 1))
    for chunk in (0, 1000, 700):
        objective = task.objectives[0].__class__(*([*vars(task.objectives[0]).values()][:-1]), chunk)
        generator = forward_of({}, logits=lambda h: jnp.broadcast_to(jnp.log(p), (*h.shape[:2], 3)))
        drawn = np.asarray(objective._sample(generator, hidden))
        assert drawn.shape == (1, 4000)
        np.testing.assert_allclose(np.bincount(drawn[0]) / 4000, p, atol=0.03)


@pytest.mark.parametrize("chunk", [0, 100])
def test_rows_that_fill_up_the_vocabulary_are_never_drawn(make_task, forward_of, tokenizer, chunk):
    """No text has the ids of vocabulary padding, so the discriminator would detect them at once."""
    (objective,) = make_task("rtd", "encoder", length=8, vocab_chunk=chunk).objectives
    padding = jnp.arange(tokenizer.vocab_size + 5) >= tokenizer.vocab_size
    generator = forward_of({}, logits=lambda h: jnp.broadcast_to(20.0 * padding, (*h.shape[:2], len(padding))))
    assert np.asarray(objective._sample(generator, jnp.zeros((1, 300, 1)))).max() < tokenizer.vocab_size


def test_the_discriminator_teaches_the_generator_nothing(toy, tokenizer):
    """No gradient of the discriminator's loss reaches the generator's logits, and the generator's own does."""
    task, batch, forward = toy()
    logits = forward.outputs["generator_logits"]

    def loss(shift, name):
        forward.outputs["generator_logits"] = lambda h: logits(h) + shift
        return task.losses(forward, batch)[name].loss

    shift = jnp.linspace(0, 1, tokenizer.vocab_size)[None, None]
    assert not jax.grad(loss)(shift, "rtd").any()
    assert jax.grad(loss)(shift, "rtd_generator").any()


def test_the_generator_is_a_masked_lm(toy):
    task, batch, forward = toy(vocab_chunk=2)
    generator = forward.submodel("generator")
    hidden = jnp.take_along_axis(generator.hidden, batch["prediction_positions"][..., None], axis=1)
    expected = vocab_loss(hidden, generator.logits, batch["targets"], batch["weights"], chunk=0)
    found = task.losses(forward, batch)["rtd_generator"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_weights_are_those_of_the_paper():
    assert TaskConfig(objective=("rtd",)).loss_weights() == {"rtd": 50.0, "rtd_generator": 1.0}
    config = TaskConfig(objective=("rtd",), rtd={"loss_weight": 0.5, "discriminator_weight": 10})
    assert config.loss_weights() == {"rtd": 5.0, "rtd_generator": 0.5}
