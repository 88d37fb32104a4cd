"""A worker with lmjax's training step, exactly as `lmjax train` compiles it, without dropout."""

import argparse
import types

from worker import serve
from workloads import WORKLOADS, Workload, random_tokens

from lmjax.config import Config, resolve
from lmjax.model.presets import PRESETS
from lmjax.parallel.compilation_cache import cache_compilations
from lmjax.parallel.malloc import in_turn, keep_freed_memory


def features(workload: Workload, vocab_size: int) -> dict:
    """Returns the batch in the format of lmjax's objectives."""
    import numpy as np

    tokens = random_tokens(workload, vocab_size)

    def side(values: np.ndarray, prefix: str = "") -> dict:
        positions = np.broadcast_to(np.arange(values.shape[1], dtype=np.int32), values.shape)
        return {
            f"{prefix}tokens": values,
            f"{prefix}positions": positions,
            f"{prefix}segment_ids": np.ones_like(values),
        }

    source = tokens["source"]
    if workload.target_length:
        target = tokens["target"]
        shifted = np.pad(target[:, :-1], ((0, 0), (1, 0)))
        batch = side(source, "encoder_") | side(shifted, "decoder_") | {"targets": target}
    elif workload.mask_rate:
        masked = tokens["masked"]
        inputs = source.copy()
        np.put_along_axis(inputs, masked, 4, axis=1)
        targets = np.take_along_axis(source, masked, axis=1)
        batch = side(inputs) | {"prediction_positions": masked.astype(np.int32), "targets": targets}
    else:
        batch = side(source) | {"targets": np.roll(source, -1, axis=1)}
    return batch | {"weights": np.ones(batch["targets"].shape, np.float32)}


def configured(workload: Workload, dtype: str, fields: dict[str, str]) -> Config:
    """Returns our config for a workload, without dropout; `fields` replace the workload's own."""
    objective = "seq2seq" if workload.target_length else "mlm" if workload.mask_rate else "next_token"
    off = ("residual", "attention", "mlp", "output")
    overrides = {f"model.dropout.{name}": "0" for name in off} | {
        "model.dtype": dtype,
        "batch_size": str(workload.batch),
    }
    overrides |= {"task.length": str(workload.length), "task.target_length": str(workload.target_length or 8)}
    # A run's config takes the size of its vocabulary from a tokenizer; here it is the published model's.
    overrides["model.vocab_size"] = str(PRESETS[workload.preset].vocab_size)
    return resolve(objective=(objective,), preset=workload.preset, overrides=overrides | dict(workload.fields) | fields)


def build(workload: Workload, dtype: str, fields: dict[str, str]):
    """Returns a function that runs steps, and one that returns facts for the first line of the benchmark."""
    import flax.linen as nn
    import jax

    from lmjax.axes import RULES
    from lmjax.model.flops import train_flops
    from lmjax.model.language_model import LanguageModel
    from lmjax.model.parameters import count_parameters
    from lmjax.objectives.task import Task
    from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
    from lmjax.parallel.peak import peak_flops
    from lmjax.training.calls import placed, several
    from lmjax.training.hyperparameters import Hyperparameters
    from lmjax.training.state import state_maker
    from lmjax.training.step import make_train_step

    config = configured(workload, dtype, fields)
    cache_compilations(config.data.cache_path)
    # The losses ask a tokenizer only for the number of its ids.
    task = Task.build(config.task, types.SimpleNamespace(vocab_size=config.model.vocab_size), config.model.architecture)
    model = LanguageModel(config.model, task.heads)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    batch = features(workload, config.model.vocab_size)
    hparams = Hyperparameters.build(
        config.optimizer, steps=1000, dropout=config.model.dropout.rates(), loss_weights=config.task.loss_weights()
    )
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        make_state, abstract = state_maker(model, config.optimizer, hparams, 0, mesh)
        state = make_state()
        updates = config.steps_per_call
        step = jax.jit(several(make_train_step(model, task, config.optimizer, 1), updates), donate_argnums=0)
        (call,) = placed([batch] * updates, updates, lambda batch, stacked: to_device(batch, mesh, stacked))
        compiled = step.lower(abstract, call.batch, hparams).compile()
    one_call = in_turn(compiled)

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(-(-steps // updates)):
            state, metrics = one_call(state, call.batch, hparams)
        return float(metrics["loss"].ravel()[-1])

    def facts() -> dict:
        predictions = batch["targets"].size
        causal = config.model.architecture == "decoder"
        return {
            "parameters": count_parameters(abstract.params),
            "tokens_per_step": sum(x.size for name, x in batch.items() if name.endswith("segment_ids")),
            "flops_per_step": train_flops(model, batch, predictions),
            "flops_per_step_causal": train_flops(model, batch, predictions, causal=causal),
            "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
            "peak_flops": peak_flops(),
            "device": jax.devices()[0].device_kind,
        }

    return run, facts


def main() -> None:
    """Serves the workload of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True, choices=WORKLOADS)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--field", action="append", default=[])
    args = parser.parse_args()
    keep_freed_memory()
    fields = dict(field.split("=", 1) for field in args.field)
    serve(lambda: build(WORKLOADS[args.workload], args.dtype, fields))


if __name__ == "__main__":
    main()
