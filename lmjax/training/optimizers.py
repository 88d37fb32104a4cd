"""The optimizers: each a direction for every gradient, and one frame of clipping, decay, rates and frozen groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.model.parameter_paths import is_hidden_matrix, is_matrix, is_scanned, map_named, matrix_shape, names_of
from lmjax.training.groups import decay_mask, is_frozen, rate_factors
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.schedules import learning_rate

PyTree = Any
Transformation = optax.GradientTransformation


def _adam(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; beside decay, AdamW's direction (arXiv:1711.05101, alg. 2)."""
    return optax.scale_by_adam(h.beta1, h.beta2, h.epsilon, mu_dtype=config.moment_dtype)


def _sgd(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """Gradients with momentum (Sutskever et al. 2013, section 2), undamped as torch has it."""
    return optax.trace(h.momentum, config.nesterov, config.moment_dtype)


def _lion(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2."""
    return optax.scale_by_lion(h.beta1, h.beta2, config.moment_dtype)


class AdafactorState(NamedTuple):
    """Adafactor's state: updates so far, and second moments by parameter, as rows and columns where factored."""

    count: jax.Array
    second_moments: PyTree


def _adafactor(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5, without momentum.

    Not optax's, which takes the two largest axes of an array for a matrix: of stacked layers or attention's kernels
    these are others than a layer's own.
    """

    def factored(names: tuple[str, ...], shape: tuple[int, ...]) -> bool:
        return is_matrix(names) and min(matrix_shape(names, shape)[1:]) >= config.factor_from

    def init(params: PyTree) -> AdafactorState:
        def zeros(names: tuple[str, ...], leaf: jax.Array) -> PyTree:
            if not factored(names, leaf.shape):
                return jnp.zeros(leaf.shape, jnp.float32)
            count, rows, columns = matrix_shape(names, leaf.shape)
            return {"rows": jnp.zeros((count, rows)), "columns": jnp.zeros((count, columns))}

        return AdafactorState(jnp.zeros((), jnp.int32), map_named(zeros, params))

    def update(grads: PyTree, state: AdafactorState, params: PyTree) -> tuple[PyTree, AdafactorState]:
        count = state.count + 1
        decay = 1 - count.astype(jnp.float32) ** -h.decay_exponent

        def second_moment(names: tuple[str, ...], grad: jax.Array, old: PyTree) -> PyTree:
            squares = jnp.square(grad) + _SQUARE_FLOOR
            if not factored(names, grad.shape):
                return decay * old + (1 - decay) * squares
            squares = squares.reshape(matrix_shape(names, grad.shape))
            new = {"rows": squares.mean(axis=2), "columns": squares.mean(axis=1)}
            return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, new)

        def direction(names: tuple[str, ...], grad: jax.Array, param: jax.Array, moment: PyTree) -> jax.Array:
            if isinstance(moment, dict):
                rows, columns = moment["rows"], moment["columns"]
                rows = rows / rows.mean(axis=1, keepdims=True)
                moment = (rows[:, :, None] * columns[:, None, :]).reshape(grad.shape)
            # Stacked layers are clipped and scaled one by one, as they are when they are not stacked.
            axes = tuple(range(int(is_scanned(names)), grad.ndim))
            step = grad * jax.lax.rsqrt(moment)
            step /= jnp.maximum(1, _rms(step, axes) / h.update_clip)
            return step * jnp.maximum(_rms(param, axes), _SCALE_FLOOR) if config.parameter_scale else step

        moments = map_named(second_moment, grads, state.second_moments)
        return map_named(direction, grads, params, moments), AdafactorState(count, moments)

    return Transformation(init, update)


# Epsilon 1 and epsilon 2 of Adafactor's algorithm 6.
_SQUARE_FLOOR, _SCALE_FLOOR = 1e-30, 1e-3


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def _muon(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: the layers' kernels; AdamW has the rest.

    An update's size is `muon_rms` whatever the matrix's shape (Liu et al. 2025, arXiv:2502.16982, section 2.2), so one
    learning rate and decay serve both.
    """

    def orthogonal(names: tuple[str, ...], x: jax.Array) -> jax.Array:
        matrices = matrix_shape(names, x.shape)
        return (h.muon_rms * max(matrices[1:]) ** 0.5 * orthogonalized(x.reshape(matrices))).reshape(x.shape)

    matrices = optax.chain(
        optax.trace(h.momentum, config.nesterov, config.moment_dtype),
        optax.stateless(lambda updates, params: map_named(orthogonal, updates)),
    )
    return optax.partition(
        {"muon": matrices, "adamw": _adam(config, h)},
        lambda tree: map_named(lambda names, _: "muon" if is_hidden_matrix(names) else "adamw", tree),
    )


def orthogonalized(x: jax.Array) -> jax.Array:
    """Returns matrices `[..., rows, columns]` with singular values pulled near 1 by five Newton-Schulz steps."""
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -1, -2) if tall else x
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7
    for _ in range(5):
        square = x @ jnp.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x


class SophiaState(NamedTuple):
    """Sophia's state: updates so far, first moment, and the curvature along every axis."""

    count: jax.Array
    mean: PyTree
    curvature: PyTree


def _sophia(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """Sophia-H (Liu et al. 2023, arXiv:2305.14342, algorithm 3, with Hutchinson's estimate, algorithm 1).

    Hutchinson's serves every objective; the other estimator, Gauss-Newton-Bartlett, would have to know how each draws
    its labels. Not optax's, which uses an estimate one step late and corrects a bias that the paper leaves.
    """

    def init(params: PyTree) -> SophiaState:
        mean = optax.tree.zeros_like(params, dtype=config.moment_dtype)
        return SophiaState(jnp.zeros((), jnp.int32), mean, optax.tree.zeros_like(params))

    def update(
        grads: PyTree, state: SophiaState, params: PyTree, *, curvature: Callable[[], PyTree], **others: Any
    ) -> tuple[PyTree, SophiaState]:
        del params, others

        def estimate(old: PyTree) -> PyTree:
            # What the optimizer does not see, because it is frozen or another's, is cut out of the whole tree.
            found = {names_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(curvature())}
            return map_named(lambda names, x: h.beta2 * x + (1 - h.beta2) * found[names], old)

        due = state.count % h.curvature_every.astype(jnp.int32) == 0
        diagonal = jax.lax.cond(due, estimate, lambda old: old, state.curvature)
        mean = jax.tree.map(lambda m, g: h.beta1 * m + (1 - h.beta1) * g, state.mean, grads)
        updates = jax.tree.map(lambda m, c: jnp.clip(m / jnp.maximum(h.gamma * c, h.epsilon), -1, 1), mean, diagonal)
        return updates, SophiaState(state.count + 1, optax.tree.cast(mean, config.moment_dtype), diagonal)

    return optax.GradientTransformationExtraArgs(init, update)


def hutchinson(gradient: Callable[[PyTree], PyTree], params: PyTree, key: jax.Array) -> PyTree:
    """Returns an unbiased estimate of the diagonal of the Hessian: signs times their product with the Hessian."""
    signs = optax.tree.random_like(key, params, jax.random.rademacher, dtype=jnp.float32)
    # Reverse over reverse: what has a backward pass of its own, such as attention in blocks, knows no other way.
    product = jax.grad(lambda params: optax.tree.vdot(gradient(params), signs))(params)
    return jax.tree.map(jnp.multiply, signs, product)


def _schedule_free(config: OptimizerConfig, h: Hyperparameters) -> Transformation:
    """AdamW without momentum of its own, inside `optax.contrib.schedule_free`, which interpolates and averages."""
    del config
    return optax.scale_by_adam(0.0, h.beta2, h.epsilon)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Hyperparameters], Transformation]] = {
    "adamw": _adam,
    "adam": _adam,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "schedule_free": _schedule_free,
    "sophia": _sophia,
}
_DECAY_IN_GRADIENT = ("adam", "sgd")


