"""Properties of all optimizers: updates do not depend on the layout of the parameters, and no state is lost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.model.parameter_paths import map_named, names_of
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.groups import decay_mask
from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.optimizers.schedule_free import averaged_iterate
from lmjax.training.optimizers.sophia import hutchinson
from lmjax.training.rounding import add_updates
from lmjax.training.state import as_float32
from lmjax.training.update import clipped, make_optimizer
from tests.training.optimizing import RATES, compiled, config_of, initial, numbers, parameters, some_grads, unrolled


def lm_loss(params, tokens):
    """Returns the cross entropy of next tokens in a tiny model: attention kernels as an MLP, tied embeddings."""
    table = params["embedding"]["table"]

    def layer(x, p):
        hidden = jnp.einsum(
            "ble,ehd->blhd", x * (1 + p["norm"]["scale"][None, None]), p["attention"]["query"]["kernel"]
        )
        return x + jnp.einsum("blhd,hde->ble", jnp.tanh(hidden), p["attention"]["out"]["kernel"]), None

    x, _ = jax.lax.scan(layer, table[tokens[:, :-1]], params["stack"]["layers"])
    return optax.losses.softmax_cross_entropy_with_integer_labels(x @ table.T, tokens[:, 1:]).mean()


def regression_loss(params, tokens):
    """Returns the squared error of a linear regression with every layer's kernel."""
    del tokens
    x = jnp.linspace(-1, 1, 32).reshape(4, 8)
    return jnp.mean((jnp.einsum("be,leo->blo", x, params["layers"]["up"]["kernel"]) - 2 * x[:, None, :1]) ** 2)


TOKENS = jnp.asarray(np.random.default_rng(1).permutation(16)[np.arange(12) % 7].reshape(1, 12))


