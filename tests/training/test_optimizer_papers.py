"""The optimizers compute the same numbers as the algorithms in their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.training.optimizers import OPTIMIZERS
from lmjax.training.optimizers.muon import orthogonalized
from lmjax.training.optimizers.schedule_free import averaged_iterate
from lmjax.training.optimizers.sophia import hutchinson
from tests.training.optimizing import compiled, config_of, initial


def newton_schulz(x):
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Reference:
    """The papers' algorithms in float64, one step at a time, for a matrix (`is_kernel`) or a vector."""

    def __init__(self, config, x, is_kernel):
        self.config, self.c, self.is_kernel, self.t = config, config.rule, is_kernel, 0
        self.x = np.asarray(x, np.float64)
        self.m, self.v, self.w = np.zeros_like(self.x), np.zeros_like(self.x), 0.0
        self.rows, self.columns = (np.zeros(n) for n in (self.x.shape * 2)[:2])
        self.z, self.averaged = self.x.copy(), self.x.copy()

    def step(self, g, curvature):
        c, self.t = self.config, self.t + 1
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
        return self.c.rms * np.sqrt(max(g.shape)) * result

    def _schedule_free(self, g, _):
        """Returns the direction that moves `self.x`, the paper's y; it cancels the decay that `step` adds."""
        c = self.c
        self.v = c.beta2 * self.v + (1 - c.beta2) * g**2
        root = np.sqrt(self.v / (1 - c.beta2**self.t)) + c.epsilon
        rate, decay = self.config.learning_rate, self.config.weight_decay if self.is_kernel else 0.0
        self.z = self.z - rate * (g / root + decay * self.x)
        self.averaged += (self.z - self.averaged) / self.t
        y = (1 - c.beta1) * self.z + c.beta1 * self.averaged
        return (self.x - y) / rate - decay * self.x

    def _sophia(self, g, curvature):
        c = self.c
        self.m = c.beta1 * self.m + (1 - c.beta1) * g
        if self.t % c.curvature_every == 1:
            self.v = c.beta2 * self.v + (1 - c.beta2) * curvature
        return np.clip(self.m / np.maximum(c.gamma * self.v, c.epsilon), -1, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_equal_the_papers_in_float64(name):
    config = config_of(name, learning_rate=0.1, weight_decay=0.2, clip_norm=None, sophia__gamma=20.0)
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
            assert not np.allclose(r.averaged, r.x, rtol=1e-3), "the average equals the parameters"


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
    """Within a parameter and across two: if signs were equal, the estimate would be the sums of the Hessian's rows."""
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
    assert float(jnp.abs(matrix.sum(1) - jnp.diag(matrix)).max()) > 1, "the sums of rows are too close to the diagonal"
