"""The config of a run that starts from a trained model: the model's own fields, and the recipe of the objective."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmjax import config as configs
from lmjax.config import Config
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import FlagError
from lmjax.model.adopt import in_family
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import abstract_params
from lmjax.model.padding import padded
from lmjax.objectives.registry import OBJECTIVES, heads, objective_types, usual_objective
from lmjax.runs.data import VOCAB_MULTIPLE
from lmjax.runs.pretrained import Pretrained, open_pretrained

# Fields of which each says when a run ends.
ENDS = ("steps", "minutes", "epochs")


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run takes from the trained model that it starts from.

    Attributes:
        objective: what is trained.
        model: the architecture.
        fields: values of the config by dotted path, the recipe's included; those that a user gives take precedence.
        recipe: the paths of the recipe; empty: the objective has none, or an experiment decides instead.
        parts: the parts of the trained model, such as `backbone`.
    """

    objective: tuple[str, ...] | None
    model: ModelConfig
    fields: Mapping[str, Any]
    recipe: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()

    def completed(self, config: Config) -> Config:
        """Returns the config of the run.

        An adapter gets the parts that the trained model lacks as its own, and a token table that the tensor axis does
        not divide gets rows without a token.
        """
        if config.model.vocab_size % config.parallel.tensor:
            rows = padded(config.model, math.lcm(VOCAB_MULTIPLE, config.parallel.tensor))
            config = configs.replace(config, {"model": rows.model_dump()})
        if config.adapter.kind == "none":
            return config
        wanted = abstract_params(config.model, heads(objective_types(config.task.objective))).keys()
        lacking = [part for part in wanted if part not in self.parts and part not in config.adapter.whole]
        return configs.replace(config, {"adapter.whole": (*config.adapter.whole, *lacking)})


def start_from(
    place: str | os.PathLike[str],
    *,
    accept_fields: Sequence[str] = (),
    experiment: str | None = None,
    objective: tuple[str, ...] | None = None,
    architecture: str | None = None,
    given: Collection[str] = (),
    fresh: bool = False,
) -> Start:
    """Returns what a run takes from a trained model.

    Args:
        place: the model, as for `open_pretrained`.
        accept_fields: as for `open_pretrained`.
        experiment: the experiment of the run, which replaces the recipe.
        objective: what is trained; None: what is usual for the family, without a recipe.
        architecture: the family that the model is turned into; None: its own.
        given: the paths of the fields that the user gives.
        fresh: whether parts of the model start at random, so that what its head means does not hold.

    Raises:
        FlagError: there is no such model, or it cannot be turned into that family.
        DataError: a file of it cannot be read.
    """
    source = open_pretrained(place, accept_fields=accept_fields)
    fields: dict[str, Any] = {
        "init_from": str(source.folder),
        "accept_fields": tuple(accept_fields),
        "tokenizer.path": str(source.folder),
    }
    if source.sparse:
        fields["optimizer.sparsity.keep_zeros"] = True
    recipe = {}
    if experiment is None and objective is not None:
        recipe = _recipe(objective, given, source.config.max_length)
    model = in_family(source.config, architecture or source.config.architecture)
    if {"init.vocabulary", "tokenizer.added"} & set(given):
        # The table has the rows that the other tokenizer needs, and added tokens are new ones.
        model = model.with_fields({"vocab_size": 0})
        fields["init.vocabulary"] = "mean"
    if experiment is None and objective is None:
        objective = (usual_objective(model.architecture),)
    for name in () if fresh else objective or ():
        fields |= _known(source, name)
    form = functools.cache(lambda: source.prompts(load_tokenizer(str(source.folder))))
    for name in OBJECTIVES.keys() & set(objective or ()):
        fields |= {f"task.{name}.{field}": value for field, value in OBJECTIVES[name].continued(form).items()}
    parts = frozenset(abstract_params(source.config, source.heads))
    return Start(objective, model.with_fields({"param_dtype": "float32"}), recipe | fields, tuple(recipe), parts)


