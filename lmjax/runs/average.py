"""Averages the parameters of several trained models, and writes the result as a workdir."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lmjax import __version__
from lmjax.config import replace
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import FlagError
from lmjax.model.averages import greedy_soup, spherical, task_vectors, weighted
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import fingerprint, flat, unflat
from lmjax.objectives.registry import OBJECTIVES
from lmjax.parallel.mesh import on_mesh
from lmjax.runs.best import BEST
from lmjax.runs.build import build
from lmjax.runs.fit import evaluator, layout
from lmjax.runs.made import config_of, write_model
from lmjax.runs.pretrained import Pretrained, open_pretrained, storage_mesh
from lmjax.runs.workdir import is_unused
from lmjax.training.checkpoint import saved_steps
from lmjax.training.fixed import NOTHING_FIXED
from lmjax.training.step import make_eval_step

Method = Literal["uniform", "greedy", "spherical", "task_vectors"]
ALL = "all"
Params = dict[str, np.ndarray]

# Fields of a model that change how it computes or is trained, and not what its parameters mean.
_FREE = ("scan_layers", "remat", "dtype", "param_dtype", "dropout.", "attention.kernel", "moe.dispatch", "moe.balance",
         "moe.z_weight", "init")  # fmt: skip


class Ingredient(NamedTuple):
    """One of the models that are averaged.

    Attributes:
        name: as the user names it.
        source: the model.
        step: its checkpoint, as in `Pretrained`; None: it has none, or the newest.
    """

    name: str
    source: Pretrained
    step: int | str | None

    def params(self, config: ModelConfig) -> Params:
        """Returns its parameters by path, on the host, in float32 and with the layers as in `config`."""
        wanted = self.source.config.with_fields({"scan_layers": config.scan_layers, "param_dtype": "float32"})
        placed = self.source.params(wanted, storage_mesh(wanted, self.source.heads))
        return {path: np.asarray(x) for path, x in flat(jax.device_get(placed)).items()}


@dataclasses.dataclass(frozen=True)
class Average:
    """How models are averaged.

    Attributes:
        method: the kind of average.
        weights: of the models; empty: equal. With task vectors, the factor of each; for the spherical average, those of
            both models.
        base: the model that all of them began with, for task vectors; empty: none.
        eval_sets: development sets of the greedy soup, as in `data.eval`; empty: those of the first run.
    """

    method: Method = "uniform"
    weights: tuple[float, ...] = ()
    base: str = ""
    eval_sets: tuple[dict[str, str], ...] = ()


class Made(NamedTuple):
    """What an average was made of.

    Attributes:
        names: of the models.
        shares: their weights in the result.
        costs: of each model alone, by the metric that the run follows; empty: they were not evaluated.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    costs: tuple[float, ...] = ()


def ingredients(text: str) -> list[Ingredient]:
    """Returns the models in a list such as `RUN,RUN@400,RUN@best,RUN@all`; raises FlagError if there is no such one."""
    found = []
    for name in filter(None, text.split(",")):
        place, _, step = name.rpartition("@")
        if not place or not (step.isdecimal() or step in (BEST, ALL)):
            place, step = name, ""
        steps: Sequence[Any] = [int(step) if step.isdecimal() else step or None]
        if step == ALL:
            steps = saved_steps(pathlib.Path(place).expanduser())
        for each in steps:
            shown = place if each is None else f"{place}@{each}"
            found.append(Ingredient(shown, open_pretrained(place, each), each))
    if codes := [model.name for model in found if model.source.config.quantization.stored]:
        raise FlagError(
            f"--models: {codes[0]} is compressed; average the models that were not, and compress the result"
        )
    if not found:
        raise FlagError(f"--models={text}: names no model; give RUN,RUN or RUN@STEP,RUN@STEP")
    return found


def average(models: Sequence[Ingredient], how: Average, workdir: pathlib.Path) -> Made:
    """Writes the average of models to a new workdir, and returns what it was made of.

    Raises:
        FlagError: the models do not fit each other, or the method does not fit them.
    """
    if not is_unused(workdir):
        raise FlagError(f"--to={workdir}: exists and is not empty; choose another")
    weights = _weights(models, how)
    check_alike(models)
    first = models[0].source
    base = _base(models, how)
    params = [model.params(first.config) for model in models]
    costs: tuple[float, ...] = ()
    if how.method == "greedy":
        with tempfile.TemporaryDirectory(prefix="lmjax-soup-") as folder:
            cost = _cost(first, how, pathlib.Path(folder) / "run")
            taken, found = greedy_soup(params, lambda some: weighted(some, [1] * len(some)), cost)
        weights, costs = tuple(float(i in taken) / len(taken) for i in range(len(models))), tuple(found)
        result = weighted(params, weights)
    elif how.method == "task_vectors":
        result = task_vectors(base, params, weights)
    elif how.method == "spherical":
        result = spherical(*params, weights[1])
    else:
        result = weighted(params, weights)
    made = Made(tuple(m.name for m in models), weights, costs)
    note = {"lmjax": __version__, "method": how.method, **({"base": how.base} if how.base else {})}
    note["models"] = [
        {"place": name, "weight": share, "fingerprint": fingerprint(each)}
        for name, share, each in zip(made.names, weights, params, strict=True)
    ]
    placed = _placed(abstract_params(first.config, first.heads), storage_mesh(first.config, first.heads), result)
    write_model(workdir, first, placed, note | ({"costs": list(costs)} if costs else {}))
    return made


