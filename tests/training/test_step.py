"""One step: mesh and accumulation do not change the gradient, and a non-finite update changes only counters."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.axes import RULES
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel
from lmjax.model.moe import AUXILIARY, auxiliary_sums
from lmjax.objectives.sums import Penalties
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs.build import build
from lmjax.training.forward import forward
from lmjax.training.hyperparameters import Hyperparameters
from lmjax.training.state import add_tokens, read_tokens, state_maker
from lmjax.training.step import (
    loss_and_gradients,
    loss_metrics,
    make_eval_step,
    make_train_step,
    microbatches,
)
from lmjax.training.update import learning_rate, make_optimizer

pytestmark = pytest.mark.usefixtures("all_devices")

TASKS = ("next_token", "mlm,nsp", "span_corruption")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Returns a run for each task, without dropout, because its gradient must not depend on how the work is divided."""
    off = {"model__dropout__residual": 0, "model__dropout__attention": 0}
    folder = tmp_path_factory.mktemp("runs")
    built = {}
    for task in TASKS:
        (folder / task).mkdir()
        built[task] = build(tiny(task, **off), folder / task)
    return built


def real_batch(run, rows=8):
    """Returns a batch whose rows have different weights, so that a mean of means is not the mean."""
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
    """Returns loss sums and gradients of every task on one device without accumulation."""
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
    """Checks the reference: every parameter has a gradient, and the weights are those of the batch."""
    sums, grads = plain[task]
    assert all(np.any(g != 0) for g in jax.tree.leaves(grads)), "a parameter has no gradient from any loss"
    batch = real_batch(runs[task])
    counted = {"nsp": "next_sentence_weights"}
    for name, s in sums.items():
        assert s.weight == batch[counted.get(name, "weights")].sum()


@pytest.fixture(scope="module")
def one_device(runs):
    """Returns the decoder's run, and its jitted step, first state, batch and hyperparameters on one device."""
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


def test_the_state_after_an_update_takes_the_memory_of_the_one_before_without_a_copy(one_device):
    run, _, state, batch, hparams = one_device
    step = make_train_step(run.model, run.task, run.config.optimizer, 1)
    with jax.set_mesh(make_mesh(ParallelConfig(), jax.devices()[:1])), nn.logical_axis_rules(RULES):
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch, hparams).compile()
    text = compiled.as_text()
    assert text.count("%state_opt_state") > len(jax.tree.leaves(state.params)), "the names of arguments are others now"
    copied = re.findall(r"= (\S+) copy\(%?(state_(?:params|opt_state)[\w.]+)", text)
    assert not copied, copied


@pytest.fixture(scope="module")
def guarded(one_device):
    """Returns a jitted step with a parameter average and a spike guard, the states of two steps, and its inputs."""
    run, _, _, batch, _ = one_device
    config = run.config.optimizer.model_copy(update={"ema_decay": 0.99, "spike_factor": 3.0, "spike_warmup": 2})
    hparams = Hyperparameters.build(config, steps=10, dropout=run.hparams.dropout, loss_weights={"next_token": 1.0})
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    make_state, _ = state_maker(run.model, config, hparams, 0, mesh)
    step = jax.jit(make_train_step(run.model, run.task, config, 1))
    state = make_state()
    states = [state := step(state, batch, hparams)[0] for _ in range(2)]
    return step, states, batch, hparams


def test_the_average_follows_the_parameters(guarded):
    _, (before, after), _, _ = guarded
    share = 1 - (1 + 1) / (10 + 1)  # in the first steps the decay is lower than configured
    expected = jax.tree.map(lambda a, p: a + share * (p - a), before.average, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.average, expected)
    jax.tree.map(np.testing.assert_array_equal, after.evaluation_params(), after.average)


def test_a_spike_changes_only_its_counter(guarded):
    step, (_, state), batch, hparams = guarded
    after, metrics = step(state, batch, hparams.replace(loss_weights={"next_token": jnp.float32(100.0)}))
    for name in ("params", "opt_state", "average"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert (int(after.step), int(after.skipped), int(metrics["skipped_spikes"])) == (3, 0, 1)
    assert int(metrics["skipped_in_a_row"]) == 0, "a spike counts as a non-finite update"
    usual, metrics = step(after, batch, hparams)
    assert int(metrics["skipped_spikes"]) == 1
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (usual.params, after.params)), strict=True))


