"""Config: everything that determines a run, composed of small configs, each defined beside the code that reads it.

A config is resolved once, in this order: an experiment file or the defaults of the objective; then the flags that name
a choice (`--objective`, `--architecture`, `--preset`, ...); then every `--config.a.b=value`. It is validated once as a
whole, so a combination that cannot work is an error before anything is built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field, model_validator

from lmjax.adapters.config import AdapterConfig
from lmjax.data.control import check_control
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.errors import DataError, FlagError
from lmjax.model.adopt import InitConfig
from lmjax.model.config import ModelConfig
from lmjax.model.presets import PRESETS
from lmjax.nearest import choose, nearest, nearest_fields
from lmjax.objectives.registry import DEFAULT, OBJECTIVES, architectures, check_family, objective_types
from lmjax.objectives.sums import Penalties
from lmjax.objectives.task import TaskConfig
from lmjax.parallel.mesh import ParallelConfig
from lmjax.paths import read_regular
from lmjax.python_file import run_file
from lmjax.schema import Schema, flat
from lmjax.streams import SEEDS, SeedsConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig
from lmjax.training.metrics import LoggingConfig
from lmjax.training.stages import StagesConfig
from lmjax.training.teacher import TeacherConfig


class Config(Schema):
    """One run."""

    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of parameters, order, corruption and dropout")
    seeds: SeedsConfig = SeedsConfig()
    steps: int = Field(1000, ge=1, description="number of updates; not used if minutes are given")
    minutes: float | None = Field(
        None, gt=0, description="the run and its schedule end after this time instead of after steps; none: after steps"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="the run ends after this many passes over the training rows, in the run's own length and batch"
        " size; none: after steps",
    )
    max_skipped: int = Field(50, ge=1, description="non-finite updates in a row after which a run has diverged")
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop",
        description="what happens after max_skipped; rollback: the run continues from its last good checkpoint without"
        " the batches since then",
    )
    step_timeout: float = Field(
        1800.0, gt=0, description="most seconds of a step, an evaluation batch or a save; after that the run ends"
    )
    batch_size: int = Field(16, ge=1, description="rows of a step, on all devices and in all microbatches together")
    accumulation: int = Field(1, ge=1, description="number of microbatches that a step computes one after the other")
    steps_per_call: int = Field(
        1,
        ge=1,
        description="updates in one call of a compiled program, which saves the host's time between the updates of a"
        " small model; it should divide steps, evaluation.every and checkpoint.every, because updates that fill no call"
        " before the next of these take a second program",
    )
    init_from: str = Field(
        "", description="a workdir or Hugging Face folder with the initial parameters; empty: random parameters"
    )
    fresh: tuple[str, ...] = Field(
        (), description="parts of init_from's model, such as classifier_head, that start anew in place of being loaded"
    )
    init: InitConfig = InitConfig()
    adapter: AdapterConfig = AdapterConfig()
    accept_fields: tuple[str, ...] = Field(
        (), description="unknown fields of init_from's config.json that do not change the numbers of the model"
    )
    teacher: TeacherConfig = TeacherConfig()
    task: TaskConfig = TaskConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: StagesConfig = StagesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        task, model = self.task, self.model
        check_family(task.objective, model.architecture)
        lengths = (task.length, *self.stages.length)
        rows = {"length": max(lengths)}
        if model.family.paired:
            stages = (task.with_fields({"length": length}) for length in lengths)
            rows["target_length"] = max(stage.default_target_length() for stage in stages)
        for name, longest in rows.items():
            if longest > model.max_length:
                raise FlagError(
                    f"--config.task.{name}: rows of {longest} tokens do not fit --config.model.max_length="
                    f"{model.max_length}; shorten the rows or raise max_length"
                )
        for size in (self.batch_size, *self.stages.batch_size):
            if size % self.accumulation:
                raise FlagError(
                    f"--config.batch_size={size} is not divisible by "
                    f"--config.accumulation={self.accumulation}; take a multiple"
                )
        if model.mup.width is not None and not self.optimizer.rule.elementwise:
            raise FlagError(
                f"--config.model.mup.width={model.mup.width} with --optimizer={self.optimizer.name}: the learning "
                "rates of muP are those of adam, adamw and lion; take one of them, or leave mup.width out"
            )
        self._check_calls()
        if self.epochs is not None and self.minutes is not None:
            raise FlagError(f"--epochs={self.epochs} and --minutes={self.minutes}: either ends the run; give one")
        first = objective_types(task.objective)[0]
        check_control(self.data.control, first.name, first.columns)
        if not self.data.eval and not self.data.held_out:
            raise FlagError("--config.data.held_out=0 leaves nothing to evaluate on; give --eval_data")
        self._check_penalties()
        self.teacher.check(objective_types(task.objective), model)
        self.adapter.check(self.init_from)
        for each in objective_types(task.objective):
            if each.num_types and model.embedding.types not in (0, each.num_types):
                raise FlagError(
                    f"--config.model.embedding.types={model.embedding.types}: {each.name} tells texts apart by"
                    f" {each.num_types} types; set that, or 0 for none"
                )
        return self

    @property
    def adapted(self) -> AdapterConfig:
        """Returns the adapter, with the parts that start anew among those that are trained whole."""
        return self.adapter.with_fields({"whole": tuple(dict.fromkeys((*self.adapter.whole, *self.fresh)))})

    def seed_of(self, source: str) -> int:
        """Returns the seed of a source of randomness, a field of `seeds`: its own, or else the run's."""
        own = getattr(self.seeds, source)
        return self.seed if own is None else own

    def _check_calls(self) -> None:
        """Raises FlagError if several updates in a call are not possible."""
        if self.steps_per_call == 1:
            return
        given = f"--config.steps_per_call={self.steps_per_call}"
        if self.parallel.kind == "pmap":
            raise FlagError(f"{given} with --parallel=pmap: pmap makes one update in a call; take --parallel=mesh")
        for group in ("evaluation", "checkpoint"):
            every = getattr(self, group).every
            if 0 < every < self.steps_per_call:
                raise FlagError(
                    f"{given} with --config.{group}.every={every}: no call fits between two of them; take at most "
                    f"{every}, or raise {group}.every"
                )

    def _check_penalties(self) -> None:
        """Raises FlagError for a penalty that no loss of the run takes."""
        task, types = self.task, objective_types(self.task.objective)
        taken = {name for each in types for name in each.penalised_by(getattr(task, each.name))}
        for name in (field.name for field in dataclasses.fields(Penalties)):
            if getattr(task, name) and name not in taken:
                raise FlagError(
                    f"--config.task.{name}={getattr(task, name)}: the loss of {','.join(task.objective)} does not take"
                    " it; leave it out"
                )
        if task.r_drop and not any(self.model.dropout.by_name().values()):
            raise FlagError(
                f"--config.task.r_drop={task.r_drop}: both passes are equal without dropout; set a rate such as "
                "--config.model.dropout.residual=0.1, or leave it out"
            )

    def digest(self) -> str:
        """Returns eight hex digits that identify this config."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def to_json(self) -> str:
        """Returns the config as indented JSON; `from_json` reads it back."""
        return self.model_dump_json(indent=2) + "\n"


def from_json(path: pathlib.Path) -> Config:
    """Returns the config in a JSON file; raises DataError if it is not one."""
    try:
        return Config.model_validate_json(read_regular(path).decode())
    except (OSError, UnicodeDecodeError, pydantic.ValidationError, FlagError) as e:
        problem = _explain(e) if isinstance(e, pydantic.ValidationError) else str(e)
        raise DataError(f"{path}: not a config of this version of lmjax: {problem.splitlines()[0]}") from e


def default_config(objective: tuple[str, ...] = DEFAULT, architecture: str | None = None) -> Config:
    """Returns the config that `lmjax train` starts from: a nano model that learns within minutes on two CPU cores."""
    can = architectures(objective)
    chosen = can[0] if architecture is None else architecture
    nano = OBJECTIVES[objective[0]].nano
    if chosen not in nano:
        raise FlagError(f"--architecture={chosen}: {choose('architecture', chosen, list(nano))}")
    steps, batch_size, learning_rate = nano[chosen]
    return Config(
        steps=steps,
        batch_size=batch_size,
        task=TaskConfig(objective=objective, length=128),
        model=PRESETS[f"nano_{chosen}"].with_fields({"vocab_size": 0}),
        tokenizer=TokenizerConfig(vocab_size=2048),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=None),
        evaluation=EvaluationConfig(every=200),
        checkpoint=CheckpointConfig(every=200),
    )


def resolve(
    *,
    experiment: str | None = None,
    objective: tuple[str, ...] | None = None,
    architecture: str | None = None,
    preset: str | None = None,
    model: ModelConfig | None = None,
    overrides: Mapping[str, str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Config:
    """Returns the validated config of a command line.

    Args:
        experiment: `FILE.py` or `FILE.py:variant`; None: the defaults of the objective.
        objective: replaces the objectives.
        architecture: replaces the family; None: it follows from the objective.
        preset: replaces the whole model by a preset's name; its token table has the rows that the tokenizer needs.
        model: replaces the whole model.
        overrides: values by dotted path as text, from `--config.a.b=value`.
        fields: typed values by dotted path, from other flags.

    Raises:
        FlagError: an unknown name, a wrong type, or a value or a combination that cannot work.
    """
    if isinstance(objective, str):
        raise FlagError(f"objective={objective!r} is one text; give a tuple of names: {tuple(objective.split(','))}")
    if odd := [f"{path}={text!r}" for path, text in (overrides or {}).items() if not isinstance(text, str)]:
        raise FlagError(f"overrides: {odd[0]} is not text; give it as text, or typed in fields")
    base = default_config(objective or DEFAULT, architecture) if experiment is None else load_experiment(experiment)
    values = base.model_dump()
    if objective is not None:
        values["task"]["objective"] = objective
    if preset is not None:
        if preset not in PRESETS:
            raise FlagError(f"--preset={preset}: {choose('preset', preset, list(PRESETS))}")
        # The preset's published tokenizer is not available here, and rows without a token would cost memory and time.
        model = PRESETS[preset].with_fields({"vocab_size": 0})
    if model is not None:
        values["model"] = model.model_dump()
    if architecture is not None:
        values["model"]["architecture"] = architecture
    elif model is None and values["model"]["architecture"] not in architectures(tuple(values["task"]["objective"])):
        values["model"]["architecture"] = architectures(tuple(values["task"]["objective"]))[0]
    for path, value in (fields or {}).items():
        _assign(values, path, value)
    for path, text in (overrides or {}).items():
        _assign(values, path, _parsed(values, path, text))
    return _validated(values)


def replace(config: Config, fields: Mapping[str, Any]) -> Config:
    """Returns the config with other typed values by dotted path, validated as a whole like that of a command line."""
    values = config.model_dump()
    for path, value in fields.items():
        _assign(values, path, value)
    return _validated(values)


def load_experiment(spec: str) -> Config:
    """Returns the config from `get_config` of an experiment file. The file is Python and is run, so trust it first.

    Args:
        spec: `FILE.py`, or `FILE.py:variant`, where the variant is the argument of `get_config`.

    Raises:
        FlagError: there is no such file or variant, or `get_config` returns no Config.
    """
    name, _, variant = spec.partition(":")
    missing = f"--config={spec}: there is no Python file {name!r}"
    module = run_file(name, missing=missing, otherwise="give FILE.py or FILE.py:variant")
    if not hasattr(module, "get_config"):
        raise FlagError(f"--config={spec}: {name} defines no get_config(variant) -> lmjax.config.Config")
    variants = getattr(module, "VARIANTS", ("",))
    if variant not in variants:
        known = [each for each in variants if each]
        raise FlagError(f"--config={spec}: {choose('variant', variant, known) if known else f'{name} has no variants'}")
    config = module.get_config(variant)
    if not isinstance(config, Config):
        raise FlagError(f"--config={spec}: get_config returned {type(config).__name__}, not lmjax.config.Config")
    return config


def changed(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the old and the new value of every field that differs, by dotted path."""
    left, right = old.flat(), new.flat()
    return {p: (left.get(p), right.get(p)) for p in left | right if left.get(p) != right.get(p)}


