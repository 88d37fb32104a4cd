"""Opens a trained model from a workdir, a Hugging Face folder or the hub, all in the same way."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from pydantic import ValidationError

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.merge import merged
from lmjax.adapters.model import make_model
from lmjax.config import Config, from_json
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import CheckpointError, FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.loaded import LoadedModel, PromptFormat, has_record_task, record_task
from lmjax.interop.checkpoint import Checkpoint, describe
from lmjax.interop.generation import read_defaults, read_prompts
from lmjax.interop.sentence import read_sentence
from lmjax.interop.shards import read_json
from lmjax.interop.tasks import read_length, read_tasks, shown_labels
from lmjax.model.config import ModelConfig
from lmjax.model.heads import head_types
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.padding import padded, resized
from lmjax.model.parameters import overlaid, unboxed
from lmjax.model.quantized import in_full, rounded_layers
from lmjax.model.transformer import stack_layers, unstack_layers
from lmjax.objectives.base import ObjectiveConfig
from lmjax.objectives.embedding import Embedding
from lmjax.objectives.records import RecordTask
from lmjax.objectives.registry import heads, objective_types, unmasks, usual_objective
from lmjax.objectives.task import prompt_format
from lmjax.parallel.memory import check_fits, device_memory, held
from lmjax.parallel.mesh import ParallelConfig, make_mesh, on_mesh
from lmjax.paths import expanded, shell_quoted
from lmjax.runs.base import Base, known_base
from lmjax.runs.best import BEST, Step, best_step
from lmjax.runs.build import Run, hyperparameters
from lmjax.runs.data import vocabulary_rows
from lmjax.runs.forms import ReadParams, in_form
from lmjax.runs.learned import recall
from lmjax.runs.places import from_hub
from lmjax.training.checkpoint import SavedCheckpoints
from lmjax.training.state import state_maker

PyTree = Any
# The file in a workdir that says which models its parameters were made of; such a workdir has no optimizer.
MADE_OF = "made_of.json"
# The file in a workdir with the config.json of the Hugging Face checkpoint that it was converted from.
ORIGIN = "huggingface.json"
# A field that lmjax adds there: the heads of the checkpoint, not all of which follow from its other fields.
HEADS_FIELD = "lmjax_heads"


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The adapter of a run.

    Attributes:
        config: its fields.
        base: the model that it changes.
        own: reads what the run has trained on a mesh, with unrolled layers.
    """

    config: AdapterConfig
    base: Base
    own: Callable[[jax.sharding.Mesh], PyTree]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained model, opened; its parameters are not read yet.

    Attributes:
        folder: its folder.
        config: the architecture, with the parameter dtype of the stored parameters.
        heads: the heads whose parameters are in the folder.
        params: reads the parameters.
        origin: its Hugging Face config.json; empty: it has none.
        prompts: from its tokenizer to the special tokens around a text.
        largest_file: bytes of the largest parameter file, which bounds the host memory for reading; None: not known.
        ignored: tensors of the folder that are not read.
        tasks: settings of the objectives that it was trained on, by name; of a Hugging Face checkpoint, those that
            its head says.
        length: the most tokens in a row that it was trained on; None: not known.
        defaults: its generation settings, used where no flag sets another.
        shown: names of labels in its Hugging Face config.json where its task has others.
        adapted: its adapter, which is merged into what `params` returns; None: it has none.
        sparse: whether zeros of its kernels stay zero in training.
    """

    folder: pathlib.Path
    config: ModelConfig
    heads: tuple[str, ...]
    params: ReadParams
    origin: Mapping[str, Any]
    prompts: Callable[[Vocabulary], PromptFormat]
    largest_file: int | None = None
    ignored: tuple[str, ...] = ()
    tasks: Mapping[str, ObjectiveConfig] = dataclasses.field(default_factory=dict)
    length: int | None = None
    defaults: GenerationDefaults = dataclasses.field(default_factory=GenerationDefaults)
    shown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapted: Adapted | None = None
    sparse: bool = False

    @property
    def has_task(self) -> bool:
        """Returns whether the model was fine-tuned for a task on records."""
        return has_record_task(self.tasks)

    @property
    def task(self) -> RecordTask:
        """Returns the task on records that the model was fine-tuned for; raises FlagError if there is none."""
        return record_task(self.tasks, load_tokenizer(str(self.folder)), self.config, self.length)

    @property
    def unmasks(self) -> bool:
        """Returns whether the model is an encoder that writes text by replacing masks."""
        return unmasks(self.tasks)

    @property
    def objective(self) -> str:
        """Returns the default objective of the model's family."""
        return usual_objective(self.config.architecture)


