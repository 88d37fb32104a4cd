"""Exports a model as StableHLO programs by `jax.export`, which need neither lmjax nor Flax to run.

A folder has a program for each use (`prefill` and `step` of a model that writes, else `forward`), the weights in one
safetensors file, `program.json` with names and shapes, and `portable.py`, which runs them. The sizes of batch, row and
cache are symbolic, so one program serves all of them. The weights are arguments, so that both programs share them.

There is no ONNX here. Tried on 2026-11-29: jax2onnx 0.17.1, the one kept converter from JAX, requires orbax-checkpoint
below 0.11.37, and lmjax 0.12, so that pip installs them together only without their requirements. Then an encoder's
outputs were equal to 7e-7 with a symbolic batch and a fixed length (onnx 1.23.2, onnxruntime 1.32.0), and a symbolic
length failed inside it. It reads functions of JAX alone, no StableHLO. What works is torch.onnx from the exported
checkpoint of Hugging Face, with both symbolic: `experiments/bench/onnx_encoder.py`.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import save_file

from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.interop import portable as runner
from lmjax.model.cache import Cache, init_cache
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.parameters import flat, unflat
from lmjax.model.platform import portable
from lmjax.paths import new_folder

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FIELDS = ("tokens", "positions", "segment_ids")
Fields = Mapping[str, jax.Array]


def check_installed() -> None:
    """Raises FlagError if the library that writes programs to files is missing."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise FlagError("--format=stablehlo needs flatbuffers, which is not installed; pip install 'lmjax[stablehlo]'")


def write_programs(loaded: LoadedModel, folder: pathlib.Path, beside: Callable[[pathlib.Path], None]) -> dict[str, int]:
    """Writes a model's programs and weights into a new folder; returns the bytes of each program by name.

    Args:
        loaded: the model.
        folder: the new folder, which appears only once it is complete.
        beside: writes other files into the folder, such as a tokenizer.

    Raises:
        FlagError: the model's weights are quantised, or its program depends on the length of a row.
    """
    model, heads = portable_model(loaded.model), loaded.model.heads
    weights = {name: np.asarray(x) for name, x in flat(loaded.params).items()}
    if weights.keys() != flat(abstract_params(model.config, heads)).keys():
        raise FlagError("--format=stablehlo: writes no quantised weights; export the model from which they were made")
    exported, about = programs(model, weights, bidirectional=loaded.prompts.bidirectional)
    config, prompts = model.config, loaded.prompts
    about |= {name: list(getattr(prompts, name)) for name in ("before", "after", "start", "forced", "stop", "never")}
    about |= {"paired": config.family.paired, "pad": loaded.tokenizer.pad_id, "max_length": config.max_length}
    about["files"] = {name: f"{name}.stablehlo" for name in exported}
    with new_folder(folder) as temporary:
        sizes = {}
        for name, program in exported.items():
            data = program.serialize()
            (temporary / about["files"][name]).write_bytes(data)
            sizes[name] = len(data)
        save_file(weights, temporary / "weights.safetensors")
        (temporary / "program.json").write_text(json.dumps(about, indent=1) + "\n")
        shutil.copy(runner.__file__, temporary / "portable.py")
        beside(temporary)
    return sizes


def portable_model(model: LanguageModel) -> LanguageModel:
    """Returns the model with attention that has no code for one backend and no choice by length."""
    config = model.config
    attention = config.attention.with_fields({"kernel": "plain"})
    return model.clone(config=config.with_fields({"attention": attention, "scan_layers": False}))


def programs(
    model: LanguageModel, weights: Mapping[str, Any], *, bidirectional: bool = False
) -> tuple[dict[str, export.Exported], dict[str, Any]]:
    """Returns the programs by name, and a description of their inputs and of the cache.

    Args:
        model: from `portable_model`.
        weights: arrays or shapes by path.
        bidirectional: whether a decoder's prompt is a prefix.
    """
    config, writes = model.config, model.config.family.causal and model.has_vocabulary
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    if not writes:
        program, fields = _forward(model, shapes)
        return {"forward": program}, {"inputs": {"forward": fields}, "cache": {}}
    found, inputs, about = {}, {}, {}
    for name in ("prefill", "step"):
        size = _sizes(config, *("tcs" if config.family.paired else "tc")[name == "step" :])
        side, length = config.family.predicts, size.get("t", 1)
        layout, cache = _empty(config, size)
        fields = {f"{side}{field}": _ints(size["b"], length) for field in _FIELDS}
        if name == "prefill":
            # The cache of the first call is empty, which is known while tracing.
            cache.pop("filled")
            about = {
                key: ([n if isinstance(n, int) else str(n) for n in x.shape], str(x.dtype)) for key, x in cache.items()
            }
            if config.family.paired:
                fields |= {f"encoder_{field}": _ints(size["b"], size["s"]) for field in _FIELDS}
        found[name] = _exported(_reader(model, layout, bidirectional and name == "prefill"), shapes, cache, fields)
        inputs[name] = list(fields)
    return found, {"inputs": inputs, "cache": about}


