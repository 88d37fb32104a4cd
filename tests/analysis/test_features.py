"""A sparse autoencoder finds planted directions, restores what it has not seen, and tells what it cannot."""

import numpy as np
import pytest
from scipy.special import log_softmax

from lmjax.analysis.features import Features, Stream, Weights, read_stream, top_contexts, train_features
from lmjax.analysis.inside import record
from lmjax.analysis.restored import Downstream, downstream
from lmjax.errors import FlagError
from tests.inference.scoring import tiny

WIDTH, PLANTED = 16, 24


def planted(count=4000, seed=0):
    """Returns vectors, each a sum of two of 24 random directions with sizes of 1 to 2, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(PLANTED, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((count, PLANTED)), axis=1)[:, :2]
    sizes = rng.uniform(1, 2, (count, 2))
    return np.einsum("ck,cke->ce", sizes, directions[chosen]).astype(np.float32), directions


def test_planted_directions_are_recovered():
    vectors, directions = planted()
    found = train_features(vectors, features=48, active=2, steps=1500, batch_size=256, rate=5e-3)
    cosines = directions @ np.asarray(found.weights.decoder).T
    assert (cosines.max(axis=1) > 0.95).mean() > 0.9
    assert found.error < 0.1
    # A random dictionary of the same size has nothing alike.
    others = np.random.default_rng(1).normal(size=(48, WIDTH))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert ((directions @ others.T).max(axis=1) > 0.95).mean() < 0.1
    # Half of the features have nothing to do, and the others restore the vectors.
    numbers, sizes = found.encode(vectors)
    assert found.dead == 48 - len(np.unique(numbers[sizes > 0]))
    left = np.square(vectors - found.decode(numbers, sizes)).sum() / np.square(vectors - vectors.mean(axis=0)).sum()
    assert left == pytest.approx(found.error, rel=0.3)


def test_dense_noise_is_not_restored_by_few_features():
    noise = np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32)
    assert train_features(noise, features=48, active=2, steps=200).error > 0.4


def test_the_stream_of_a_layer_has_the_tokens_of_each_text_in_order():
    loaded = tiny("decoder")
    texts = ["The young king goes under the old tree", "A queen"]
    found = read_stream(loaded, texts, 0, batch_size=1)
    ids = [loaded.tokenizer.encode(text)[: loaded.config.max_length - 1] for text in texts]
    assert found.ids.tolist() == [i for row in ids for i in row]
    assert found.texts.tolist() == [0] * len(ids[0]) + [1] * len(ids[1])
    for i, row in enumerate(ids):
        expected = record(loaded, [[*loaded.prompts.before, *row]], ["layer_0"])["layer_0"][0, 1 : len(row) + 1]
        np.testing.assert_allclose(found.vectors[found.texts == i], expected, atol=1e-4)


def test_contexts_are_the_largest_places_and_one_of_each_text():
    stream = Stream(np.zeros((6, 1)), np.arange(6), np.array([0, 0, 0, 1, 1, 2]))
    features = np.array([[3], [3], [5], [3], [3], [5]]), np.array([[1.0], [4.0], [9.0], [2.0], [3.0], [9.0]])
    found = top_contexts(features, stream, 3, around=1)
    assert [context.ids.tolist() for context in found] == [[0, 1, 2], [3, 4]]
    assert [context.sizes.tolist() for context in found] == [[1, 4, 0], [2, 3]]


def test_what_a_decoder_loses_by_features_lies_between_nothing_and_the_mean():
    loaded = tiny("decoder", num_layers=2)
    texts = ["The young king goes under the old tree", "A queen sees the river", "kings and queens, singing and going"]
    stream = read_stream(loaded, texts, 0)
    # With a feature for each direction and its opposite nothing is lost, and with none active the mean is left.
    both = Weights(np.concatenate([np.eye(16), -np.eye(16)], axis=1), np.zeros(32),
                   np.concatenate([np.eye(16), -np.eye(16)]), stream.vectors.mean(axis=0))  # fmt: skip
    exact = Features(both, 16, 1.0, np.zeros(0), 0.0, 0, np.zeros(0))
    found = downstream(loaded, texts, 0, exact)
    logits = [(row, record(loaded, [row], ["logits"])["logits"][0]) for row in loaded.encode(texts)]
    nats = [log_softmax(x[i])[row[i + 1]] for row, x in logits for i in range(len(row) - 1)]
    assert found.whole == pytest.approx(-np.mean(nats), abs=1e-4)
    assert found.restored == pytest.approx(found.whole, abs=1e-4)
    assert found.recovered == pytest.approx(1, abs=1e-3)
    nothing = exact._replace(weights=both._replace(encoder=np.zeros((16, 32))))
    found = downstream(loaded, texts, 0, nothing)
    assert found.restored == pytest.approx(found.centre, abs=1e-4)
    assert found.recovered == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("centre", [2.0, 1.5])
def test_there_is_no_share_of_a_loss_that_the_mean_does_not_cost(centre):
    assert np.isnan(Downstream(whole=2.0, restored=1.9, centre=centre).recovered)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(FlagError, match="at least ten texts"):
        train_features(np.ones((20, 4)), groups=np.repeat([0, 1], 10))
    with pytest.raises(FlagError, match="all vectors are equal"):
        train_features(np.ones((20, 4), np.float32))