def open_pretrained(place: str | os.PathLike[str], step: Step = None, accept_fields: Sequence[str] = ()) -> Pretrained:
    """Returns the model in a workdir, in a Hugging Face folder, or on the hub; checks names and shapes of its tensors.

    Args:
        place: the folder; a name that is not a folder is looked up on the hub, if huggingface_hub is installed.
        step: the checkpoint of a workdir; "best": the one with the best value of `evaluation.metric`; None: the newest.
        accept_fields: unknown fields of a Hugging Face config.json that the user declares harmless.

    Raises:
        FlagError: there is no such model, or it needs something that lmjax does not implement.
        DataError: a file that cannot be read, or tensors that do not fit the config.
    """
    found = _opened(place, step, accept_fields)

    def params(wanted: ModelConfig, mesh: jax.sharding.Mesh) -> PyTree:
        """Returns the parameters; rows without a token may be others than those that are stored."""
        if wanted.embedding.padding == found.config.embedding.padding:
            return found.params(wanted, mesh)
        rows = {"vocab_size": found.config.vocab_size, "embedding.padding": found.config.embedding.padding}
        own = found.params(wanted.with_fields(rows), make_mesh(ParallelConfig(), jax.local_devices()[:1]))
        placed = on_mesh(abstract_params(wanted, found.heads), mesh)
        return jax.tree.map(lambda x, p: jax.device_put(x, p.sharding), resized(own, wanted, found.heads), placed)

    return dataclasses.replace(found, params=params)


def _opened(place: str | os.PathLike[str], step: Step, accept_fields: Sequence[str]) -> Pretrained:
    """Returns what `open_pretrained` returns, whose parameters have the rows that are stored."""
    if not isinstance(place, str | os.PathLike):
        raise FlagError(f"place is {str(place)[:80]!r}, a {type(place).__name__}; give a folder, or a name on the hub")
    folder = expanded(place)
    if not folder.exists():
        folder = from_hub(os.fspath(place))
    if not (folder / "config.json").is_file():
        raise FlagError(f"{place}: holds no config.json; name a workdir of lmjax or a checkpoint of Hugging Face")
    values = read_json(folder / "config.json")
    if "model_type" in values:
        if step is not None:
            raise FlagError(f"--step={step}: {place} is a checkpoint of Hugging Face, which has no steps")
        checkpoint = Checkpoint(folder, accept_fields)
        found, values = checkpoint.description, checkpoint.description.values
        sentence, present = read_sentence(folder), found.heads
        config = found.config
        if sentence is not None:
            config = config.with_fields({"head": config.head.with_fields(sentence.fields)})
            # Without names, a model has the heads that are usual for its family.
            present = (*(present or head_types(config.architecture, ())), *Embedding.heads)
        return Pretrained(
            folder=folder,
            config=config,
            heads=present,
            params=in_form(checkpoint.params, config),
            origin=values,
            prompts=functools.partial(read_prompts, folder, values, found.config.family),
            largest_file=checkpoint.shards.largest_file,
            ignored=tuple(checkpoint.ignored),
            tasks=read_tasks(folder / "config.json", values, present),
            length=sentence.length if sentence else read_length(folder / "config.json", values),
            shown=shown_labels(folder / "config.json", values, present),
            defaults=read_defaults(folder, values, found.config),
        )
    if accept_fields:
        raise FlagError(f"--accept_fields={accept_fields[0]}: {place} is a workdir, which has no such fields")
    return _from_workdir(folder, from_json(folder / "config.json"), step)


