"""One training step and one evaluation step, as pure functions of (state, batch, hyperparameters)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.model import cpu
from lmjax.model.language_model import LanguageModel
from lmjax.model.moe import LOSSES, auxiliary_weight
from lmjax.model.platform import platform
from lmjax.objectives.base import Batch
from lmjax.objectives.sums import LossSum
from lmjax.objectives.task import Task
from lmjax.parallel.pmap import over_replicas, replica_key
from lmjax.streams import named_key
from lmjax.training.averages import averaged
from lmjax.training.fixed import NOTHING_FIXED, Fixed
from lmjax.training.forward import ModelForward, evaluation_forward, forward
from lmjax.training.groups import zero_frozen
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.microbatches import cached_gradients, microbatches
from lmjax.training.optimizers.sophia import hutchinson
from lmjax.training.rounding import add_updates
from lmjax.training.scans import scan
from lmjax.training.spikes import judge
from lmjax.training.state import TrainState, add_tokens, as_float32
from lmjax.training.update import learning_rate, make_optimizer

PyTree = Any
Metrics = dict[str, jax.Array]


def whole_weights(
    model: LanguageModel, task: Task, batch: Batch, axis: str | None, fixed: Fixed = NOTHING_FIXED
) -> dict[str, jax.Array]:
    """Returns the weight of every loss over the whole batch by name; at least 1, so that an empty batch has loss 0."""
    weights = task.weights(batch)
    if fixed.teacher is not None:
        weights |= fixed.teacher.weights(task, model.config, batch)
    if model.config.moe.num_experts:
        weights |= dict.fromkeys(LOSSES, auxiliary_weight(model.config, batch))
    return jax.tree.map(lambda w: jnp.maximum(w, 1.0), over_replicas(weights, axis))


def count_tokens(batch: Batch) -> jax.Array:
    """Returns the number of tokens in a batch without padding."""
    return sum(jnp.sum(x > 0, dtype=jnp.uint32) for name, x in batch.items() if name.endswith("segment_ids"))


def loss_and_gradients(
    model: LanguageModel,
    task: Task,
    state: TrainState,
    batch: Batch,
    hparams: Hyperparameters,
    accumulation: int,
    axis: str | None = None,
    fixed: Fixed = NOTHING_FIXED,
) -> tuple[dict[str, LossSum], PyTree]:
    """Returns the loss sums of every objective over the batch, and the gradient of the batch's loss in float32.

    The loss is the sum over objectives of loss_weight * (loss + penalty) / weight of the whole batch, so the shape of
    the mesh does not change the gradient, up to rounding. Nor do microbatches and the replicas of pmap, except through
    what differs between them: dropout masks, the tokens that an objective samples, and a router's balance (`MoE`).

    Inside `jax.pmap`, with its `axis`, `batch` is one replica's part, the weights are those of the whole batch, and the
    returned sums and gradients are this replica's share, which the caller adds over the replicas. A sum over replicas
    in here would be differentiated too, and its transpose would add the same vector once for each replica.
    """
    whole = whole_weights(model, task, batch, axis, fixed)
    key = replica_key(jax.random.fold_in(state.key, state.step), axis)

    def passed(params: PyTree, part: Batch, index: jax.Array) -> ModelForward:
        own = jax.random.fold_in(key, index)
        rates, penalties = hparams.dropout, hparams.penalties
        return forward(model, fixed.whole(params), part, key=own, dropout_rates=rates, penalties=penalties)

    def total(sums: dict[str, LossSum]) -> jax.Array:
        return sum(hparams.loss_weights[n] * (s.loss + s.penalty) / whole[n] for n, s in sums.items())

    def loss(
        params: PyTree, part: Batch, index: jax.Array, given: PyTree | None = None
    ) -> tuple[jax.Array, dict[str, LossSum]]:
        run = passed(params, part, index)
        with contextlib.nullcontext({}) if fixed.teacher is None else fixed.teacher.watching(model.config) as seen:
            sums = task.losses(run, part, compare=given is None) | run.auxiliary_losses()
        if fixed.teacher is not None:
            sums |= fixed.teacher.losses(task, run, part, seen)
        # Its gradient is that of the losses which compare rows, by the chain rule.
        compared = 0.0 if given is None else optax.tree.vdot(task.representations(run, part), given)
        return total(sums) + compared, sums

    gradient = jax.grad(loss, has_aux=True)
    two_passes = task.compares_rows and (accumulation > 1 or axis is not None)
    if accumulation == 1 and not two_passes:
        grads, sums = gradient(state.params, batch, jnp.zeros((), jnp.int32))
        return sums, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    def add(carry: PyTree, part: tuple[Any, ...]) -> tuple[PyTree, None]:
        grads, sums = gradient(state.params, *part)
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), carry, (grads, sums)), None

    parts, compared = (microbatches(batch, accumulation), jnp.arange(accumulation)), {}
    if two_passes:
        represent = lambda part, index: task.representations(passed(state.params, part, index), part)  # noqa: E731
        cached = cached_gradients(represent, task.compared, total, batch, *parts, axis)
        compared, parts = cached[0], (*parts, cached[1])
    shapes = jax.eval_shape(gradient, state.params, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    (grads, sums), _ = scan(add, zeros, parts)
    return sums | compared, grads


def make_train_step(
    model: LanguageModel, task: Task, config: OptimizerConfig, accumulation: int, axis: str | None = None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the function that makes one update; a spike, or an update that is not finite, changes only the counters.

    With `axis` it is for `jax.pmap` along this axis, and its batch is one replica's part.
    """

    def train_step(
        state: TrainState, batch: Batch, hparams: Hyperparameters, fixed: Fixed = NOTHING_FIXED
    ) -> tuple[TrainState, Metrics]:
        def share(params: PyTree) -> tuple[dict[str, LossSum], PyTree]:
            at = state.replace(params=params)
            sums, grads = loss_and_gradients(model, task, at, batch, hparams, accumulation, axis, fixed)
            return sums, zero_frozen(config, grads)

        def curvature(params: PyTree) -> PyTree:
            # The key is the same on all replicas, so that they draw the same signs.
            key = named_key(_step_key(state), "curvature")
            return over_replicas(hutchinson(lambda params: share(params)[1], params, key), axis)

        sums, grads = over_replicas(share(state.params), axis)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.all(jnp.stack([jnp.isfinite(s.loss) for s in sums.values()]))
        good, spikes = finite, None
        if state.spikes is not None:
            spike, spikes = judge(state.spikes, grad_norm, finite, hparams)
            good = finite & ~spike
        tokens = over_replicas(count_tokens(batch), axis)
        state = _updated(state, grads, grad_norm, good, config, hparams, curvature).replace(
            step=state.step + 1,
            tokens_seen=add_tokens(state.tokens_seen, tokens),
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
            spikes=spikes,
        )
        metrics = loss_metrics(sums, hparams.loss_weights) | {
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": learning_rate(config, hparams, state.step - 1),
            "tokens": tokens,
            "tokens_seen": state.tokens_seen,
            "skipped_updates": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        }
        return state, metrics if spikes is None else metrics | {"skipped_spikes": spikes.left_out}

    return train_step


