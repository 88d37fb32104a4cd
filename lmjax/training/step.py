"""One training step and one evaluation step, as pure functions of (state, batch, hyperparameters)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.model.config import DropoutRates
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.base import Batch, LossSum, Outputs
from lmjax.objectives.task import Task
from lmjax.training.optimizer import Hyperparameters, OptimizerConfig, learning_rate, make_optimizer
from lmjax.training.state import TrainState, add_tokens

PyTree = Any
Metrics = dict[str, jax.Array]


def forward(
    model: LanguageModel,
    params: PyTree,
    batch: Batch,
    *,
    dropout_rates: DropoutRates | None = None,
    key: jax.Array | None = None,
) -> Outputs:
    """Returns what the objectives read; dropout is on if a key is given."""
    variables = {"params": params}
    rngs = {} if key is None else {"dropout": key}
    hidden = model.apply(variables, batch, deterministic=key is None, dropout_rates=dropout_rates, rngs=rngs)
    return Outputs(
        hidden=hidden,
        logits=lambda h: model.apply(variables, h, method="logits"),
        next_sentence=lambda h: model.apply(variables, h, method="next_sentence"),
    )


def microbatches(batch: Batch, count: int) -> Batch:
    """Returns the batch as `[count, rows / count, ...]`; device d's rows stay on device d."""

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def count_tokens(batch: Batch) -> jax.Array:
    """Returns the number of tokens that the model reads in a batch, padding left out."""
    return sum(jnp.sum(x > 0, dtype=jnp.uint32) for name, x in batch.items() if name.endswith("segment_ids"))


def loss_and_gradients(
    model: LanguageModel, task: Task, state: TrainState, batch: Batch, hparams: Hyperparameters, accumulation: int
) -> tuple[dict[str, LossSum], PyTree]:
    """Returns the loss sums of every objective over the batch, and the gradient of the batch's loss in float32.

    The loss is the sum over objectives of loss_weight * loss sum / weight of the whole batch, so microbatches, packing
    and the mesh divide the work and leave the gradient as it is.
    """
    whole = task.weights(batch)
    key = jax.random.fold_in(state.key, state.step)
    dropped = bool(jax.tree.leaves(hparams.dropout))

    def loss(params: PyTree, part: Batch, index: jax.Array) -> tuple[jax.Array, dict[str, LossSum]]:
        part_key = jax.random.fold_in(key, index) if dropped else None
        outputs = forward(model, params, part, dropout_rates=hparams.dropout, key=part_key)
        sums = task.losses(outputs, part)
        return sum(hparams.loss_weights[name] * s.loss / whole[name] for name, s in sums.items()), sums

    gradient = jax.grad(loss, has_aux=True)
    if accumulation == 1:
        grads, sums = gradient(state.params, batch, jnp.zeros((), jnp.int32))
        return sums, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    def add(carry: PyTree, part: tuple[Batch, jax.Array]) -> tuple[PyTree, None]:
        grads, sums = gradient(state.params, *part)
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), carry, (grads, sums)), None

    parts = (microbatches(batch, accumulation), jnp.arange(accumulation))
    shapes = jax.eval_shape(gradient, state.params, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    (grads, sums), _ = jax.lax.scan(add, zeros, parts)
    return sums, grads


def make_train_step(
    model: LanguageModel, task: Task, config: OptimizerConfig, accumulation: int
) -> Callable[[TrainState, Batch, Hyperparameters], tuple[TrainState, Metrics]]:
    """Returns the function that makes one update; an update that is not finite changes nothing but its counters."""

    def train_step(state: TrainState, batch: Batch, hparams: Hyperparameters) -> tuple[TrainState, Metrics]:
        sums, grads = loss_and_gradients(model, task, state, batch, hparams, accumulation)
        grad_norm = optax.tree.norm(grads)
        optimizer = make_optimizer(config, hparams, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        finite = jnp.isfinite(grad_norm) & jnp.all(jnp.stack([jnp.isfinite(s.loss) for s in sums.values()]))
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        tokens = count_tokens(batch)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            tokens_seen=add_tokens(state.tokens_seen, tokens),
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics = loss_metrics(sums, hparams.loss_weights) | {
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "learning_rate": learning_rate(config, hparams, state.step - 1),
            "tokens": tokens,
            "tokens_seen": state.tokens_seen,
            "skipped_updates": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        }
        return state, metrics

    return train_step


def loss_metrics(sums: dict[str, LossSum], loss_weights: dict[str, jax.Array]) -> Metrics:
    """Returns the weighted loss, and each objective's own loss (nats per prediction) and accuracy."""
    metrics: Metrics = {"loss": jnp.zeros((), jnp.float32)}
    for name, s in sums.items():
        weight = jnp.maximum(s.weight, 1.0)
        metrics["loss"] += loss_weights[name] * s.loss / weight
        metrics[f"{name}/loss"] = s.loss / weight
        metrics[f"{name}/accuracy"] = s.correct / weight
    return metrics


def make_eval_step(
    model: LanguageModel, task: Task
) -> Callable[[PyTree, Batch, jax.Array], tuple[dict[str, LossSum], jax.Array]]:
    """Returns the function that sums losses over a batch, without dropout, and the UTF-8 bytes of its targets."""

    def eval_step(params: PyTree, batch: Batch, token_bytes: jax.Array) -> tuple[dict[str, LossSum], jax.Array]:
        sums = task.losses(forward(model, params, batch), batch)
        if "targets" not in batch:
            return sums, jnp.zeros((), jnp.float32)
        return sums, jnp.sum(jnp.where(batch["weights"] > 0, token_bytes[batch["targets"]], 0), dtype=jnp.float32)

    return eval_step