def load_model(
    place: str | os.PathLike[str],
    *,
    step: Step = None,
    dtype: str | None = None,
    tensor: int = 1,
    sequence: int = 1,
    accept_fields: Sequence[str] = (),
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

    Raises:
        FlagError: there is no such model, or `tensor` does not divide its sizes.
        DataError: a file that cannot be read.
    """
    return loaded_model(open_pretrained(place, step, accept_fields), dtype, tensor, place, sequence)


def loaded_model(
    opened: Pretrained,
    dtype: str | None = None,
    tensor: int = 1,
    place: str | os.PathLike[str] = "",
    sequence: int = 1,
) -> LoadedModel:
    """Returns an opened model, ready to generate and to score.

    Args:
        opened: the model.
        dtype: as for `load_model`.
        tensor: as for `load_model`.
        place: the name of the model in messages; empty: its folder.
        sequence: as for `load_model`.

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
    loaded = assemble(config, opened.heads, params, tokenizer, prompts, mesh)
    known = {"defaults": opened.defaults, "tasks": opened.tasks, "length": opened.length, "shown": opened.shown}
    return dataclasses.replace(loaded, **known)


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


def _from_workdir(folder: pathlib.Path, config: Config, step: Step) -> Pretrained:
    """Returns the model of a run, or of a converted checkpoint."""
    at = best_step(folder, config) if step == BEST else step
    if not config.model.vocab_size:
        # The config leaves the number of rows of the token table to the tokenizer.
        rows = vocabulary_rows(config, load_tokenizer(str(folder)).vocab_size)
        config = config.with_fields({"model": config.model.with_fields({"vocab_size": rows})})
    config = recall(config, folder)
    origin = read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}
    present = tuple(origin.pop(HEADS_FIELD, ()) or ()) if HEADS_FIELD in origin else None
    if present is None:
        present = describe(folder / ORIGIN, origin).heads if origin else heads(objective_types(config.task.objective))

    def params(wanted: ModelConfig, mesh: jax.sharding.Mesh) -> PyTree:
        checkpoints = SavedCheckpoints(folder)
        if not checkpoints.steps:
            command = f"lmjax train --workdir={shell_quoted(folder)}"
            raise CheckpointError(f"{folder}: has no checkpoint yet; train first: {command}")
        without_optimizer = origin or (folder / MADE_OF).is_file()
        if config.adapter.kind != "none":
            stored = in_full(adapted_parameters(folder, config, present, mesh, at), wanted.param_dtype)
            stored = merged(stored, config.adapted)
        else:
            stored = (_converted if without_optimizer else _trained)(checkpoints, config, present, mesh, at)
        if config.model.scan_layers != wanted.scan_layers:
            stored = unboxed((stack_layers if wanted.scan_layers else unstack_layers)(stored))
        placed = on_mesh(abstract_params(wanted, present), mesh)
        return jax.tree.map(lambda x, p: jax.device_put(x.astype(p.dtype), p.sharding), stored, placed)

    def prompts(tokenizer: Vocabulary) -> PromptFormat:
        if origin:
            return read_prompts(folder, origin, config.model.family, tokenizer)
        return prompt_format(config.task, tokenizer, config.model.architecture)

    # Merged kernels are floating-point numbers, whatever form those of the base have.
    adapts = config.adapter.kind != "none" and config.model.quantization.stored
    model = config.model.with_fields({"quantization": {}}) if adapts else config.model

    def own(mesh: jax.sharding.Mesh) -> PyTree:
        return unboxed(unstack_layers(_trained(SavedCheckpoints(folder), config, present, mesh, at)))

    adapted = config.adapter.kind != "none" and Adapted(config.adapted, known_base(config, folder), own)
    defaults = read_defaults(folder, origin, config.model) if origin else GenerationDefaults()
    tasks = {name: getattr(config.task, name) for name in config.task.objective}
    sentence = read_sentence(folder) if origin else None
    return Pretrained(
        folder,
        model,
        present,
        in_form(params, model),
        origin,
        prompts,
        tasks=read_tasks(folder / ORIGIN, origin, present) if origin else tasks,
        length=(sentence.length if sentence else read_length(folder / ORIGIN, origin))
        if origin
        else config.task.length,
        defaults=defaults,
        shown=shown_labels(folder / ORIGIN, origin, present) if origin else {},
        adapted=adapted or None,
        sparse=config.optimizer.sparsity.keeps,
    )


def _trained(
    checkpoints: SavedCheckpoints, config: Config, present: tuple[str, ...], mesh: jax.sharding.Mesh, step: int | None
) -> PyTree:
    """Returns the parameters that a run evaluates: the averaged ones, if it averages them."""
    model = make_model(config.model, present, config.adapted)
    _, abstract = state_maker(model, config.optimizer, hyperparameters(config), config.seed, mesh)
    return checkpoints.restore(abstract, step).evaluation_params()


def adapted_parameters(
    folder: pathlib.Path, config: Config, present: tuple[str, ...], mesh: jax.sharding.Mesh, step: int | None
) -> PyTree:
    """Returns all parameters of a run with an adapter, in the form of its config: its own, and those of its base.

    Raises:
        CheckpointError: the base is gone or has changed.
    """
    base = known_base(config, folder)
    own = _trained(SavedCheckpoints(folder), config, present, mesh, step)
    whole = open_pretrained(base.place, base.step, config.accept_fields).params(config.model, mesh)
    parts = abstract_params(config.model, present).keys() - set(config.adapted.whole)
    kept = {part: whole[part] for part in parts}
    return overlaid(rounded_layers(kept) if config.adapter.base_dtype == "int8" else kept, own)


def _converted(
    checkpoints: SavedCheckpoints, config: Config, present: tuple[str, ...], mesh: jax.sharding.Mesh, step: int | None
) -> PyTree:
    """Returns the parameters of a converted checkpoint or an average, which has no optimizer."""
    placed = on_mesh(abstract_params(config.model, present), mesh)
    return checkpoints.restore({"params": placed}, step)["params"]


def storage_mesh(config: ModelConfig, heads: tuple[str, ...]) -> jax.sharding.Mesh:
    """Returns a mesh of all devices that splits the parameters over as many devices as divide all their widths."""
    boxed, count = abstract_params(config, heads), len(jax.devices())
    for ways in (n for n in range(count, 1, -1) if count % n == 0):
        mesh = make_mesh(ParallelConfig(fsdp=ways))
        try:
            jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), on_mesh(boxed, mesh))
        except ValueError:
            continue
        return mesh
    return make_mesh(ParallelConfig())