def _updated(
    state: TrainState,
    grads: PyTree,
    norm: jax.Array,
    good: jax.Array,
    config: OptimizerConfig,
    hparams: Hyperparameters,
    curvature: Callable[[PyTree], PyTree],
) -> TrainState:
    """Returns the state with new parameters, average and optimizer state, or with the old ones if `good` is False.

    Args:
        state: the state before the update.
        grads: the gradients.
        norm: their norm.
        good: bool scalar, whether to apply the update.
        config: the optimizer's config.
        hparams: the traced hyperparameters.
        curvature: from parameters to an estimate of the Hessian's diagonal, for the optimizers that use one.
    """

    def applied() -> PyTree:
        params = as_float32(state.params)
        optimizer = make_optimizer(config, hparams, state.step)
        known = {"norm": norm, "curvature": lambda: curvature(params)}
        updates, opt_state = optimizer.update(grads, state.opt_state, params, **known)
        rounded = add_updates(state.params, updates, named_key(_step_key(state), "rounding"))
        return {"params": rounded, "opt_state": opt_state}

    old = {"params": state.params, "opt_state": state.opt_state}
    if platform() == "cpu":
        new = cpu.updated_if(good, applied, old)
    else:
        new = jax.tree.map(lambda new, old: jnp.where(good, new, old), applied(), old)
    updated = state.replace(**new)
    return updated.replace(average=averaged(hparams.optimizer, state, updated.params, good))


def _step_key(state: TrainState) -> jax.Array:
    """Returns the key of this step, the same on all replicas."""
    return jax.random.fold_in(state.key, state.step)


def loss_metrics(sums: dict[str, LossSum], loss_weights: dict[str, jax.Array]) -> Metrics:
    """Returns the weighted loss, and each objective's own loss (nats per prediction), accuracy and other means.

    `loss` is minimised and includes z-loss, label smoothing and the routers' losses; `NAME/loss` is the plain cross
    entropy, as in evaluation.
    """
    metrics: Metrics = {"loss": jnp.zeros((), jnp.float32)}
    for name, s in sums.items():
        weight = jnp.maximum(s.weight, 1.0)
        metrics["loss"] += loss_weights[name] * (s.loss + s.penalty) / weight
        metrics[f"{name}/loss"] = s.loss / weight
        if s.correct is not None:
            metrics[f"{name}/accuracy"] = s.correct / weight
        for each, mean in s.means.items():
            metrics[f"{name}/{each}"] = mean.total / jnp.maximum(mean.weight, 1.0)
    return metrics


def make_eval_step(model: LanguageModel, task: Task) -> Callable[..., tuple[dict[str, LossSum], dict[str, jax.Array]]]:
    """Returns the function that sums losses over a batch, without dropout or penalties.

    It also returns the UTF-8 bytes of the targets, for each loss over tokens.
    """

    def eval_step(
        params: PyTree, batch: Batch, token_bytes: jax.Array, fixed: Fixed = NOTHING_FIXED
    ) -> tuple[dict[str, LossSum], Metrics]:
        passed = evaluation_forward(model, fixed.whole(params), batch)
        num_bytes = {
            name: jnp.sum(jnp.where(weights > 0, token_bytes[targets], 0), dtype=jnp.float32)
            for name, (targets, weights) in task.token_targets(batch).items()
        }
        return task.losses(passed, batch), num_bytes

    return eval_step
