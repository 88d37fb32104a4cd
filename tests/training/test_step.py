"""One step: what must not change the gradient does not, and an update that is not finite changes nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.parallel.axes import RULES
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.run import build
from lmjax.training.state import add_tokens, read_tokens, state_maker
from lmjax.training.step import loss_and_gradients, make_eval_step, make_train_step

TASKS = ("next_token", "mlm,nsp", "span_corruption")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """One run per task, without dropout: its gradient must not depend on how the work is divided."""
    off = {"model__dropout_rate": 0, "model__attention_dropout_rate": 0}
    folder = tmp_path_factory.mktemp("runs")
    built = {}
    for task in TASKS:
        (folder / task).mkdir()
        built[task] = build(tiny(task, **off), folder / task)
    return built


def real_batch(run, rows=8):
    """Rows whose weights differ, so that a mean of means would not be the mean."""
    features = [run.train_examples(i, np.random.default_rng(i)) for i in range(rows)]
    batch = {name: np.stack([f[name] for f in features]) for name in features[0]}
    if "weights" in batch:
        batch["weights"][: rows // 2, 3:] = 0
    if "next_sentence_weights" in batch:
        batch["next_sentence_weights"][0] = 0
    return batch


def gradients(run, parallel, accumulation, devices=None):
    mesh = make_mesh(ParallelConfig(**parallel), devices)
    config = run.config
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        make_state, _ = state_maker(run.model, config.optimizer, run.hparams, config.seed, mesh)
        state, batch = make_state(), to_device(real_batch(run), mesh)
        hparams = jax.device_get(run.hparams)
        compute = jax.jit(lambda s, b: loss_and_gradients(run.model, run.task, s, b, hparams, accumulation))
        return jax.device_get(compute(state, batch))


@pytest.fixture(scope="module")
def plain(runs):
    """Sums and gradients of every task on one device in one piece."""
    return {task: gradients(run, {}, 1, jax.devices()[:1]) for task, run in runs.items()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("parallel", "accumulation"),
    [
        ({}, 1),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 1),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2),
    ],
    ids=["data8", "2x2x2", "2x2x2-accumulate2"],
)
def test_mesh_and_accumulation_leave_the_gradient(runs, plain, task, parallel, accumulation):
    sums, grads = gradients(runs[task], parallel, accumulation)
    expected_sums, expected = plain[task]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sums, expected_sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected)


@pytest.mark.parametrize("task", TASKS)
def test_accumulation_on_one_device_leaves_the_gradient(runs, plain, task):
    _, grads = gradients(runs[task], {}, 4, jax.devices()[:1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, plain[task][1])


@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_those_of_the_mean_over_all_predictions(runs, plain, task):
    """The yardstick itself: every parameter gets a gradient, and the loss is sums over weights."""
    sums, grads = plain[task]
    assert all(np.any(g != 0) for g in jax.tree.leaves(grads)), "a parameter that no loss reaches"
    batch = real_batch(runs[task])
    counted = {"nsp": "next_sentence_weights"}
    for name, s in sums.items():
        assert s.weight == batch[counted.get(name, "weights")].sum()


@pytest.fixture(scope="module")
def one_device(runs):
    """A compiled step of the decoder on one device, its first state and a batch."""
    run = runs["next_token"]
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    make_state, _ = state_maker(run.model, run.config.optimizer, run.hparams, 0, mesh)
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))
    hparams = jax.device_put(jax.device_get(run.hparams), jax.devices()[0])
    return run, step, make_state(), to_device(real_batch(run), mesh), hparams


def test_a_non_finite_update_changes_only_its_counters(one_device):
    _, step, state, batch, hparams = one_device
    broken = hparams.replace(loss_weights={"next_token": jnp.float32(jnp.nan)})
    after, metrics = step(state, batch, broken)
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert (int(after.step), int(after.skipped), int(metrics["skipped_in_a_row"])) == (1, 1, 1)
    healed, metrics = step(after, batch, hparams)
    assert (int(healed.skipped), int(metrics["skipped_in_a_row"])) == (1, 0)
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (healed.params, state.params)), strict=True)]
    assert all(moved)


def test_other_numbers_compile_nothing_anew(one_device):
    _, step, state, batch, hparams = one_device
    first, _ = step(state, batch, hparams)
    compiled = step._cache_size()
    changed = jax.tree.map(lambda x: x * 0.5, hparams)
    second, _ = step(state, batch, changed)
    assert step._cache_size() == compiled
    leaves = zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True)
    assert any(np.any(a != b) for a, b in leaves), "the numbers are constants of the program"


def test_many_values_train_at_once_under_vmap(one_device):
    _, step, state, batch, hparams = one_device
    rates = jnp.array([1e-3, 1e-2])
    axes = jax.tree.map(lambda x: None, hparams).replace(learning_rate=0)
    both, _ = jax.vmap(step, (None, None, axes))(state, batch, hparams.replace(learning_rate=rates))
    for i, rate in enumerate(rates):
        alone, _ = step(state, batch, hparams.replace(learning_rate=rate))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), both.params, alone.params
        )


def test_training_memorises_a_batch(one_device):
    _, step, state, batch, hparams = one_device
    hparams = hparams.replace(learning_rate=jnp.float32(3e-2), total_steps=jnp.float32(1e6))
    first = None
    for _ in range(60):
        state, metrics = step(state, batch, hparams)
        first = float(metrics["loss"]) if first is None else first
    assert float(metrics["loss"]) < 0.25 * first


def test_evaluation_counts_bytes_of_weighted_targets_only(one_device):
    run, _, state, batch, _ = one_device
    token_bytes = np.arange(run.config.model.vocab_size, dtype=np.int32)
    sums, num_bytes = jax.jit(make_eval_step(run.model, run.task))(state.params, batch, token_bytes)
    assert float(num_bytes) == np.asarray(batch["targets"])[np.asarray(batch["weights"]) > 0].sum()
    assert float(sums["next_token"].weight) == np.asarray(batch["weights"]).sum()


def test_tokens_are_counted_past_32_bits():
    seen = jnp.array([2**32 - 5, 7], jnp.uint32)
    assert read_tokens(add_tokens(seen, jnp.uint32(9))) == (7 << 32) + 2**32 - 5 + 9
