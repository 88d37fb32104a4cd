"""Whether a run fits into memory: a lower bound computed from shapes, before anything is allocated."""

from __future__ import annotations

import jax
import numpy as np

from lmjax.adapters.model import make_model
from lmjax.config import Config
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.registry import heads, objective_types
from lmjax.parallel.memory import Memory, check_fits, device_memory, held, host_memory
from lmjax.parallel.mesh import batch_shards
from lmjax.runs.build import checked_mesh, hyperparameters
from lmjax.runs.data import vocabulary_rows
from lmjax.training.state import state_maker

# Bytes per position of a batch: every batch has at least tokens and targets, as int32.
_BYTES_OF_PLACE = 8
# Bytes of a worker process that has imported numpy and a tokenizer.
_BYTES_OF_WORKER = 5 * 10**7
_SMALLER = (
    "take a smaller --preset or --config.model, fewer or shorter rows (--batch_size, --length, --config.accumulation), "
    "another --optimizer, or more devices with --config.parallel.fsdp"
)


def sized_model(config: Config) -> LanguageModel:
    """Returns the model of a config, with a token table of the size that its tokenizer needs.

    A tokenizer that is not trained yet is assumed to have as many ids as the config says; with kind=char, where they
    follow from the characters of the text, there may be fewer.
    """
    path = config.tokenizer.path
    size = vocabulary_rows(config, load_tokenizer(path).vocab_size if path else config.tokenizer.vocab_size)
    needed = heads(objective_types(config.task.objective))
    return make_model(config.model.with_fields({"vocab_size": size}), needed, config.adapted)


def check_run(config: Config) -> None:
    """Raises FlagError, with the numbers, if a run cannot fit on its devices or on its host.

    It counts parameters, optimizer state and gradients, each as divided over the mesh; of the activations only the
    input of each layer, which the backward pass needs even with remat; and the batches that are made ahead.
    """
    checked_mesh(config)
    if config.model.quantization.stored and config.adapter.kind == "none":
        raise FlagError(
            "--config.model.quantization.stored=true: codes are not trained; train an adapter beside them with "
            "--config.adapter.kind=lora, or numbers that each step rounds with --config.model.quantization.stored=false"
        )
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
    check_fits("lmjax train", needs(config), device_memory(), _SMALLER)


def needs(config: Config) -> dict[str, int]:
    """Returns the bytes that a run needs at least on the fullest of its devices, by what they are for.

    Raises:
        FlagError: sizes that do not fit the devices, or one part alone does not fit into their memory.
    """
    mesh, memory = checked_mesh(config), device_memory()
    here = mesh.local_mesh.size if memory.shared else 1
    rows = max((config.batch_size, *config.stages.batch_size))
    length = max((config.task.length, *config.stages.length))
    model = sized_model(config)
    check_shapes(model.config, memory, mesh.size)
    on_one = -(-rows // (batch_shards(mesh) * config.accumulation))
    width = config.model.embed_dim * np.dtype("bfloat16" if config.model.dtype == "bfloat16" else "float32").itemsize
    activations = on_one * length * width * config.model.num_layers * here
    check_fits(f"--batch_size={rows}, --length={length}", {"activations between layers": activations}, memory, _SMALLER)
    _, abstract = state_maker(model, config.optimizer, hyperparameters(config), config.seed, mesh)
    params = held(abstract.params, memory)
    return {
        "parameters": params,
        "optimizer": held((abstract.opt_state, abstract.average), memory),
        "gradients": params,
        "activations between layers": activations,
    }


def check_shapes(config: ModelConfig, memory: Memory, ways: int = 1) -> None:
    """Raises FlagError if the parameters alone, split evenly, do not fit: tracing such a model would take too long.

    Args:
        config: the model's config.
        memory: the memory of a device.
        ways: the number of devices that can split the parameters.
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
