"""One contract for all optimizers: the paper's numbers, and nothing that depends on how parameters are laid out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.model.config import DropoutRates
from lmjax.model.parameter_paths import map_named, names_of
from lmjax.training.checkpoint import CheckpointConfig, Checkpoints
from lmjax.training.groups import decay_mask
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.optimizers import OPTIMIZERS, averaged_iterate, hutchinson, make_optimizer, orthogonalized
from lmjax.training.rounding import add_updates
from lmjax.training.state import as_float32

RATES = {
    "adamw": 1e-2, "adam": 1e-2, "sgd": 3e-2, "adafactor": 5e-2, "lion": 3e-3, "muon": 5e-2, "schedule_free": 3e-2,
    "sophia": 1e-2,
}  # fmt: skip


def config_of(name, **fields):
    own = {"learning_rate": RATES[name], "schedule": "constant", "weight_decay": 0.01, "factor_from": 2}
    return OptimizerConfig(**(own | {"name": name, "curvature_every": 2} | fields))


def numbers(config):
    return Hyperparameters.build(config, steps=100, dropout=DropoutRates(), loss_weights={})


def layers(rng):
    """Two stacked layers: attention's kernels with their heads, and a norm."""
    sizes = {
        "attention": {"query": {"kernel": (2, 8, 2, 8)}, "out": {"kernel": (2, 2, 8, 8)}},
        "norm": {"scale": (2, 8)},
    }
    return jax.tree.map(lambda s: 0.3 * rng.normal(size=s), sizes, is_leaf=lambda x: isinstance(x, tuple))


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    tree = {"embedding": {"table": rng.normal(size=(16, 8))}, "stack": {"layers": layers(rng)}}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def unrolled(params):
    """The same parameters, a name for every layer."""
    stacked = params["stack"]["layers"]
    return params | {"stack": {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(2)}}


def lm_loss(params, tokens):
    """A tiny language model: attention's kernels as an MLP, the embedding as output; cross entropy of successors."""
    table = params["embedding"]["table"]

    def layer(x, p):
        hidden = jnp.einsum(
            "ble,ehd->blhd", x * (1 + p["norm"]["scale"][None, None]), p["attention"]["query"]["kernel"]
        )
        return x + jnp.einsum("blhd,hde->ble", jnp.tanh(hidden), p["attention"]["out"]["kernel"]), None

    x, _ = jax.lax.scan(layer, table[tokens[:, :-1]], params["stack"]["layers"])
    return optax.losses.softmax_cross_entropy_with_integer_labels(x @ table.T, tokens[:, 1:]).mean()


def regression_loss(params, tokens):
    """A line through every layer's kernel."""
    del tokens
    x = jnp.linspace(-1, 1, 32).reshape(4, 8)
    return jnp.mean((jnp.einsum("be,leo->blo", x, params["layers"]["up"]["kernel"]) - 2 * x[:, None, :1]) ** 2)


TOKENS = jnp.asarray(np.random.default_rng(1).permutation(16)[np.arange(12) % 7].reshape(1, 12))


def update(config, params, opt_state, grads, step, curvature=None):
    optimizer = make_optimizer(config, numbers(config), step)
    estimate = (lambda: jax.tree.map(jnp.abs, grads)) if curvature is None else (lambda: curvature)
    updates, opt_state = optimizer.update(grads, opt_state, params, curvature=estimate)
    return optax.apply_updates(params, updates), opt_state


@functools.cache
def compiled(config):
    """Returns the update of a config, jitted once for all tests."""
    return jax.jit(functools.partial(update, config))


def initial(config, params):
    return make_optimizer(config, numbers(config), jnp.int32(0)).init(params)