def make_optimizer(
    config: OptimizerConfig, h: Hyperparameters, step: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of update `step`. Its state's structure depends on the config alone, not on the numbers.

    Its `update(grads, state, params, curvature=f)` takes float32 trees; `f()` is an estimate of the Hessian's diagonal,
    which sophia alone asks for.
    """
    rate = learning_rate(config, h, step)
    decoupled = config.name not in _DECAY_IN_GRADIENT if config.decoupled is None else config.decoupled
    decay = optax.add_decayed_weights(h.weight_decay, mask=decay_mask)
    direction = OPTIMIZERS[config.name](config, h)
    parts = [] if h.clip_norm is None else [optax.clip_by_global_norm(h.clip_norm)]
    parts += [direction, decay] if decoupled else [decay, direction]
    if config.group_patterns or config.layer_decay != 1:
        parts.append(optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, rate_factors(config, h, u))))
    optimizer = optax.chain(*parts, optax.scale_by_learning_rate(rate))
    if config.name == "schedule_free":
        # Defazio et al. 2024, arXiv:2405.15682, section 4.
        optimizer = optax.contrib.schedule_free(optimizer, rate, h.beta1)
    if 0 in config.group_factors:
        optimizer = optax.partition(
            {"learning": optimizer, "frozen": optax.set_to_zero()},
            lambda tree: map_named(lambda names, _: "frozen" if is_frozen(config, names) else "learning", tree),
        )
    return optax.with_extra_args_support(optimizer)


def averaged_iterate(opt_state: PyTree, params: PyTree) -> PyTree:
    """Returns what to evaluate: schedule-free's averaged x, and for every other optimizer the parameters themselves."""

    def is_free(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_free) if is_free(node)]
    if not found:
        return params
    (state,) = found

    def average(y: jax.Array, z: jax.Array | optax.MaskedNode) -> jax.Array:
        # A frozen parameter has no z.
        return y if isinstance(z, optax.MaskedNode) else (y - (1 - state.b1) * z) / state.b1

    return jax.tree.map(average, params, state.z)