def test_parameters_in_bfloat16_keep_the_type_of_every_part_of_the_state(runs):
    """Otherwise the second step would need another program, and a compiled step would reject its own output."""
    run = runs["next_token"]
    model = LanguageModel(run.config.model.model_copy(update={"param_dtype": "bfloat16"}))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    _, abstract = state_maker(model, run.config.optimizer, run.hparams, 0, mesh)
    step = make_train_step(model, run.task, run.config.optimizer, 1)
    after, _ = jax.eval_shape(step, abstract, real_batch(run), run.hparams)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, abstract)


def test_other_numbers_compile_nothing_anew(one_device):
    _, step, state, batch, hparams = one_device
    first, _ = step(state, batch, hparams)
    compiled = step._cache_size()
    changed = jax.tree.map(lambda x: x * 0.5, hparams)
    second, _ = step(state, batch, changed)
    assert step._cache_size() == compiled
    leaves = zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True)
    assert any(np.any(a != b) for a, b in leaves), "the numbers are constants of the program"


def test_gradients_are_clipped_by_their_own_norm(one_device):
    run, _, state, batch, _ = one_device
    moved = {}
    for limit in (None, 0.25):
        config = run.config.optimizer.with_fields({"name": "sgd", "clip_norm": limit, "weight_decay": 0.0})
        h = Hyperparameters.build(
            config, steps=10, dropout=run.config.model.dropout.rates(), loss_weights=run.config.task.loss_weights()
        )
        begun = state.replace(opt_state=make_optimizer(config, h, state.step).init(state.params))
        after, metrics = jax.jit(make_train_step(run.model, run.task, config, 1))(begun, batch, h)
        moved[limit] = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    assert float(metrics["grad_norm"]) > 0.5
    assert float(moved[0.25] / moved[None]) == pytest.approx(0.25 / float(metrics["grad_norm"]), rel=1e-3)


def with_rate(hparams, rate):
    """Returns the hyperparameters with another learning rate."""
    return hparams.replace(optimizer=hparams.optimizer.replace(learning_rate=rate))


def test_many_values_train_at_once_under_vmap(one_device):
    _, step, state, batch, hparams = one_device
    rates = jnp.array([1e-3, 1e-2])
    axes = with_rate(jax.tree.map(lambda x: None, hparams), 0)
    both, _ = jax.vmap(step, (None, None, axes))(state, batch, with_rate(hparams, rates))
    for i, rate in enumerate(rates):
        alone, _ = step(state, batch, with_rate(hparams, rate))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), both.params, alone.params
        )


def test_training_memorises_a_batch(one_device):
    _, step, state, batch, hparams = one_device
    hparams = with_rate(hparams, jnp.float32(3e-2)).replace(total_steps=jnp.float32(1e6))
    first = None
    for _ in range(60):
        state, metrics = step(state, batch, hparams)
        first = float(metrics["loss"]) if first is None else first
    assert float(metrics["loss"]) < 0.25 * first


def test_evaluation_counts_bytes_of_weighted_targets_only(one_device):
    run, _, state, batch, _ = one_device
    token_bytes = np.arange(run.config.model.vocab_size, dtype=np.int32)
    sums, num_bytes = jax.jit(make_eval_step(run.model, run.task))(state.params, batch, token_bytes)
    assert float(num_bytes["next_token"]) == np.asarray(batch["targets"])[np.asarray(batch["weights"]) > 0].sum()
    assert float(sums["next_token"].weight) == np.asarray(batch["weights"]).sum()