def some_grads(seed, params):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)


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
    assert step._cache_size() == 1, "the state changes its type on the way"
    assert float(loss(averaged_iterate(opt_state, params), TOKENS)) < 0.7 * first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_structure_of_the_state_depends_on_no_number(name):
    others = {"weight_decay": 0.0, "beta2": 0.5, "momentum": 0.0, "learning_rate": 1.0, "curvature_every": 7}
    one, other = (
        jax.eval_shape(lambda p, c=c: initial(c, p), parameters()) for c in (config_of(name), config_of(name, **others))
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == jax.tree.leaves(other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_scanned_and_in_turn_get_the_same_update(name):
    """Optax's adafactor, and muon without its axes, fail this: they would see other matrices."""
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
    assert [p for p in paths if "stack" in p], "no parameter has state: the test sees nothing"


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
    """Where the gradient is zero, decay alone moves a parameter."""
    config = config_of(name, weight_decay=0.5, decoupled=decoupled)
    params = parameters()
    zeros = jax.tree.map(jnp.zeros_like, params)
    after, _ = compiled(config)(params, initial(config, params), zeros, jnp.int32(0))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, params)
    assert moved == decay_mask(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_brings_the_state_back_bit_for_bit(name, tmp_path):
    config = config_of(name, moment_dtype="bfloat16")
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
    """In the mean over many elements they are those of float32; rounded to the nearest, not one would move."""
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
    assert float(jnp.max(jnp.abs(moved["float32"]))) / steps < spacing / 2, "an update is as large as the spacing"
    along = moved["bfloat16"] * jnp.sign(moved["float32"])
    assert float(along.mean()) == pytest.approx(float(jnp.abs(moved["float32"]).mean()), rel=0.15)


def newton_schulz(x):
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Reference:
    """The papers' algorithms in float64 for a matrix (`is_kernel`) or a vector, one step at a time."""

    def __init__(self, config, x, is_kernel):
        self.c, self.x, self.is_kernel, self.t = config, np.asarray(x, np.float64), is_kernel, 0
        self.m, self.v, self.w = np.zeros_like(self.x), np.zeros_like(self.x), 0.0
        self.rows, self.columns = (np.zeros(n) for n in (self.x.shape * 2)[:2])
        self.z, self.averaged = self.x.copy(), self.x.copy()

    def step(self, g, curvature):
        c, self.t = self.c, self.t + 1
        decay = c.weight_decay if self.is_kernel else 0.0
        if c.name in ("adam", "sgd"):
            g, decay = g + decay * self.x, 0.0
        direction = getattr(self, f"_{c.name}")
        self.x = self.x - c.learning_rate * (direction(g, curvature) + decay * self.x)

    def _moments(self, g):
        c = self.c
        self.m = c.beta1 * self.m + (1 - c.beta1) * g
        self.v = c.beta2 * self.v + (1 - c.beta2) * g**2
        return self.m / (1 - c.beta1**self.t), np.sqrt(self.v / (1 - c.beta2**self.t)) + c.epsilon

    def _adamw(self, g, _):
        mean, root = self._moments(g)
        return mean / root

    _adam = _adamw

    def _sgd(self, g, _):
        self.m = self.c.momentum * self.m + g
        return g + self.c.momentum * self.m

    def _lion(self, g, _):
        sign = np.sign(self.c.beta1 * self.m + (1 - self.c.beta1) * g)
        self.m = self.c.beta2 * self.m + (1 - self.c.beta2) * g
        return sign

    def _adafactor(self, g, _):
        decay = 1 - self.t**-self.c.decay_exponent
        squares = g**2 + 1e-30
        if self.is_kernel:
            self.rows = decay * self.rows + (1 - decay) * squares.mean(1)
            self.columns = decay * self.columns + (1 - decay) * squares.mean(0)
            second = np.outer(self.rows, self.columns) / self.rows.mean()
        else:
            second = self.v = decay * self.v + (1 - decay) * squares
        u = g / np.sqrt(second)
        u /= max(1, np.sqrt((u**2).mean()) / self.c.update_clip)
        return max(1e-3, np.sqrt((self.x**2).mean())) * u

    def _muon(self, g, _):
        if not self.is_kernel:
            return self._adamw(g, _)
        nesterov = self._sgd(g, _)
        result = newton_schulz(nesterov)
        result = result if result.shape == g.shape else result.T
        return self.c.muon_rms * np.sqrt(max(g.shape)) * result

    def _schedule_free(self, g, _):
        """`self.x` is the paper's y; the step above adds decay at y to nothing, so all is done here."""
        c = self.c
        self.v = c.beta2 * self.v + (1 - c.beta2) * g**2
        root = np.sqrt(self.v / (1 - c.beta2**self.t)) + c.epsilon
        decay = c.weight_decay if self.is_kernel else 0.0
        self.z = self.z - c.learning_rate * (g / root + decay * self.x)
        self.averaged += (self.z - self.averaged) / self.t
        y = (1 - c.beta1) * self.z + c.beta1 * self.averaged
        return (self.x - y) / c.learning_rate - decay * self.x

    def _sophia(self, g, curvature):
        c = self.c
        self.m = c.beta1 * self.m + (1 - c.beta1) * g
        if self.t % c.curvature_every == 1:
            self.v = c.beta2 * self.v + (1 - c.beta2) * curvature
        return np.clip(self.m / np.maximum(c.gamma * self.v, c.epsilon), -1, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_equal_the_papers_in_float64(name):
    config = config_of(name, learning_rate=0.1, weight_decay=0.2, clip_norm=None, gamma=20.0)
    rng = np.random.default_rng(0)
    params = {"layer_0": {"up": {"kernel": rng.normal(size=(4, 6)), "bias": rng.normal(size=6)}}}
    reference = {n: Reference(config, x, n == "kernel") for n, x in params["layer_0"]["up"].items()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    step, opt_state = compiled(config), initial(config, params)
    for number in range(3):
        grads, curvature = ({n: rng.normal(size=r.x.shape) for n, r in reference.items()} for _ in range(2))
        given = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float32), [{"layer_0": {"up": t}} for t in (grads, curvature)]
        )
        params, opt_state = step(params, opt_state, given[0], jnp.int32(number), given[1])
        for n, r in reference.items():
            r.step(grads[n], curvature[n])
            np.testing.assert_allclose(params["layer_0"]["up"][n], r.x, rtol=2e-4, atol=2e-5)
    if name == "schedule_free":
        found = averaged_iterate(opt_state, params)["layer_0"]["up"]
        for n, r in reference.items():
            np.testing.assert_allclose(found[n], r.averaged, rtol=2e-4, atol=2e-5)
            assert not np.allclose(r.averaged, r.x, rtol=1e-3), "the average is not another point"


def test_clipping_limits_the_norm_of_all_that_learns():
    config = config_of("sgd", clip_norm=0.5, weight_decay=0.0, group_patterns=("embedding",), group_factors=(0,))
    params, grads = parameters(), some_grads(0, parameters())
    after, _ = update(config, params, initial(config, params), grads, jnp.int32(0))
    moved = jax.tree.map(jnp.subtract, after["stack"], params["stack"])
    # The first step of Nesterov's momentum is 1 + momentum gradients long.
    assert optax.tree.norm(moved) == pytest.approx(config.learning_rate * 0.5 * 1.95, rel=1e-4)


def test_orthogonalised_matrices_have_singular_values_near_one():
    x = jax.random.normal(jax.random.key(0), (3, 6, 16))
    values = np.linalg.svd(orthogonalized(x), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    np.testing.assert_allclose(orthogonalized(x.swapaxes(1, 2)), orthogonalized(x).swapaxes(1, 2), atol=1e-5)


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    scales = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 2))}
    gradient = jax.grad(lambda p: sum(jnp.sum(scales[n] * x**2) / 2 for n, x in p.items()))
    found = hutchinson(gradient, jax.tree.map(jnp.ones_like, scales), jax.random.key(3))
    jax.tree.map(np.testing.assert_allclose, found, scales)


def test_hutchinson_is_right_in_the_mean_where_the_hessian_is_not_diagonal():
    """Inside a parameter and between two: signs that are equal, or equal for both, would add whole rows."""
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    matrix = jnp.asarray(matrix + matrix.T, jnp.float32)

    def gradient(params):
        return jax.grad(lambda p: jnp.concatenate([p["a"], p["b"]]) @ matrix @ jnp.concatenate([p["a"], p["b"]]) / 2)(
            params
        )

    ones = {"a": jnp.ones(3), "b": jnp.ones(3)}
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: hutchinson(gradient, ones, key))(keys)
    means = jnp.concatenate([found["a"].mean(0), found["b"].mean(0)])
    np.testing.assert_allclose(means, jnp.diag(matrix), atol=0.25)
    assert float(jnp.abs(matrix.sum(1) - jnp.diag(matrix)).max()) > 1, "the rows do not show it"
