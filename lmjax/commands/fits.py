"""Whether a run fits into memory: what it needs at the least, of shapes alone, before anything is allocated."""

from __future__ import annotations

import jax
import numpy as np

from lmjax.config import Config
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.registry import heads, objective_types
from lmjax.parallel.memory import Memory, check_fits, device_memory, held, host_memory
from lmjax.parallel.mesh import batch_shards
from lmjax.runs.build import checked_mesh, hyperparameters, vocabulary_rows
from lmjax.training.state import state_maker

# Tokens and targets of a row, int32, stand in every batch.
_BYTES_OF_PLACE = 8
# A worker process that has imported numpy and a tokenizer.
_BYTES_OF_WORKER = 5 * 10**7
_SMALLER = (
    "take a smaller --preset or --config.model, fewer or shorter rows (--batch_size, --length, --config.accumulation), "
    "another --optimizer, or more devices with --config.parallel.fsdp"
)


def sized_model(config: Config) -> LanguageModel:
    """Returns the model of a config, its token table as large as its tokenizer needs.

    One that is still to be trained has as many ids as the config says; only the characters of kind=char, which follow
    from the text, are fewer.
    """
    path = config.tokenizer.path
    size = vocabulary_rows(config, load_tokenizer(path).vocab_size if path else config.tokenizer.vocab_size)
    needed = heads(objective_types(config.task.objective))
    return LanguageModel(config.model.with_fields({"vocab_size": size}), needed)


def check_run(config: Config) -> None:
    """Raises FlagError, with the numbers, where a run cannot fit its devices or its host.

    Counted are parameters, the optimizer's state and gradients, each as it is divided over the mesh; of activations
    only what enters each layer, which the backward pass needs whatever is recomputed; and batches made ahead.
    """
    mesh, memory = checked_mesh(config), device_memory()
    here = mesh.local_mesh.size if memory.shared else 1
    rows = max((config.batch_size, *config.stages.batch_size))
    length = max((config.task.length, *config.stages.length))
    ahead = -(-rows // jax.process_count()) * length * _BYTES_OF_PLACE * config.data.prefetch
    workers = config.data.workers * _BYTES_OF_WORKER
    check_fits(
        f"--batch_size={rows}, --length={length}, --config.data.prefetch={config.data.prefetch}, "
        f"--config.data.workers={config.data.workers}",
        {"batches made ahead": ahead, "workers": workers},
        Memory(host_memory(), "this machine", True),
        "make fewer batches ahead (--config.data.prefetch, --config.data.workers), or smaller ones (--batch_size)",
    )
    model = sized_model(config)
    check_shapes(model.config, memory, mesh.size)
    on_one = -(-rows // (batch_shards(mesh) * config.accumulation))
    width = config.model.embed_dim * np.dtype("bfloat16" if config.model.dtype == "bfloat16" else "float32").itemsize
    activations = on_one * length * width * config.model.num_layers * here
    check_fits(f"--batch_size={rows}, --length={length}", {"activations between layers": activations}, memory, _SMALLER)
    _, abstract = state_maker(model, config.optimizer, hyperparameters(config), config.seed, mesh)
    params = held(abstract.params, memory)
    needs = {
        "parameters": params,
        "optimizer": held((abstract.opt_state, abstract.average), memory),
        "gradients": params,
        "activations between layers": activations,
    }
    check_fits("lmjax train", needs, memory, _SMALLER)


def check_shapes(config: ModelConfig, memory: Memory, ways: int = 1) -> None:
    """Raises FlagError where the parameters alone, split evenly, are too many: to trace such a model takes too long.

    Args:
        config: of the model.
        memory: of a device.
        ways: devices that the parameters may be split over.
    """
    size = config.least_parameters * (2 if config.param_dtype == "bfloat16" else 4)
    names = ("vocab_size", "embed_dim", "num_heads", "mlp_dim", "num_layers")
    sizes = ", ".join(f"{name}={getattr(config, name)}" for name in names)
    check_fits(
        f"--config.model: {sizes}",
        {"parameters": size if memory.shared else size // ways},
        memory,
        "take a smaller --preset or lower one of these",
    )
