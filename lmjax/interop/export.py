"""Exports a model as a Hugging Face checkpoint folder: config.json and safetensors."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import jax
import ml_dtypes
import numpy as np

from lmjax.errors import FlagError, SaveError
from lmjax.interop.checkpoint import Description, describe, shapes
from lmjax.interop.families import FAMILIES
from lmjax.interop.nearest import Change, changes
from lmjax.interop.shards import SHARD_BYTES, write_shards
from lmjax.model.config import ModelConfig
from lmjax.model.heads import BARE, HEADS, head_types
from lmjax.model.parameter_paths import layer_paths
from lmjax.model.parameters import flat
from lmjax.model.positions import SCHEMES
from lmjax.model.positions.rope import stretched_base
from lmjax.paths import is_free, new_folder

# Fields that do not change the outputs of a trained model without dropout; some change its speed.
_NOT_OF_THE_FUNCTION = {
    "initializer",
    "init_std",
    # The factor on the logits is added below, and score_scale has that on the scores.
    "mup",
    "dropout",
    "scan_layers",
    "remat",
    "dtype",
    "param_dtype",
    "attention.kernel",
    "head.generator_size",
    "head.labels",
    # Of the vectors of texts, which other files than config.json describe.
    "head.vector_pooling",
    "head.unit_length",
    # `_function` compares each of these groups as one value.
    "rope",
    "relative",
    "moe",
}


def _function(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields that decide what a model computes, in a normal form: equal functions have equal fields."""
    values = {k: v for k, v in config.flat().items() if {k, k.partition(".")[0]}.isdisjoint(_NOT_OF_THE_FUNCTION)}
    values |= {"rope": _based(config).rope.model_dump(), "relative": config.relative}
    values |= {"num_kv_heads": config.kv_heads, "head_dim": config.width_of_head, "embedding.dim": config.table_dim}
    values |= {"attention.scale": config.score_scale, "num_decoder_layers": config.side_layers(True)}
    values |= {"decoder_positions": config.side_positions(decoder=True), "biases": _biases(config)}
    values["mup.width"] = config.mup.width if config.head.tied and config.width_factor != 1 else None
    unused = (scheme for scheme in SCHEMES.values() if scheme not in config.schemes)
    values |= dict.fromkeys(field for scheme in unused for field in scheme.fields)
    if values["rope"]:
        begins = config.rope.scaling in ("dynamic", "yarn", "longrope", "llama3")
        values["rope"]["short_factors"] = config.rope.short_factors or config.rope.long_factors
        values["rope"] |= {"original_length": (config.rope.original_length or config.max_length) if begins else None}
    # Whether each layer has global attention, instead of the rule that decides it.
    layers = range(max(config.num_layers, config.side_layers(True)))
    values |= {
        "attention.global_every": [config.attention.is_global(i) for i in layers],
        "attention.global_offset": None,
        "moe": None,
    }
    if config.moe.num_experts:
        moe, sparse = config.moe, [config.moe.has_experts(i) for i in layers]
        width = config.mlp_dim if moe.mlp_dim is None else moe.mlp_dim
        values["moe"] = (moe.num_experts, moe.top_k, moe.normalize, width, sparse)
        values["mlp_dim"] = None if all(sparse) else config.mlp_dim
    return values


def _based(config: ModelConfig) -> ModelConfig:
    """Returns the model with the base of its rotations in place of the scaling `ntk`, for which no file has a name."""
    rope = config.rope
    if rope.scaling != "ntk":
        return config
    base = stretched_base(rope.theta, rope.factor, config.rotated_dim)
    return config.with_fields({"rope": rope.with_fields({"theta": base, "scaling": "none", "factor": 1.0})})


def _biases(config: ModelConfig) -> list[str]:
    """Returns the kinds of layers that have a bias in this model, sorted."""
    absent = set() if config.gated_mlp else {"gate"}
    absent |= set() if config.factorised else {"project_in", "project_out"}
    absent |= {"norm"} if config.norm == "rmsnorm" else set()
    return sorted(set(config.biases) - absent)


