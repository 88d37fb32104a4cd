"""Evaluation: the unigram entropy, and metrics that do not depend on the batch size."""

import dataclasses
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.model.language_model import init_params
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from lmjax.runs.build import build
from lmjax.training.evaluate import EvalSet, Evaluator, unigram_entropy
from lmjax.training.step import make_eval_step


class Counted:
    """Four rows with known targets: three times 0, once 1, and one padded position in each row.

    The class is also the task, with two losses: one over all targets, and one over none.
    """

    mixture = 4

    @property
    def task(self):
        return self

    def token_targets(self, batch):
        return {"all": (batch["targets"], batch["weights"]), "none": (batch["targets"], 0 * batch["weights"])}

    def __call__(self, index, rng):
        targets = np.array([int(index == 3), 7], np.int32)
        return {"targets": targets, "weights": np.array([1, 0], np.float32)}


def test_unigram_entropy_is_that_of_the_weighted_targets():
    evaluated = EvalSet("x", Counted(), batch_size=3, max_batches=9, unigram_entropy={})
    assert unigram_entropy(evaluated) == pytest.approx({"all": -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))})


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return build(tiny("next_token"), tmp_path_factory.mktemp("run"))


def evaluate(run, batch_size):
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    sets = (dataclasses.replace(run.eval_sets[0], batch_size=batch_size, max_batches=1000),)
    step = jax.jit(make_eval_step(run.model, run.task))
    params = nn.unbox(jax.jit(lambda: init_params(run.model, jax.random.key(0)))())
    return Evaluator(sets, step, mesh, run.token_bytes(), {"next_token": 1.0})(params)


def test_the_batch_size_changes_no_number(run):
    """Rows that only fill up the last batch do not count."""
    rows = len(run.eval_sets[0].examples)
    assert rows % 5, "without a partial last batch this test checks nothing"
    one, five = evaluate(run, 1), evaluate(run, 5)
    assert five == pytest.approx(one, rel=1e-5)


def test_perplexity_and_bits_per_byte_follow_from_the_loss(run):
    metrics = evaluate(run, 4)
    prefix = "eval/heldout/next_token"
    assert metrics[f"{prefix}/perplexity"] == pytest.approx(math.exp(metrics[f"{prefix}/loss"]))
    store = run.eval_sets[0].examples.rows.store
    predictions = store.num_tokens + store.num_documents
    bits = metrics[f"{prefix}/loss"] * predictions / math.log(2)
    assert metrics[f"{prefix}/bits_per_byte"] == pytest.approx(bits / store.num_bytes, rel=1e-5)
