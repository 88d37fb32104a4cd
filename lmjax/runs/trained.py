"""A trained model, ready to generate and to score: its parameters read, on the devices that it is to use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
from pydantic import ValidationError

from lmjax.adapters.merge import merged
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, PromptFormat
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.outputs_first import outputs_first
from lmjax.model.padding import padded
from lmjax.model.parameters import unboxed
from lmjax.model.transformer import unstack_layers
from lmjax.objectives.task import prompt_format
from lmjax.parallel.memory import check_fits, device_memory, held
from lmjax.parallel.mesh import ParallelConfig, make_mesh, on_mesh
from lmjax.runs.best import Step
from lmjax.runs.build import Run
from lmjax.runs.pretrained import Pretrained, open_pretrained

PyTree = Any


def load_model(
    place: str | os.PathLike[str],
    *,
    step: Step = None,
    dtype: str | None = None,
    tensor: int = 1,
    sequence: int = 1,
    accept_fields: Sequence[str] = (),
    several_rows: bool = False,
) -> LoadedModel:
    """Returns the model in a workdir, in a Hugging Face folder, or on the hub, ready to generate and to score.

    Args:
        place: as for `open_pretrained`.
        step: the checkpoint of a workdir; "best": the one with the best value of `evaluation.metric`; None: the newest.
        dtype: the dtype of parameters and compute; None: the model's compute dtype.
        tensor: the number of devices that split heads, MLPs and the vocabulary; the other devices are not used.
        sequence: the number of groups of `tensor` devices that split the positions of a prompt of a decoder, and its
            keys and values.
        accept_fields: as for `open_pretrained`.
        several_rows: whether several texts, beams or guesses are written at once; for these a CPU keeps the kernels of
            layers with their outputs first (`lmjax.model.outputs_first`).

    Raises:
        FlagError: there is no such model, or `tensor` does not divide its sizes.
        DataError: a file that cannot be read.
    """
    return loaded_model(open_pretrained(place, step, accept_fields), dtype, tensor, place, sequence, several_rows)


def loaded_model(
    opened: Pretrained,
    dtype: str | None = None,
    tensor: int = 1,
    place: str | os.PathLike[str] = "",
    sequence: int = 1,
    several_rows: bool = False,
) -> LoadedModel:
    """Returns an opened model, ready to generate and to score.

    Args:
        opened: the model.
        dtype: as for `load_model`.
        tensor: as for `load_model`.
        place: the name of the model in messages; empty: its folder.
        sequence: as for `load_model`.
        several_rows: as for `load_model`.

    Raises:
        FlagError: `tensor` does not divide its sizes, or it does not fit into memory.
        DataError: a file that cannot be read.
    """
    tokenizer = load_tokenizer(str(opened.folder))
    config = inference_config(opened.config, dtype)
    if config.vocab_size % max(1, tensor):
        config = padded(config, tensor)
    mesh = inference_mesh(config, tensor, sequence)
    check_parameters(place or opened.folder, on_mesh(abstract_params(config, opened.heads), mesh))
    params, prompts = opened.params(config, mesh), opened.prompts(tokenizer)
    if several_rows and multiplies_columns(config, mesh):
        params = outputs_first(params)
    loaded = assemble(config, opened.heads, params, tokenizer, prompts, mesh)
    known = {"defaults": opened.defaults, "tasks": opened.tasks, "length": opened.length, "shown": opened.shown}
    return dataclasses.replace(loaded, **known)


def multiplies_columns(config: ModelConfig, mesh: jax.sharding.Mesh) -> bool:
    """Returns whether a model on a mesh multiplies a few rows faster with its kernels' outputs first.

    That is so on one CPU in float32 (`lmjax.model.cpu`); kernels in few bits have a form of their own.
    """
    plain = config.dtype == config.param_dtype == "float32" and config.quantization.weights == "none"
    return plain and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def check_parameters(place: str, params: PyTree) -> None:
    """Raises FlagError, with the numbers, if the parameters of a model do not fit its devices.

    Args:
        place: the model's name in messages.
        params: shapes, dtypes and shardings of the parameters.
    """
    memory = device_memory()
    remedy = "give --dtype=bfloat16, more devices with --tensor, or a smaller model"
    check_fits(place, {"parameters": held(params, memory)}, memory, remedy)


def trained_model(run: Run, params: PyTree) -> LoadedModel:
    """Returns the model of a run in this process, on one device, ready to generate and to score.

    Args:
        run: the run.
        params: all parameters of its model, on the host.
    """
    if run.config.adapter.kind != "none":
        params = merged(params, run.config.adapted)
    config = run.config.model.with_fields({"scan_layers": False, "remat": "none"})
    # Of this process, which may be one of several.
    mesh = make_mesh(ParallelConfig(), jax.local_devices()[:1])
    params = unboxed(unstack_layers(params) if run.config.model.scan_layers else params)
    placed = on_mesh(abstract_params(config, run.model.heads), mesh)
    params = jax.tree.map(lambda x, p: jax.device_put(x, p.sharding), params, placed)
    prompts = prompt_format(run.config.task, run.tokenizer, config.architecture)
    loaded = assemble(config, run.model.heads, params, run.tokenizer, prompts, mesh)
    tasks = {name: getattr(run.config.task, name) for name in run.config.task.objective}
    return dataclasses.replace(loaded, tasks=tasks, length=run.config.task.length)


def inference_config(config: ModelConfig, dtype: str | None) -> ModelConfig:
    """Returns the config of a model for generation and scoring, in `dtype`; None: the model's compute dtype."""
    dtype = dtype or config.dtype
    # Layers are unrolled, because a scan would copy the cache of all layers at every token. Remat is off, because
    # there is no backward pass.
    changes = {"scan_layers": False, "remat": "none", "dtype": dtype, "param_dtype": dtype}
    try:
        return config.with_fields(changes)
    except ValidationError as e:
        raise FlagError(f"dtype={dtype!r}: {e.errors()[0]['msg']}") from e


