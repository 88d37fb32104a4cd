"""The teacher of a run: a trained model whose predictions it learns, which must be the same when the run resumes."""

from __future__ import annotations

import json

import jax

from lmjax.config import Config
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.taught import Taught
from lmjax.errors import ConfigMismatchError, FlagError
from lmjax.interop.shards import read_json
from lmjax.model.config import ModelConfig
from lmjax.model.heads import head_types
from lmjax.model.language_model import LanguageModel
from lmjax.model.parameters import fingerprint, flat
from lmjax.parallel.gather import on_host
from lmjax.runs.build import Run
from lmjax.runs.pretrained import Pretrained, open_pretrained
from lmjax.strict_json import write_json
from lmjax.training.teacher import Recorded, Teacher

# The file in a workdir that identifies the teacher of the run.
TEACHER = "teacher.json"


def open_teacher(run: Run) -> Teacher | Recorded | None:
    """Returns the teacher of a run, with its parameters on the run's mesh; None: it has none.

    Raises:
        FlagError: there is no such model, or its predictions cannot be compared with those of the run's model.
        ConfigMismatchError: it is not the teacher that the run began with.
    """
    config = run.config.teacher
    if not config.place:
        return None
    if config.recorded:
        taught = _recorded(run)
        _identify(run, taught.fingerprint)
        return Recorded(config, taught.metadata["rows"])
    source = open_pretrained(config.place)
    check_teacher(run, source)
    wanted = teacher_config(run.config, source.config)
    params = source.params(wanted, run.mesh)
    _identify(run, fingerprint(flat(on_host(params))))
    return Teacher(params, config, LanguageModel(wanted, source.heads))


def teacher_config(config: Config, theirs: ModelConfig) -> ModelConfig:
    """Returns the config in which a run computes its teacher; layers that are matched are not scanned."""
    dtype = config.model.dtype
    unrolled = {"scan_layers": False} if config.teacher.matches else {}
    return theirs.with_fields({"dtype": dtype, "param_dtype": dtype, "remat": "none"} | unrolled)


def check_teacher(run: Run, source: Pretrained) -> None:
    """Raises FlagError unless both models predict the same at the same positions."""
    said, ours, theirs = f"--config.teacher.place={run.config.teacher.place}", run.config.model, source.config
    taught = run.config.teacher.taught(run.task.objectives)
    if ours.architecture != theirs.architecture:
        raise FlagError(
            f"{said}: it is {_a(theirs.family.label)} and the student {_a(ours.family.label)}, whose rows differ; "
            "train on texts that the teacher writes (lmjax generate, lmjax predict), or take a teacher of this family"
        )
    if load_tokenizer(str(source.folder)).fingerprint != run.tokenizer.fingerprint:
        raise FlagError(
            f"{said}: its tokenizer is another one, so that its predictions are of other tokens; give "
            f"--config.tokenizer.path={run.config.teacher.place}"
        )
    longest = max(stage.task.objectives[0].length for stage in run.stages)
    if longest > theirs.max_length:
        raise FlagError(f"{said}: it reads rows of at most {theirs.max_length} tokens; lower --length={longest}")
    _check_layers(run, theirs)
    there = head_types(theirs.architecture, source.heads)
    for objective in (o for o in run.task.objectives if o.name in taught):
        if lacking := [h for h in head_types(theirs.architecture, objective.heads) if h not in there]:
            raise FlagError(f"{said}: it has no {lacking[0]} head for {objective.name}; take a teacher trained on that")
        known = source.tasks.get(objective.name)
        for field in (*objective.learned, *objective.of_head):
            values = [getattr(each, field, None) for each in (objective.config, known)]
            if known is not None and values[0] != values[1]:
                raise FlagError(f"{said}: its {field} are {values[1]}, and those of this run {values[0]}")


def _check_layers(run: Run, theirs: ModelConfig) -> None:
    """Raises FlagError if layers are to be matched that differ in shape, or that do not exist."""
    config, ours = run.config.teacher, run.config.model
    said = f"--config.teacher.place={config.place}"
    if config.matches and run.config.data.unpad:
        raise FlagError(f"{said}: layers are matched in rows as they are; set --config.data.unpad=false")
    if config.hidden_weight and ours.embed_dim != theirs.embed_dim:
        raise FlagError(
            f"{said}: its hidden states have the width {theirs.embed_dim}, and the student's {ours.embed_dim}; match "
            "attention instead (attention_weight), which does not need the same width"
        )
    if config.attention_weight and ours.num_heads != theirs.num_heads:
        raise FlagError(f"{said}: it has {theirs.num_heads} heads, and the student {ours.num_heads}; set num_heads")
    if wrong := [i for i in config.layers if not 0 <= i < theirs.num_layers]:
        raise FlagError(f"--config.teacher.layers: there is no layer {wrong[0]}; it has 0 to {theirs.num_layers - 1}")


def _recorded(run: Run) -> Taught:
    """Returns the file of a teacher's predictions; raises FlagError if they are not those that the run needs."""
    config, taught = run.config.teacher, Taught(run.config.teacher.place)
    wanted = {
        "tokenizer": run.tokenizer.fingerprint,
        "objective": run.task.names[0],
        "temperature": config.temperature,
    }
    for name, value in wanted.items():
        if taught.metadata.get(name) != value:
            raise FlagError(
                f"--config.teacher.place={config.place}: was written with {name} {taught.metadata.get(name)}, and this "
                f"run has {value}; write it again with lmjax teach and the flags of this run"
            )
    return taught


def _a(label: str) -> str:
    return f"an {label}" if label[0] in "aeiou" else f"a {label}"


def _identify(run: Run, digest: str) -> None:
    """Records the teacher's fingerprint in the workdir; raises ConfigMismatchError if another one stands there."""
    path = run.workdir / TEACHER
    if path.is_file():
        if (known := read_json(path).get("fingerprint")) != digest:
            raise ConfigMismatchError(
                f"--config.teacher.place={run.config.teacher.place}: is not the teacher that --workdir={run.workdir} "
                f"began with (fingerprint {digest}, and {known} in {TEACHER}); restore it, or use another --workdir"
            )
    elif jax.process_index() == 0:
        write_json(path, json.loads(json.dumps({"place": run.config.teacher.place, "fingerprint": digest})))