def _placed(boxed: Any, mesh: jax.sharding.Mesh, params: Params) -> Any:
    """Returns parameters by path as arrays on a mesh, with the dtypes of boxed shapes."""
    abstract = on_mesh(boxed, mesh)
    return jax.tree.map(lambda x, p: jax.device_put(x.astype(p.dtype), p.sharding), unflat(params), abstract)


def _weights(models: Sequence[Ingredient], how: Average) -> tuple[float, ...]:
    """Returns the weight of each model; raises FlagError for weights or numbers of models that do not fit."""
    method, weights = how.method, how.weights
    if bool(how.base) != (method == "task_vectors"):
        raise FlagError(
            f"--base={how.base}: is for --method=task_vectors alone, which needs it: the model that all began with"
        )
    if method == "spherical" and len(models) != 2:
        raise FlagError(f"--method=spherical: takes two models, and --models names {len(models)}")
    if weights and method == "greedy":
        raise FlagError(f"--weights={weights}: the greedy soup gives equal weights; leave them out")
    if weights and len(weights) != len(models):
        raise FlagError(f"--weights names {len(weights)} weights, and --models {len(models)} models; give one for each")
    if method == "task_vectors":
        return weights or (1.0 / len(models),) * len(models)
    weights = weights or (1.0,) * len(models)
    if min(weights) < 0 or not sum(weights):
        raise FlagError(f"--weights={','.join(map(str, weights))}: must be positive; task vectors alone are subtracted")
    return tuple(weight / sum(weights) for weight in weights)


def check_alike(models: Sequence[Ingredient], other: str = "") -> None:
    """Raises FlagError, with the difference and the remedy, unless all models have one shape, tokenizer and task.

    Args:
        models: the models; each is compared with the first.
        other: the name of a model whose task and heads may be others; empty: there is none.
    """
    first, *rest = models
    for model in rest:
        said = f"{model.name} does not fit {first.name}"
        ours, theirs = (_meaning(m.source.config) for m in (first, model))
        if model.name == other:
            ours, theirs = ({p: x for p, x in f.items() if not p.startswith("head.")} for f in (ours, theirs))
        if path := next((p for p in sorted(ours) if ours[p] != theirs.get(p)), None):
            raise FlagError(f"{said}: model.{path} is {theirs.get(path)} there and {ours[path]} in the first")
        if len({load_tokenizer(str(m.source.folder)).fingerprint for m in (first, model)}) > 1:
            raise FlagError(f"{said}: their tokenizers differ, so that the rows of the token table mean other tokens")
        if model.name != other and (tasks := [_tasks(m.source) for m in (first, model)]) and tasks[0] != tasks[1]:
            raise FlagError(f"{said}: it was trained on {tasks[1]} and the first on {tasks[0]}")


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of a model that say what its parameters mean."""
    return {path: value for path, value in config.flat().items() if not path.startswith(_FREE)}


def _tasks(source: Pretrained) -> dict[str, Any]:
    """Returns what a model was trained on: its objectives, and what the outputs of its heads mean."""
    fields = {name: (*OBJECTIVES[name].learned, *OBJECTIVES[name].of_head) for name in source.tasks}
    return {name: {f: getattr(source.tasks[name], f) for f in known} for name, known in fields.items()}


def _base(models: Sequence[Ingredient], how: Average) -> Params:
    """Returns the parameters of the base of task vectors that the models have too; empty: there is no base."""
    if not how.base:
        return {}
    (base,) = ingredients(how.base)[:1]
    check_alike([models[0], base], other=base.name)
    config = models[0].source.config
    ours = flat(abstract_params(config, models[0].source.heads))
    return {path: x for path, x in base.params(config).items() if path in ours and ours[path].shape == x.shape}


def _cost(source: Pretrained, how: Average, workdir: pathlib.Path) -> Callable[[Params], float]:
    """Returns the cost of parameters on development sets: the metric that the run follows, lower is better."""
    if not (source.folder / "data.json").is_file():
        raise FlagError(f"--method=greedy: {source.folder} is no run with data of its own; average runs")
    fields: dict[str, Any] = {"tokenizer.path": str(source.folder), "evaluation.batches": 10**6}
    if how.eval_sets:
        fields["data.eval"] = list(how.eval_sets)
    run = build(replace(config_of(source), fields), workdir)
    evaluated = evaluator(run, jax.jit(make_eval_step(run.model, run.task)), NOTHING_FIXED)
    followed = evaluated.followed(run.config.evaluation.metric)
    boxed = abstract_params(run.model.config, run.model.heads)

    def cost(params: Params) -> float:
        with layout(run):
            return followed.read(evaluated(_placed(boxed, run.mesh, params)))

    return cost