def test_penalties_are_minimised_and_reported_apart(one_device):
    """The total loss includes them; each objective's own loss is the plain cross entropy, as in evaluation."""
    run, step, state, batch, hparams = one_device
    _, plain = step(state, batch, hparams)
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))
    on = hparams.replace(penalties=Penalties(jnp.float32(0.1), jnp.float32(0.2)))
    _, metrics = step(state, batch, on)
    assert metrics["next_token/loss"] == pytest.approx(float(plain["next_token/loss"]), rel=1e-5)
    assert metrics["loss"] > plain["loss"] + 0.1
    assert abs(metrics["grad_norm"] - plain["grad_norm"]) > 1e-3, "the gradient does not include the penalties"
    compiled = step._cache_size()
    step(state, batch, on.replace(penalties=Penalties(jnp.float32(0.3), jnp.float32(0.0))))
    assert step._cache_size() == compiled
    evaluate = jax.jit(make_eval_step(run.model, run.task))
    sums, _ = evaluate(state.params, batch, np.zeros(run.config.model.vocab_size, np.int32))
    assert sums["next_token"].penalty == 0


@pytest.fixture(scope="module")
def experts(tiny, tmp_path_factory):
    """Returns a run whose layers have experts, without dropout, and its state, batch and hyperparameters."""
    off = {"model__dropout__residual": 0, "model__dropout__attention": 0}
    options = {"model__moe__num_experts": 4, "model__moe__top_k": 2, "model__moe__balance_weight": 0.5}
    run = build(tiny("next_token", **off, **options), tmp_path_factory.mktemp("experts"))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    hparams = jax.device_put(jax.device_get(run.hparams), jax.devices()[0])
    make_state, _ = state_maker(run.model, run.config.optimizer, hparams, 0, mesh)
    return run, make_state(), to_device(real_batch(run), mesh), hparams


def test_router_losses_are_in_the_loss_once(experts):
    run, state, batch, hparams = experts
    _, metrics = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1))(state, batch, hparams)
    assert float(hparams.loss_weights["router_balance"]) == 0.5
    total = sum(hparams.loss_weights[n] * metrics[f"{n}/loss"] for n in ("next_token", "router_balance", "router_z"))
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-6)
    assert 0.9 < metrics["router_balance/loss"] < 1.5, "not near 1, which is perfect balance"
    assert "router_balance/accuracy" not in metrics
    sums, _ = jax.jit(make_eval_step(run.model, run.task))(state.params, batch, np.zeros(64, np.int32))
    assert set(sums) == {"next_token"}, "the held-out loss includes losses of the routers"


