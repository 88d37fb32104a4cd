"""Losses that compare rows: microbatches, the mesh and pmap give the loss and the gradient of the whole batch."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.axes import RULES
from lmjax.model.dropout import DropoutRates
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs.build import build
from lmjax.training.forward import forward
from lmjax.training.microbatches import microbatches
from lmjax.training.state import state_maker
from lmjax.training.step import loss_and_gradients
from tests.thinned import thinned

pytestmark = pytest.mark.usefixtures("all_devices")

FORMS = ("pairs", "scored", "triplets")
WORDS = ("old", "king", "river", "tree", "sees", "never", "house", "young")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Returns a run for each form of the records, on triplets with scores, without dropout."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    path = folder / "train.jsonl"
    texts = [[" ".join(rng.choice(WORDS, n)) for n in (3, 2, 1)] for _ in range(8)]
    names = ("text", "text2", "negative")
    records = [dict(zip(names, each, strict=True)) | {"score": i % 3} for i, each in enumerate(texts)]
    written = "".join(json.dumps(record) + "\n" for record in records)
    for each in (path, folder / "dev.jsonl"):
        each.write_text(written)
    fields = {"data__train": path, "data__eval": f"dev={folder / 'dev.jsonl'}", "model__architecture": "encoder",
              "task__embedding__widths": 8, "task__embedding__temperature": 0.3,
              "task__length": 64, "model__dropout__residual": 0, "model__dropout__attention": 0}  # fmt: skip
    # Texts with scores are not searched for one another, so that the loss has no second direction.
    fields |= {"task__embedding__symmetric": True}
    scored = fields | {"task__embedding__symmetric": False}
    return {
        form: build(tiny("embedding", **(scored if form == "scored" else fields), task__embedding__form=form),
                    folder / form)
        for form in FORMS
    }  # fmt: skip


def real_batch(run, rows=8):
    """Returns a batch whose last row is padding."""
    features = [run.train_examples(i, np.random.default_rng(i)) for i in range(rows)]
    batch = {name: np.stack([f[name] for f in features]) for name in features[0]}
    batch["row_weights"][-1] = 0
    return batch


def prepared(run, mesh):
    make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, run.config.seed, mesh)
    # With the small initial parameters all vectors would be almost equal.
    state = make_state()
    return state.replace(params=jax.tree.map(lambda x: 4 * x, state.params)), jax.device_get(run.hparams)


def computed(run, parallel, accumulation, devices):
    mesh = make_mesh(ParallelConfig(**parallel), devices)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        state, hparams = prepared(run, mesh)
        compute = jax.jit(lambda s, b: loss_and_gradients(run.model, run.task, s, b, hparams, accumulation))
        return jax.device_get(compute(state, to_device(real_batch(run), mesh)))


@pytest.fixture(scope="module")
def plain(runs):
    """Returns loss sums and gradients of each form on one device, without microbatches."""
    return {form: computed(run, {}, 1, jax.devices()[:1]) for form, run in runs.items()}


def assert_equal(found, expected):
    (sums, grads), (expected_sums, expected_grads) = found, expected
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sums, expected_sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, expected_grads)


@pytest.mark.parametrize(
    ("form", "parallel", "accumulation", "devices"),
    thinned(
        [
            ("pairs", {}, 2, 1),
            ("pairs", {}, 8, 1),
            ("pairs", {"data": 2, "fsdp": 2, "tensor": 2}, 2, 8),
            ("pairs", {}, 1, 8),
            ("scored", {}, 4, 1),
            ("scored", {"data": 4, "fsdp": 2}, 1, 8),
            ("triplets", {"data": 2}, 4, 2),
        ],
        2,
    ),
)
def test_mesh_and_accumulation_leave_loss_and_gradient(runs, plain, form, parallel, accumulation, devices):
    assert_equal(computed(runs[form], parallel, accumulation, jax.devices()[:devices]), plain[form])


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_that_of_all_rows(runs, plain, form):
    """Checks the reference: every row but the padding counts, and narrower vectors add a penalty."""
    sums, grads = plain[form]
    found = sums["embedding"]
    assert found.weight == 7
    assert found.loss > 0
    assert found.penalty > 0
    assert all(np.any(g != 0) for name, g in _leaves(grads) if "types" not in name)


def _leaves(tree):
    return [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def test_both_passes_have_the_same_dropout(runs):
    """The gradient is that of the loss of one forward pass of each microbatch, all differentiated together."""
    run, rate = runs["pairs"], jnp.float32(0.3)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, hparams = prepared(run, mesh)
        hparams = hparams.replace(dropout=DropoutRates(residual=rate))
        batch = to_device(real_batch(run), mesh)
        task, parts, key = run.task, microbatches(batch, 2), jax.random.fold_in(state.key, state.step)

        def loss(params):
            found = []
            for i in range(2):
                part = jax.tree.map(lambda x, i=i: x[i], parts)
                passed = forward(run.model, params, part, key=jax.random.fold_in(key, i),
                                 dropout_rates=hparams.dropout, penalties=hparams.penalties)  # fmt: skip
                found.append(task.representations(passed, part)["embedding"])
            rows = jnp.stack(found, axis=1).reshape(8, *found[0].shape[1:])
            s = task.compared({"embedding": rows}, batch)["embedding"]
            return (s.loss + s.penalty) / s.weight

        expected = jax.jit(jax.grad(loss))(state.params)
        _, found = jax.jit(lambda: loss_and_gradients(run.model, task, state, batch, hparams, 2))()
        _, without = jax.jit(
            lambda: loss_and_gradients(run.model, task, state, batch, hparams.replace(dropout=DropoutRates()), 2)
        )()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (found, without)), strict=True))


def test_replicas_of_pmap_compare_all_rows(runs, plain):
    run = runs["pairs"]
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    state, hparams = prepared(run, mesh)
    state = jax.device_get(state.replace(key=None)).replace(key=jax.random.key(0))

    def share(state, batch):
        return loss_and_gradients(run.model, run.task, state, batch, hparams, 2, "replicas")

    batch = {name: x.reshape(2, 4, *x.shape[1:]) for name, x in real_batch(run).items()}
    found = jax.device_get(jax.pmap(share, "replicas", in_axes=(None, 0), devices=jax.devices()[:2])(state, batch))
    assert_equal(jax.tree.map(lambda x: x.sum(axis=0), found), plain["pairs"])
