"""Opens a trained model from a workdir, a Hugging Face folder or the hub, all in the same way; reads no parameters."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.merge import merged
from lmjax.adapters.model import make_model
from lmjax.config import Config, from_json
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import CheckpointError, FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.loaded import PromptFormat, has_record_task, record_task
from lmjax.interop.checkpoint import Checkpoint, describe
from lmjax.interop.generation import read_defaults, read_prompts
from lmjax.interop.sentence import Sentence, read_sentence
from lmjax.interop.shards import read_json
from lmjax.interop.tasks import read_length, read_tasks, shown_labels
from lmjax.model.config import ModelConfig
from lmjax.model.heads import head_types
from lmjax.model.language_model import abstract_params
from lmjax.model.padding import resized
from lmjax.model.parameters import overlaid, unboxed
from lmjax.model.quantized import in_full, rounded_layers
from lmjax.model.transformer import stack_layers, unstack_layers
from lmjax.objectives.base import ObjectiveConfig
from lmjax.objectives.embedding import Embedding
from lmjax.objectives.records import RecordTask
from lmjax.objectives.registry import heads, objective_types, unmasks, usual_objective
from lmjax.objectives.task import prompt_format
from lmjax.parallel.mesh import ParallelConfig, make_mesh, on_mesh
from lmjax.paths import expanded, shell_quoted
from lmjax.runs.base import Base, known_base
from lmjax.runs.best import BEST, Step, best_step
from lmjax.runs.build import hyperparameters
from lmjax.runs.data import vocabulary_rows
from lmjax.runs.forms import ReadParams, in_form
from lmjax.runs.learned import recall
from lmjax.runs.places import from_hub
from lmjax.training.checkpoint import SavedCheckpoints
from lmjax.training.state import state_maker

PyTree = Any
Fields = dict[str, Any]
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
        return _from_hugging_face(folder, accept_fields)
    if accept_fields:
        raise FlagError(f"--accept_fields={accept_fields[0]}: {place} is a workdir, which has no such fields")
    return _from_workdir(folder, from_json(folder / "config.json"), step)


def _from_hugging_face(folder: pathlib.Path, accept_fields: Sequence[str]) -> Pretrained:
    """Returns the model in a folder of Hugging Face's layout."""
    checkpoint = Checkpoint(folder, accept_fields)
    found, values = checkpoint.description, checkpoint.description.values
    sentence, present = read_sentence(folder), found.heads
    config = found.config
    if sentence is not None:
        config = config.with_fields({"head": config.head.with_fields(sentence.fields)})
        # Without names, a model has the heads that are usual for its family.
        present = (*(present or head_types(config.architecture, ())), *Embedding.heads)
    return Pretrained(
        folder,
        config,
        present,
        in_form(checkpoint.params, config),
        largest_file=checkpoint.shards.largest_file,
        ignored=tuple(checkpoint.ignored),
        **_said_by(folder / "config.json", values, present, found.config, sentence),
    )


def _said_by(
    path: pathlib.Path,
    values: Mapping[str, Any],
    present: tuple[str, ...],
    config: ModelConfig,
    sentence: Sentence | None,
) -> Fields:
    """Returns the fields of `Pretrained` that a config.json of Hugging Face and the files beside it say.

    Args:
        path: of the config.json.
        values: in it.
        present: the heads of the model.
        config: of the model.
        sentence: how vectors of texts are made, if a file beside it says so.
    """
    return {
        "origin": values,
        "prompts": functools.partial(read_prompts, path.parent, values, config.family),
        "tasks": read_tasks(path, values, present),
        "length": sentence.length if sentence else read_length(path, values),
        "shown": shown_labels(path, values, present),
        "defaults": read_defaults(path.parent, values, config),
    }


def _said_by_run(config: Config) -> Fields:
    """Returns the same fields of a run that was not converted."""
    return {
        "origin": {},
        "prompts": lambda tokenizer: prompt_format(config.task, tokenizer, config.model.architecture),
        "tasks": {name: getattr(config.task, name) for name in config.task.objective},
        "length": config.task.length,
    }


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

    # Merged kernels are floating-point numbers, whatever form those of the base have.
    adapts = config.adapter.kind != "none" and config.model.quantization.stored
    model = config.model.with_fields({"quantization": {}}) if adapts else config.model

    def own(mesh: jax.sharding.Mesh) -> PyTree:
        return unboxed(unstack_layers(_trained(SavedCheckpoints(folder), config, present, mesh, at)))

    adapted = config.adapter.kind != "none" and Adapted(config.adapted, known_base(config, folder), own)
    if origin:
        said = _said_by(folder / ORIGIN, origin, present, config.model, read_sentence(folder))
    else:
        said = _said_by_run(config)
    return Pretrained(
        folder,
        model,
        present,
        in_form(params, model),
        adapted=adapted or None,
        sparse=config.optimizer.sparsity.keeps,
        **said,
    )


def _trained(
    checkpoints: SavedCheckpoints, config: Config, present: tuple[str, ...], mesh: jax.sharding.Mesh, step: int | None
) -> PyTree:
    """Returns the parameters that a run evaluates: the averaged ones, if it averages them."""
    model = make_model(config.model, present, config.adapted)
    _, abstract = state_maker(model, config.optimizer, hyperparameters(config), config.seed, mesh)
    return checkpoints.restore(abstract.to_evaluate(), step).evaluation_params()


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
