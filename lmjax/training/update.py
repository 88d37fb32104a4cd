"""The parts around every optimizer: learning rate, clipping, weight decay, groups and frozen parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from lmjax.model.parameter_paths import map_named
from lmjax.training.groups import decay_mask, is_frozen, rate_factors
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.schedules import Phase
from lmjax.training.sparsity import sparse


def learning_rate(config: OptimizerConfig, h: Hyperparameters, step: jax.Array) -> jax.Array:
    """Returns the learning rate of update `step` (from 0): linear warm-up, then the schedule.

    The first of n warm-up updates has 1 / n of the peak and the last one has the peak; without warm-up the first update
    has the peak. The last update of the run has `final_ratio` of the peak, unless the schedule has no end. Joined
    schedules divide the steps after the warm-up, and each starts from the rate at which the one before it ended. If the
    warm-up is as long as the run, no schedule follows it.
    """
    numbers = h.optimizer
    # The updates are numbered from 1 to `total_steps`.
    number = step.astype(jnp.float32) + 1
    warmup_steps = jnp.maximum(numbers.warmup_steps, 1)
    joined = config.joined.schedules
    ends = jnp.cumsum(numbers.joined.shares) if joined else jnp.ones(1)
    decay_steps = jnp.maximum(h.total_steps - warmup_steps, 0)

    begin, start = warmup_steps, jnp.ones(())
    factor = start
    for name, end in zip(joined or (config.schedule,), list(ends / ends[-1]), strict=True):
        shape, own = config.shape(name), getattr(numbers, name, None)
        last = warmup_steps + end * decay_steps
        progress = jnp.clip((number - begin) / jnp.maximum(last - begin, 1e-6), 0, 1)
        phase = Phase(progress, number, begin, start, numbers.final_ratio)
        factor = jnp.where(number > begin, shape.factor(phase, own), factor)
        start = shape.factor(phase._replace(progress=jnp.ones(()), step=last), own)
        begin = last
    return numbers.learning_rate * jnp.minimum(number / warmup_steps, 1) * factor


def make_optimizer(
    config: OptimizerConfig, h: Hyperparameters, step: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of update `step`. The structure of its state depends on the config, not on the numbers.

    Its `update(grads, state, params, norm=n, curvature=f)` takes float32 trees; `n` is the gradients' norm if it is
    known, and `f()` returns an estimate of the Hessian's diagonal, for the optimizers that use one.
    """
    rate = learning_rate(config, h, step)
    rule, own = config.rule, getattr(h.optimizer, config.name)
    decoupled = not rule.decay_in_gradient if config.decoupled is None else config.decoupled
    decay = optax.add_decayed_weights(h.optimizer.weight_decay, mask=decay_mask)
    parts = [] if h.optimizer.clip_norm is None else [clipped(h.optimizer.clip_norm)]
    parts += [rule.direction(own), decay] if decoupled else [decay, rule.direction(own)]
    if config.group_patterns or config.layer_decay != 1 or h.width_factor is not None:
        parts.append(optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, rate_factors(config, h, u))))
    optimizer = rule.wrapped(own, optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate)
    if 0 in config.group_factors:
        optimizer = optax.partition(
            {"learning": optimizer, "frozen": optax.set_to_zero()},
            lambda tree: map_named(lambda names, _: "frozen" if is_frozen(config, names) else "learning", tree),
        )
    return sparse(config.sparsity, optax.with_extra_args_support(optimizer), step)


def clipped(limit: jax.Array) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that scales updates whose norm is greater than `limit` to it (Pascanu et al. 2013).

    `optax.clip_by_global_norm` computes the norm again and divides every element by it, and XLA on a CPU writes the
    quotients to memory: 2 % of a training step of GPT-2. Here the elements are multiplied by one number.
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        norm: jax.Array | None = None,
        **_: object,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        norm = optax.tree.norm(updates) if norm is None else norm
        factor = jnp.where(norm > limit, limit / norm, 1.0)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