@pytest.mark.parametrize("loss", [lm_loss, regression_loss], ids=["lm", "regression"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_lowers_the_loss_jitted_and_donated(name, loss):
    config = config_of(name)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, number):
        gradient = jax.grad(lambda p: loss(p, TOKENS))
        optimizer = make_optimizer(config, numbers(config), number)
        key = jax.random.fold_in(jax.random.key(0), number)
        updates, opt_state = optimizer.update(
            gradient(params), opt_state, params, curvature=lambda: hutchinson(gradient, params, key)
        )
        return optax.apply_updates(params, updates), opt_state

    params = parameters()
    if loss is regression_loss:
        params = {"layers": {"up": {"kernel": params["stack"]["layers"]["attention"]["out"]["kernel"][:, 0]}}}
    opt_state = initial(config, params)
    first = float(loss(params, TOKENS))
    for number in range(60):
        params, opt_state = step(params, opt_state, jnp.int32(number))
    assert step._cache_size() == 1, "the type of the state changes"
    assert float(loss(averaged_iterate(opt_state, params), TOKENS)) < 0.7 * first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_structure_of_the_state_depends_on_no_number(name):
    config = config_of(name)
    own = (field.name for field in dataclasses.fields(getattr(numbers(config).optimizer, name)))
    others = {f"{name}.{field}": 7 if field == "curvature_every" else 0.5 for field in own}
    others = config.with_fields(others | {"weight_decay": 0.0, "learning_rate": 1.0})
    one, other = (jax.eval_shape(lambda p, c=c: initial(c, p), parameters()) for c in (config, others))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == jax.tree.leaves(other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_scanned_and_in_turn_get_the_same_update(name):
    """Adafactor of optax, and muon without dimension numbers, fail this, because they use other matrices."""
    config = config_of(name, weight_decay=0.1, layer_decay=0.5)
    step = compiled(config)
    scanned = parameters()
    plain = unrolled(scanned)
    states = initial(config, scanned), initial(config, plain)
    for number in range(2):
        grads = some_grads(number, scanned)
        scanned, first = step(scanned, states[0], grads, jnp.int32(number))
        plain, second = step(plain, states[1], unrolled(grads), jnp.int32(number))
        states = first, second
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), unrolled(scanned), plain)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_mesh_leaves_the_update_as_it_is(name):
    config = config_of(name)
    params, grads = parameters(), some_grads(0, parameters())
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(names, x):
        wide = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
        spec = PartitionSpec(*(("fsdp" if i == wide else None) for i in range(x.ndim)))
        return jax.device_put(x, NamedSharding(mesh, spec))

    step = compiled(config)
    alone, _ = step(params, initial(config, params), grads, jnp.int32(0))
    spread = map_named(place, params)
    together, _ = step(spread, initial(config, spread), map_named(place, grads), jnp.int32(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), together, alone)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_do_not_move_and_cost_no_state(name):
    config = config_of(name, group_patterns=("query", "embedding"), group_factors=(0.5, 0))
    params = parameters()
    state = initial(config, params)
    after, state = compiled(config)(params, state, some_grads(0, params), jnp.int32(0))
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), after, params)
    assert same["embedding"]["table"]
    assert not any(jax.tree.leaves(same["stack"]))
    paths = [names_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not [p for p in paths if "embedding" in p]
    assert [p for p in paths if "stack" in p], "no parameter has state, so the test checks nothing"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_scales_the_update_of_its_group_alone(name):
    params, half = parameters(), {"group_patterns": ("query",), "group_factors": (0.5,)}
    moved = []
    for fields in ({}, half):
        config = config_of(name, **fields)
        step = compiled(config)
        after, _ = step(params, initial(config, params), some_grads(0, params), jnp.int32(0))
        moved.append(jax.tree.map(jnp.subtract, after, params))
    factors = map_named(lambda names, _: 0.5 if "query" in names else 1.0, params)
    jax.tree.map(lambda a, b, f: np.testing.assert_allclose(b, f * a, atol=1e-6), *moved, factors)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_acts_where_the_mask_says(name, decoupled):
    """With gradients of zero, only weight decay changes a parameter."""
    config = config_of(name, weight_decay=0.5, decoupled=decoupled)
    params = parameters()
    zeros = jax.tree.map(jnp.zeros_like, params)
    after, _ = compiled(config)(params, initial(config, params), zeros, jnp.int32(0))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, params)
    assert moved == decay_mask(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_brings_the_state_back_bit_for_bit(name, tmp_path):
    has_moments = "moment_dtype" in OPTIMIZERS[name].model_fields
    config = config_of(name, **({f"{name}__moment_dtype": "bfloat16"} if has_moments else {}))
    step = compiled(config)
    params = parameters()
    params, opt_state = step(params, initial(config, params), some_grads(0, params), jnp.int32(0))
    state = {"params": params, "opt_state": opt_state}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        restored = checkpoints.restore(abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    grads = some_grads(1, params)
    kept, back = (step(s["params"], s["opt_state"], grads, jnp.int32(1)) for s in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, kept, back)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_below_the_spacing_of_bfloat16_add_up(name):
    """Their mean over many elements equals that in float32; with rounding to the nearest no element would change."""
    config = config_of(name, weight_decay=0.0, clip_norm=None)
    shape = {"layer_0": {"up": {"kernel": jnp.full((64, 64), 1.5)}}}
    grads = jax.tree.map(lambda x: jnp.abs(x) + 0.5, some_grads(0, shape))
    spacing, steps = 2.0**-7, 8

    def direction(params, opt_state, number):
        optimizer = make_optimizer(config, numbers(config), number)
        return optimizer.update(grads, opt_state, params, curvature=lambda: jax.tree.map(jnp.abs, grads))

    updates, _ = jax.jit(direction)(shape, initial(config, shape), jnp.int32(0))
    size = 0.05 * spacing / float(jnp.mean(jnp.abs(jax.tree.leaves(updates)[0])))
    config = config.model_copy(update={"learning_rate": RATES[name] * size})
    moved = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        params = optax.tree.cast(shape, dtype)
        opt_state = initial(config, as_float32(params))

        @jax.jit
        def step(params, opt_state, number):
            updates, opt_state = direction(as_float32(params), opt_state, number)
            return add_updates(params, updates, jax.random.key(number)), opt_state

        for number in range(steps):
            params, opt_state = step(params, opt_state, jnp.int32(number))
        (found,) = jax.tree.leaves(params)
        assert found.dtype == dtype
        moved[dtype.__name__] = 1.5 - found.astype(jnp.float32)
    assert float(jnp.max(jnp.abs(moved["float32"]))) / steps < spacing / 2, "the updates are too large for this test"
    along = moved["bfloat16"] * jnp.sign(moved["float32"])
    assert float(along.mean()) == pytest.approx(float(jnp.abs(moved["float32"]).mean()), rel=0.15)


def test_clipping_limits_the_norm_of_all_that_learns():
    config = config_of("sgd", clip_norm=0.5, weight_decay=0.0, group_patterns=("embedding",), group_factors=(0,))
    params, grads = parameters(), some_grads(0, parameters())
    after, _ = compiled(config)(params, initial(config, params), grads, jnp.int32(0))
    moved = jax.tree.map(jnp.subtract, after["stack"], params["stack"])
    # The first step with Nesterov's momentum is 1 + momentum times the gradient.
    assert optax.tree.norm(moved) == pytest.approx(config.learning_rate * 0.5 * 1.95, rel=1e-4)


def test_gradients_within_the_limit_are_not_changed_and_a_known_norm_is_used():
    grads = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.zeros((2, 2))}
    for limit, known, factor in [(5.0, None, 1.0), (5.1, None, 1.0), (2.5, None, 0.5), (2.5, 10.0, 0.25)]:
        clip = clipped(jnp.float32(limit))
        norm = None if known is None else jnp.float32(known)
        found, _ = clip.update(grads, clip.init(grads), norm=norm)
        jax.tree.map(lambda f, g, factor=factor: np.testing.assert_allclose(f, factor * g, rtol=1e-6), found, grads)
    clip, other = clipped(1.0), optax.clip_by_global_norm(1.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        clip.update(grads, clip.init(grads))[0],
        other.update(grads, other.init(grads))[0],
    )