def assemble(
    config: ModelConfig,
    present: tuple[str, ...],
    params: PyTree,
    tokenizer: Vocabulary,
    prompts: PromptFormat,
    mesh: jax.sharding.Mesh,
) -> LoadedModel:
    """Returns a loaded model that never generates an id which its tokenizer does not have."""
    unknown = range(tokenizer.vocab_size, config.vocab_size)
    prompts = dataclasses.replace(prompts, never=(*prompts.never, *unknown))
    return LoadedModel(LanguageModel(config, present), params, tokenizer, prompts, mesh)


def inference_mesh(config: ModelConfig, tensor: int, sequence: int = 1) -> jax.sharding.Mesh:
    """Returns a mesh of the first devices of this process; raises FlagError if they cannot split the model."""
    devices = jax.local_devices()
    if not 1 <= tensor <= len(devices):
        raise FlagError(f"--tensor={tensor}: there are {len(devices)} device(s); choose from 1 to {len(devices)}")
    if sequence > 1 and (config.family.paired or not config.family.causal):
        raise FlagError(f"--sequence={sequence}: splits the prompt of a decoder, and this is an {config.family.label}")
    if not 1 <= sequence <= len(devices) // tensor:
        raise FlagError(f"--sequence={sequence}: with --tensor={tensor} it can be at most {len(devices) // tensor}")
    mesh = make_mesh(ParallelConfig(tensor=tensor, sequence=sequence), devices[: tensor * sequence])
    sizes = {"heads": config.num_heads, "kv_heads": config.kv_heads, "mlp": config.mlp_dim, "vocab": config.vocab_size}
    if odd := {name: size for name, size in sizes.items() if size % tensor}:
        raise FlagError(f"--tensor={tensor} does not divide {odd} of this model; choose a divisor of all")
    return mesh