def _validated(values: dict) -> Config:
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as e:
        raise FlagError(_explain(e)) from e


def _parent(values: dict, path: str) -> tuple[dict, str]:
    """Returns the dict with the last name of a dotted path, and that name; raises FlagError for an unknown name."""
    if now := Config.moved_to(path):
        raise FlagError(f"--config.{path}: this field is now --config.{now}")
    *groups, last = path.split(".")
    here, seen = values, "config"
    for name in [*groups, last]:
        if not isinstance(here, dict):
            raise FlagError(f"--config.{path}: no field {name} in {seen}; {seen} is a value, not a group")
        if name not in here:
            hint = nearest_fields(path, list(flat(values))) or f"there are {', '.join(sorted(here))}"
            raise FlagError(f"--config.{path}: no field {name} in {seen}; {hint}")
        parent, here, seen = here, here[name], name
    return parent, last


def _assign(values: dict, path: str, value: Any) -> None:
    parent, name = _parent(values, path)
    parent[name] = value


def _parsed(values: dict, path: str, text: str) -> Any:
    """Returns a flag's text in a form for pydantic: lists are split at commas, `none` is None or an empty list."""
    parent, name = _parent(values, path)
    if isinstance(parent[name], dict):
        raise FlagError(f"--config.{path}={text}: {name} is a group; set one of {', '.join(sorted(parent[name]))}")
    if isinstance(parent[name], list | tuple):
        return [] if text.lower() == "none" else [part for part in text.split(",") if part]
    return None if text.lower() == "none" and _optional(path) else text


def _optional(path: str) -> bool:
    """Returns whether a field may be None; for other fields `none` may be one of the choices."""
    schema: Any = Config
    *groups, last = path.split(".")
    for name in groups:
        schema = schema.model_fields[name].annotation
    return type(None) in typing.get_args(schema.model_fields[last].annotation)


def _explain(error: pydantic.ValidationError) -> str:
    """Returns pydantic's errors as lines, each with the flag, the value and what is wrong."""
    lines = []
    for e in error.errors():
        path = ".".join(str(part) for part in e["loc"])
        message = e["msg"].removeprefix("Value error, ")
        given = e["input"]
        if e["type"] == "literal_error" and (hint := nearest(str(given), re.findall(r"'([^']*)'", message))):
            message = f"{message}; {hint}"
        value = "" if isinstance(given, Mapping | pydantic.BaseModel) else f"={given}"
        lines.append(f"--config.{path}{value}: {message[0].lower()}{message[1:]}" if path else message)
    return "\n".join(lines)