def is_fresh(overrides: Mapping[str, str]) -> bool:
    """Returns whether `--config.fresh` starts a part of the model at random."""
    return overrides.get("fresh", "none") != "none"


def _recipe(objective: tuple[str, ...], given: Collection[str], longest: int) -> dict[str, Any]:
    """Returns the recipe of a run from pretrained parameters, by dotted path; empty if the objective has none.

    Args:
        objective: the names of the objectives; the first one decides.
        given: the paths that the user gives; the recipe's epochs do not stand beside another end of the run,
            nor its share of warm-up beside steps.
        longest: the most tokens in a row of the model.
    """
    objective_types(objective)  # refuses unknown names
    recipe = dict(OBJECTIVES[objective[0]].recipe)
    if not set(ENDS).isdisjoint(given):
        recipe.pop("epochs", None)
    if "optimizer.warmup_steps" in given:
        recipe.pop("optimizer.warmup_share", None)
    return recipe | {"task.length": min(recipe.get("task.length", 128), longest)} if recipe else {}


def _known(source: Pretrained, name: str) -> dict[str, Any]:
    """Returns what the outputs of an objective's head mean in a model, such as the names of labels, by dotted path."""
    if name not in source.tasks:
        return {}
    settings = {
        field: getattr(source.tasks[name], field) for field in (*OBJECTIVES[name].learned, *OBJECTIVES[name].of_head)
    }
    return {f"task.{name}.{field}": value for field, value in settings.items() if value}


def resolve(
    *,
    experiment: str | None = None,
    objective: tuple[str, ...] | None = None,
    architecture: str | None = None,
    preset: str | None = None,
    model: ModelConfig | None = None,
    init_from: str | os.PathLike[str] | None = None,
    accept_fields: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Config:
    """Returns the validated config that `lmjax train` has with the same values.

    Args:
        experiment: `FILE.py` or `FILE.py:variant`; None: the defaults of the objective.
        objective: replaces the objectives.
        architecture: replaces the family, also that of `init_from`; None: it follows from the objective.
        preset: replaces the whole model by a preset's name; its token table has the rows that the tokenizer needs.
        model: replaces the whole model.
        init_from: a trained model, as for `load_model`, whose parameters, architecture, tokenizer and labels the run
            starts with; the objective's recipe for pretrained parameters (such as a learning rate of 3e-5 and 3 epochs)
            then replaces its defaults. The field `init_from` in `fields` is the parameters' place alone.
        accept_fields: unknown fields of its Hugging Face config.json that the user declares harmless.
        overrides: values by dotted path as text, from `--config.a.b=value`.
        fields: typed values by dotted path, from other flags.

    Raises:
        FlagError: an unknown name, a wrong type, or a value or a combination that cannot work.
        DataError: a file of the trained model cannot be read.
    """
    choices = {"experiment": experiment, "objective": objective, "architecture": architecture}
    if init_from is None or isinstance(objective, str):
        # An objective that is one text is refused there.
        if accept_fields:
            raise FlagError(f"--accept_fields={accept_fields[0]}: is for --init_from; give that too")
        return configs.resolve(**choices, preset=preset, model=model, overrides=overrides, fields=fields)
    if preset is not None or model is not None:
        named = f"--preset={preset}" if preset is not None else "model"
        raise FlagError(f"{named}: --init_from brings its own model; give one of them")
    overrides, fields = overrides or {}, fields or {}
    start = start_from(
        init_from,
        accept_fields=accept_fields,
        experiment=experiment,
        objective=objective,
        architecture=architecture,
        given={*overrides, *fields},
        fresh=is_fresh(overrides) or bool(fields.get("fresh")),
    )
    choices["objective"] = start.objective
    fields = {**start.fields, **fields}
    return start.completed(configs.resolve(**choices, model=start.model, overrides=overrides, fields=fields))