def _forward(model: LanguageModel, weights: Fields) -> tuple[export.Exported, list[str]]:
    """Returns the program of all outputs by name, and the names of its fields."""
    config = model.config
    size = _sizes(config, *("ts" if config.family.paired else "t"))
    names = (*_FIELDS, "type_ids") if config.embedding.types > 1 else _FIELDS
    fields = {
        f"{side.prefix}{name}": _ints(size["b"], size["s" if side.prefix == "encoder_" else "t"])
        for side in config.family.sides
        for name in names
    }

    def forward(weights: Fields, fields: Fields) -> dict[str, jax.Array]:
        return model.apply({"params": unflat(weights)}, fields, method="outputs")

    return _exported(forward, weights, fields), list(fields)


def _reader(model: LanguageModel, layout: Any, prefix: bool) -> Callable[..., Any]:
    """Returns the function from weights, cache and fields to logits after the last column and the cache after it.

    Args:
        model: from `portable_model`.
        layout: the tree of its cache.
        prefix: whether all tokens of the fields are a bidirectional prefix.
    """

    def read(weights: Fields, cache: Fields, fields: Fields) -> tuple[jax.Array, dict[str, jax.Array]]:
        before = jax.tree.unflatten(layout, [cache.get(name) for name in _leaf_names(layout)])
        fields = {**fields, "prefix": fields["segment_ids"]} if prefix else fields
        variables = {"params": unflat(weights)}
        hidden, after = model.apply(variables, fields, before, method="extend")
        logits = model.apply(variables, hidden[:, -1], method="logits")
        return logits, dict(zip(_leaf_names(layout), jax.tree.leaves(after), strict=True))

    return read


def _empty(config: ModelConfig, size: Mapping[str, Any]) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the tree of a cache, and the shapes of its arrays by name; it is written, with 0 filled slots.

    Every layer has all slots: a layer with a window hides older tokens by their positions, because the number of slots
    in a ring cannot be symbolic.
    """
    config = config.with_fields({"attention": config.attention.without_window(), "rope.local_theta": None})

    def make(rows: jax.Array, source: jax.Array | None) -> Cache:
        memory = 0 if source is None else source.shape[0]
        return init_cache(config, *rows.shape, memory_length=memory).replace(filled=jnp.int32(0))

    made = jax.eval_shape(make, _ints(size["b"], size["c"]), _ints(size["s"]) if "s" in size else None)
    layout = jax.tree.structure(made)
    return layout, dict(zip(_leaf_names(layout), jax.tree.leaves(made), strict=True))


def _leaf_names(layout: Any) -> list[str]:
    """Returns a name for each array of a cache, such as `layers.0.attention.key`."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(layout, range(layout.num_leaves)))
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def _ints(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _sizes(config: ModelConfig, *names: str) -> dict[str, Any]:
    """Returns symbolic sizes: `b` rows, and of these `t` tokens in each, `c` slots of a cache, `s` encoder tokens."""
    rules = [rule for rule in ("c >= t", "c >= 2") if set(rule) & set("ct") <= set(names)]
    if any(scheme.table for scheme in config.schemes):
        rules += [f"{name} <= {config.max_length}" for name in names if name in "ts"]
    sizes = export.symbolic_shape(", ".join(("b", *names)), constraints=rules)
    return dict(zip(("b", *names), sizes, strict=True))


def _exported(function: Callable[..., Any], *shapes: Any) -> export.Exported:
    """Returns the program of a function; raises FlagError if its operations depend on a symbolic size."""
    try:
        with portable():
            return export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    except (jax.errors.InconclusiveDimensionOperation, TypeError) as e:
        raise FlagError(
            f"--format=stablehlo: the program of this model depends on the length of a row ({str(e).splitlines()[0]});"
            " export a model without dynamic scaling of positions"
        ) from e