def describe_as(
    model_type: str, config: ModelConfig, heads: tuple[str, ...], paths: Set[str], known: Mapping[str, Any]
) -> Description | list[str]:
    """Returns the model as a checkpoint of a family, or a list of what the family cannot express.

    Args:
        model_type: the family's name.
        config: of the model.
        heads: of the model.
        paths: of its parameters.
        known: values of a config.json that are preserved if the model does not determine them.
    """
    classes = _classes(model_type, heads)
    if not classes:
        return [f"heads={list(heads)}"]
    chosen = [name for name in known.get("architectures") or () if name in classes] or classes
    results = [_described(model_type, config, heads, paths, known, name) for name in chosen]
    return next((r for r in results if isinstance(r, Description)), results[0])


def _classes(model_type: str, heads: tuple[str, ...]) -> list[str]:
    """Returns the names of a family's classes that have exactly these heads."""
    family = FAMILIES[model_type]
    classes = [name for name, has in family.heads.items() if set(has) == set(heads)]
    return classes + ([name for name in family.bare if name not in classes] if set(heads) <= {BARE} else [])


def _read_back(
    model_type: str,
    config: ModelConfig,
    heads: tuple[str, ...],
    paths: Set[str],
    known: Mapping[str, Any],
    name: str,
    *,
    lenient: bool = False,
) -> Description:
    """Returns the model that a class reads from the config.json that its family writes for a model.

    Raises:
        FlagError: the class cannot read it.
    """
    family = FAMILIES[model_type]
    values = dict(known) | family.write(_based(config))
    values |= {"model_type": model_type, "architectures": [name], "dtype": config.param_dtype}
    values.pop("torch_dtype", None)
    labelled = any("labels" in output.axes for head in heads for output in HEADS[head].outputs)
    if labelled and len(values.get("id2label") or {}) != config.head.labels:
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.head.labels)}
        values["label2id"] = {name: int(i) for i, name in values["id2label"].items()}
    return describe(pathlib.Path(model_type), values, family.ends(paths), lenient=lenient)