def test_accumulation_counts_router_losses_once(experts):
    """The z-loss is a mean over tokens, so four microbatches give the same sums and gradient as one batch."""
    run, state, batch, hparams = experts
    only = hparams.replace(loss_weights={n: jnp.float32(n == "router_z") for n in hparams.loss_weights})
    (whole, grads), (parts, parts_grads) = (
        jax.jit(lambda s, b, n=n: loss_and_gradients(run.model, run.task, s, b, only, n))(state, batch) for n in (1, 4)
    )
    for a, b in zip(jax.tree.leaves(parts["router_z"]), jax.tree.leaves(whole["router_z"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts_grads, grads)


def test_the_balance_of_routers_is_that_of_each_microbatch_and_of_a_whole_mesh(experts):
    """The balance loss is a product of means over tokens: each microbatch has its own, but devices share one."""
    run, state, batch, hparams = experts

    def balance(batch, accumulation):
        sums, _ = loss_and_gradients(run.model, run.task, state, batch, hparams, accumulation)
        return sums["router_balance"]

    parts = [jax.tree.map(lambda x, i=i: x[i], microbatches(batch, 4)) for i in range(4)]
    alone = [jax.jit(balance, static_argnums=1)(part, 1) for part in parts]
    together, whole = (jax.jit(balance, static_argnums=1)(batch, n) for n in (4, 1))
    np.testing.assert_allclose(together.loss, sum(part.loss for part in alone), rtol=1e-5)
    np.testing.assert_allclose(together.weight, whole.weight, rtol=1e-5)
    assert together.loss > whole.loss * 1.0001, "the balance is not that of each microbatch, as MoE's docstring says"
    mesh = make_mesh(ParallelConfig(), jax.devices()[:4])
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        split = to_device(real_batch(run), mesh)
        placed = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        found, _ = jax.jit(lambda s, b: loss_and_gradients(run.model, run.task, s, b, jax.device_get(hparams), 1))(
            placed, split
        )
    np.testing.assert_allclose(found["router_balance"].loss, whole.loss, rtol=1e-5)


def test_tokens_are_counted_past_32_bits():
    seen = jnp.array([2**32 - 5, 7], jnp.uint32)
    assert read_tokens(add_tokens(seen, jnp.uint32(9))) == (7 << 32) + 2**32 - 5 + 9


def test_the_gradient_is_that_of_the_loss_that_is_reported(experts):
    """For each loss alone, also the routers': the minimised and the reported loss have separate implementations."""
    run, state, batch, hparams = experts

    def compute(params, h):
        return loss_and_gradients(run.model, run.task, state.replace(params=params), batch, h, 1)

    def reported(params, h):
        return loss_metrics(compute(params, h)[0], h.loss_weights)["loss"]

    both = jax.jit(lambda h: (compute(state.params, h)[1], jax.grad(reported)(state.params, h)))
    for name in hparams.loss_weights:
        found, expected = both(
            hparams.replace(loss_weights={n: jnp.float32(2 * (n == name)) for n in hparams.loss_weights})
        )
        size = float(optax.tree.norm(expected))
        assert size > 1e-3, name
        jax.tree.map(lambda a, b, size=size: np.testing.assert_allclose(a, b, atol=1e-4 * size), found, expected)


def test_the_sums_of_the_routers_are_those_that_the_model_leaves(experts):
    run, state, batch, hparams = experts
    sums, _ = jax.jit(lambda s: loss_and_gradients(run.model, run.task, s, batch, hparams, 1))(state)
    _, left = run.model.apply({"params": state.params}, batch, mutable=[AUXILIARY])
    for name, (loss, weight) in auxiliary_sums(left[AUXILIARY]).items():
        assert float(sums[name].loss) == pytest.approx(float(loss), rel=1e-5)
        assert float(sums[name].weight) == float(weight)


def test_microbatches_and_steps_draw_masks_of_dropout_of_their_own(one_device):
    """Two microbatches of the same rows have the same loss without dropout, and different ones with it."""
    run, _, state, batch, hparams = one_device
    # With the small initial parameters the logits would hardly depend on dropout.
    state = state.replace(params=jax.tree.map(lambda x: 4 * x, state.params))
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)  # each microbatch takes every other row

    def loss(rows, accumulation, state=state, rate=None):
        h = hparams.replace(dropout=DropoutRates(residual=rate))
        sums, _ = loss_and_gradients(run.model, run.task, state, rows, h, accumulation)
        return sums["next_token"].loss / sums["next_token"].weight

    compute = jax.jit(loss, static_argnums=1)
    assert float(compute(twice, 2)) == pytest.approx(float(compute(batch, 1)), rel=1e-6)
    rate = jnp.float32(0.3)
    once = float(compute(batch, 1, rate=rate))
    assert abs(float(compute(twice, 2, rate=rate)) - once) > 1e-3
    assert abs(float(compute(batch, 1, state.replace(step=state.step + 1), rate)) - once) > 1e-3


def test_the_learning_rate_that_is_reported_is_the_one_of_the_update(one_device):
    """Adam's first update equals the learning rate where there is no decay; the schedule counts updates from 0."""
    run, step, state, batch, hparams = one_device
    config = run.config.optimizer
    for number in range(2):
        after, metrics = step(state, batch, hparams)
        assert metrics["learning_rate"] == learning_rate(config, hparams, jnp.int32(number))
        assert float(metrics["learning_rate"]) == pytest.approx((number + 1) / 40 * config.learning_rate, rel=1e-6)
        if number == 0:
            scales = (s.params["backbone"]["stack"]["final_norm"]["scale"] for s in (after, state))
            moved = jnp.abs(jnp.subtract(*scales)).max()
            assert float(moved) == pytest.approx(float(metrics["learning_rate"]), rel=2e-3)
        state = after


def test_signs_of_the_curvature_are_new_at_every_step(one_device, monkeypatch):
    """Otherwise Sophia would average estimates that all have the same error."""
    run, _, state, batch, hparams = one_device
    monkeypatch.setattr(
        "lmjax.training.step.hutchinson",
        lambda gradient, params, key: jax.tree.map(lambda x: jnp.full(x.shape, jax.random.uniform(key)), params),
    )
    config = run.config.optimizer.model_copy(update={"name": "sophia"})
    sophia = hparams.optimizer.sophia.replace(curvature_every=jnp.float32(1), beta2=jnp.float32(0))
    hparams = hparams.replace(optimizer=hparams.optimizer.replace(sophia=sophia))
    opt_state = make_optimizer(config, hparams, state.step).init(state.params)
    step = jax.jit(make_train_step(run.model, run.task, config, 1))
    state, drawn = state.replace(opt_state=opt_state), []
    for _ in range(2):
        state, _ = step(state, batch, hparams)
        drawn.append(float(optax.tree.get(state.opt_state, "curvature")["embedding"]["table"][0, 0]))
    assert drawn[0] != drawn[1]


@pytest.fixture(scope="module")
def two_passes(tiny, tmp_path_factory):
    """A run with dropout and R-Drop, whose rows hold several documents."""
    return build(tiny("next_token", task__r_drop=3, model__dropout__residual=0.2), tmp_path_factory.mktemp("two"))


def test_r_drop_divides_by_the_weight_of_the_whole_batch(two_passes):
    """The masks are those of each microbatch, so the whole is the sum of what each gives, over the whole weight."""
    run = two_passes
    _, found = gradients(run, {}, 2, jax.devices()[:1])
    batch = real_batch(run)
    weight, params = batch["weights"].sum(), None
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    state = state_maker(run.model, run.config.optimizer, run.hparams, run.config.seed, mesh)[0]()
    params, key = state.params, jax.random.fold_in(state.key, state.step)
    hparams = jax.device_put(jax.device_get(run.hparams), jax.devices()[0])

    def loss(params):
        total = 0.0
        for index, rows in enumerate((slice(0, None, 2), slice(1, None, 2))):
            part = {name: jnp.asarray(x[rows]) for name, x in batch.items()}
            passed = forward(run.model, params, part, key=jax.random.fold_in(key, index),
                             dropout_rates=hparams.dropout, penalties=hparams.penalties)  # fmt: skip
            sums = run.task.losses(passed, part)["next_token"]
            total += (sums.loss + sums.penalty) / weight
        return total

    expected = jax.device_get(jax.jit(jax.grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_the_mesh_leaves_the_gradient_of_r_drop(two_passes):
    """With dropout: a mask is drawn for the whole batch, wherever its parts are."""
    sums, found = gradients(two_passes, {"data": 2, "fsdp": 2, "tensor": 2}, 1)
    plain_sums, plain_found = gradients(two_passes, {}, 1, jax.devices()[:1])
    assert sums["next_token"].penalty > 1e-3 * sums["next_token"].weight, "both passes have the same masks"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), sums, plain_sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, plain_found)


def test_the_weight_of_r_drop_is_traced_and_evaluations_have_one_pass(two_passes):
    """Twice the weight adds twice as much, by the same program; without dropout both passes are equal."""
    run = two_passes
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    state = state_maker(run.model, run.config.optimizer, run.hparams, run.config.seed, mesh)[0]()
    batch, hparams = to_device(real_batch(run), mesh), jax.device_get(run.hparams)
    compute = jax.jit(lambda h: loss_and_gradients(run.model, run.task, state, batch, h, 1)[0]["next_token"])
    once, twice = (compute(hparams.replace(penalties=Penalties(r_drop=np.float32(x)))) for x in (3, 6))
    assert compute._cache_size() == 1
    np.testing.assert_allclose(twice.penalty, 2 * once.penalty, rtol=1e-5)
    np.testing.assert_allclose(twice.loss, once.loss, rtol=1e-6)
    evaluated = jax.jit(make_eval_step(run.model, run.task))(state.params, batch, jnp.asarray(run.token_bytes()))
    assert evaluated[0]["next_token"].penalty == 0