def _differences(config: ModelConfig, other: ModelConfig, heads: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
    """Returns the fields in which the functions of two models differ, with both values."""
    ours, theirs = _function(config), _function(other)
    unread = () if any(HEADS[head].fine_tuned for head in heads) else ("head.classifier", "head.pooling")
    return {k: (v, theirs[k]) for k, v in ours.items() if v != theirs[k] and k not in unread}


def _described(
    model_type: str,
    config: ModelConfig,
    heads: tuple[str, ...],
    paths: Set[str],
    known: Mapping[str, Any],
    name: str,
) -> Description | list[str]:
    """Returns the model as a checkpoint of a class, or a list of what the class cannot express."""
    try:
        found = _read_back(model_type, config, heads, paths, known, name)
    except FlagError as e:
        return [str(e)]
    if set(found.heads) != set(heads):
        return [f"heads={list(heads)} (there {list(found.heads)})"]
    different = _differences(config, found.config, heads)
    return [f"{k}={ours!r} (there {theirs!r})" for k, (ours, theirs) in different.items()] or found


def _changes(model_type: str, config: ModelConfig, heads: tuple[str, ...]) -> list[Change]:
    """Returns the changes of a model that are needed for a family to express it; empty: no change helps."""
    classes = _classes(model_type, heads)

    def compare(now: ModelConfig) -> tuple[set[str], ModelConfig] | None:
        paths = shapes(now, heads).keys()
        try:
            theirs = _read_back(model_type, now, heads, paths, {}, classes[0], lenient=True)
        except FlagError:
            return None
        if theirs.config.architecture != config.architecture or set(theirs.heads) != set(heads):
            return None
        if not (different := _differences(now, theirs.config, heads)):
            strict = describe_as(model_type, now, heads, paths, {})
            return (set(), theirs.config) if isinstance(strict, Description) else None
        return set(different), theirs.config

    return changes(config, compare) if classes else []


def choose_family(
    config: ModelConfig, heads: tuple[str, ...], model_type: str | None, known: Mapping[str, Any]
) -> Description:
    """Returns the model as a checkpoint of the requested family, or of the first family that can express it.

    Raises:
        FlagError: no family can; the message names the nearest one and the changes that it needs.
    """
    if model_type is not None and model_type not in FAMILIES:
        raise FlagError(f"--family={model_type}: lmjax implements {', '.join(sorted(FAMILIES))}")
    first = [known["model_type"]] if known.get("model_type") in FAMILIES else []
    names = [model_type] if model_type else first + [name for name in FAMILIES if name not in first]
    tried: dict[str, list[str]] = {}
    paths = shapes(config, heads).keys()
    for name in names:
        result = describe_as(name, config, heads, paths, known if name == known.get("model_type") else {})
        if isinstance(result, Description):
            return result
        tried[name] = result
    raise FlagError(_no_family(config, heads, model_type, tried))


def _no_family(
    config: ModelConfig, heads: tuple[str, ...], model_type: str | None, tried: Mapping[str, list[str]]
) -> str:
    """Returns the error that no family, or not the requested one, can express a model, with the changes needed."""
    can = f"--family={model_type} cannot" if model_type else "no family of Hugging Face can"
    needed = {name: found for name in tried if (found := _changes(name, config, heads))}
    if not needed:
        reasons = f": {', '.join(tried[model_type][:4])}" if model_type else ""
        having = f" with heads={list(heads)}" if heads else ""
        return f"{can} express this {config.family.label}{having}{reasons}"
    nearest = min(needed, key=lambda name: len(needed[name]))
    ways = ", ".join(f"{c.path}={c.value!r}" for c in needed[nearest])
    return (
        f"{can} express this model{', because of' if model_type else f'; {nearest} is nearest, and cannot express'}: "
        f"{ways}. A model that is trained with these flags can be exported: {' '.join(c.flag for c in needed[nearest])}"
    )


def exported_heads(config: ModelConfig, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the heads that a checkpoint of transformers gets.

    Heads for training only are left out, because no class of transformers has them beside other heads, and those
    without parameters; a model that has no other head is bare.
    """
    kept = tuple(h for h in heads if HEADS[h].has_parameters and not HEADS[h].in_training_only)
    if kept == tuple(head_types(config.architecture, ())):
        return ()
    return (BARE,) if heads and not kept and not config.head.tied else kept


def check_free(folder: pathlib.Path) -> None:
    """Raises FlagError if the new folder is not empty or cannot be created."""
    if not is_free(folder):
        raise FlagError(f"--to={folder}: exists and is not an empty folder; choose another")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise FlagError(f"--to={folder}: {there} is a file; choose another")


@contextlib.contextmanager
def _told(folder: pathlib.Path) -> Iterator[None]:
    """Turns an OSError while writing to `folder` into a SaveError."""
    try:
        yield
    except OSError as e:
        raise SaveError(f"--to={folder}: cannot be written to: {e.strerror or e}; free space or choose another") from e


def export(
    description: Description,
    config: ModelConfig,
    params: Any,
    folder: pathlib.Path,
    *,
    dtype: str | None = None,
    extra: Mapping[str, Any] | None = None,
    beside: Callable[[pathlib.Path], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the tensors into a new folder, which appears only once it is complete.

    Args:
        description: from `choose_family`.
        config: of the model, as trained: its layers may be stacked.
        params: plain arrays.
        folder: the new folder.
        dtype: of the tensors; None: that of the parameters.
        extra: values of config.json that the model does not know, such as the ids of special tokens.
        beside: writes other files into the folder, such as a tokenizer.
        shard_bytes: most bytes of a file.

    Raises:
        FlagError: the folder is not empty.
    """
    check_free(folder)
    kept = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)) if dtype else None
    values = dict(description.values) | dict(extra or {}) | ({"dtype": dtype} if dtype else {})
    constants = description.family.constants.items()
    made = ((description.rename(name), make(config).astype(np.float32)) for name, make in constants)
    tensors = itertools.chain(tensors_of(description, config, params), made)
    with _told(folder), new_folder(folder) as temporary:
        (temporary / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        write_shards(temporary, ((n, t if kept is None else t.astype(kept)) for n, t in tensors), shard_bytes)
        if beside is not None:
            beside(temporary)


def tensors_of(description: Description, config: ModelConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a checkpoint by name; parameters are fetched from the devices one table row at a time."""
    arrays = {}
    for path, array in flat(params).items():
        stacked = layer_paths(path)
        for layer in range(len(array)) if stacked else (None,):
            arrays[path if layer is None else stacked(layer)] = (array, layer)
    assert arrays.keys() == shapes(config, description.heads).keys()
    for row in description.rows():
        ours = [jax.device_get(a if layer is None else a[layer]) for a, layer in (arrays[p] for p in row.ours)]
        yield from zip(map(description.rename, row.theirs), row.layout.join(ours), strict=True)
