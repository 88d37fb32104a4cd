"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, LoRA with its variants.

The tensors of a module X of the checkpoint are `base_model.model.X.lora_A.weight` `[r, inputs]`, `.lora_B.weight`
`[outputs, r]` and, in dora, `.lora_magnitude_vector` `[outputs]`; of a table `.lora_embedding_A` `[r, rows]` and
`.lora_embedding_B` `[width, r]`. Parts that are trained whole have the names of the checkpoint. Where the checkpoint
joins several of our layers into one matrix, they share A.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.forms import MAGNITUDE, A, B
from lmjax.errors import DataError, FlagError
from lmjax.interop.checkpoint import Description, shapes
from lmjax.interop.layouts import Matrix, Same
from lmjax.interop.shards import read_json
from lmjax.interop.table import Row
from lmjax.model.parameter_paths import EMBEDDING, SCANNED, UNROLLED

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Options of PEFT that change the numbers of an adapter, with the values that lmjax implements.
_EXPECTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
}
# A regular expression, as the replacement in another one, for the name of any layer, scanned or not.
_ANY_LAYER = rf"({SCANNED}|{UNROLLED}\\d+)"
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter of an unrolled model.

    Attributes:
        config: its fields.
        arrays: its parameters by path.
        base: the place of the model that it was trained on, as its folder says.
    """

    config: AdapterConfig
    arrays: Arrays
    base: str


def is_adapter(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds an adapter in PEFT's format."""
    return (folder / CONFIG).is_file()


def _modules(row: Row) -> tuple[str, ...]:
    """Returns the paths of our layers in a row of kernels or of the token table; empty: no layer that LoRA adapts."""
    kernels = isinstance(row.layout, Matrix) and row.layout.inputs
    table = isinstance(row.layout, Same) and row.ours == (f"{EMBEDDING}/table",)
    return tuple(path.rpartition("/")[0] for path in row.ours) if kernels or table else ()


def _layouts(row: Row) -> dict[str, tuple[str, Any]]:
    """Returns for each of our parameters beside a row its name in the module, and the layout of its tensor."""
    if isinstance(row.layout, Same):
        return {A: ("lora_embedding_A", Matrix(1)), B: ("lora_embedding_B", Matrix(1))}
    outputs = Matrix(1, by_head=row.layout.by_head)
    return {
        A: ("lora_A.weight", Matrix(row.layout.inputs)),
        B: ("lora_B.weight", outputs),
        MAGNITUDE: ("lora_magnitude_vector", dataclasses.replace(outputs, inputs=0)),
    }


def write_adapter(folder: pathlib.Path, description: Description, adapter: Adapter) -> None:
    """Writes an adapter of a model that a checkpoint describes.

    Raises:
        FlagError: PEFT's format cannot express it.
    """
    config, arrays = adapter.config, adapter.arrays
    if config.kind == "ia3":
        raise FlagError("--config.adapter.kind=ia3: is not written in PEFT's format; give --merge for the whole model")
    tensors: dict[str, np.ndarray] = {}
    targets, saved, left = [], set(), set(arrays)
    transposed = True
    for row in description.rows():
        if all(path in arrays for path in row.ours):
            tensors |= zip(
                map(description.rename, row.theirs), row.layout.join([arrays[p] for p in row.ours]), strict=True
            )
            saved |= {description.rename(name).rpartition(".")[0] for name in row.theirs}
            left -= set(row.ours)
        modules = _modules(row)
        adapted = [module for module in modules if f"{module}/{A}" in arrays]
        if not adapted:
            continue
        module = description.rename(row.theirs[0]).rpartition(".")[0]
        _check_joined(module, modules, adapted, arrays)
        if isinstance(row.layout, Same) and description.config.head.tied:
            raise FlagError(
                f"{module}: its adapter changes the look-up and, as the table is tied, the logits, and PEFT's the "
                "look-up alone; give --merge for the whole model"
            )
        targets.append(module)
        transposed = transposed and getattr(row.layout, "transposed", True)
        for name, (theirs, layout) in _layouts(row).items():
            paths = [f"{m}/{name}" for m in (adapted[:1] if name == A else adapted)]
            if paths[0] in arrays:
                tensors[f"{module}.{theirs}"] = layout.join([arrays[path] for path in paths])[0]
        left -= {f"{m}/{name}" for m in adapted for name in (A, B, MAGNITUDE)}
    if left:
        raise FlagError(f"{min(left)}: PEFT's format has no place for it; give --merge for the whole model")
    values = {
        "peft_type": "LORA", "base_model_name_or_path": adapter.base, "r": config.rank, "lora_alpha": config.alpha,
        "target_modules": targets, "modules_to_save": sorted(saved) or None, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": not transposed, "use_rslora": config.kind == "rslora", "use_dora": config.kind == "dora",
        "inference_mode": True,
    }  # fmt: skip
    whole = {f"{_PREFIX}{name}": np.ascontiguousarray(x) for name, x in tensors.items()}
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    save_file(whole, folder / TENSORS, metadata={"format": "pt"})


def _check_joined(module: str, modules: tuple[str, ...], adapted: list[str], arrays: Arrays) -> None:
    """Raises FlagError if a matrix of the checkpoint joins layers whose adapters are not one of that matrix."""
    same = all(np.array_equal(arrays[f"{m}/{A}"], arrays[f"{adapted[0]}/{A}"]) for m in adapted)
    if len(adapted) < len(modules) or not same:
        raise FlagError(
            f"{module}: joins {', '.join(modules)}, and PEFT has one A for all; give --merge for the whole model"
        )


def read_adapter(folder: pathlib.Path, description: Description) -> Adapter:
    """Returns the adapter in a folder, of a model that a checkpoint describes.

    Raises:
        FlagError: the adapter needs something that lmjax does not implement.
        DataError: a file cannot be read, or its tensors do not fit the model.
    """
    path = folder / CONFIG
    values = read_json(path)
    for name, known in _EXPECTED.items():
        if values.get(name, known[-1]) not in known:
            raise FlagError(f"{path}: {name}={values[name]!r}: lmjax implements {known[0]!r}")
    try:
        tensors = {name.removeprefix(_PREFIX): x for name, x in load_file(folder / TENSORS).items()}
    except (SafetensorError, OSError) as e:
        raise DataError(f"{folder / TENSORS}: not a whole safetensors file ({e}); copy it again") from e
    found = dict(_arrays(folder / TENSORS, description, tensors))
    chosen = sorted({name.rpartition("/")[0] for name in found if name.endswith(f"/{A}")})
    try:
        config = AdapterConfig(
            kind="dora" if values.get("use_dora") else "rslora" if values.get("use_rslora") else "lora",
            rank=values["r"],
            alpha=values["lora_alpha"],
            targets="|".join(dict.fromkeys(re.sub(rf"{UNROLLED}\d+", _ANY_LAYER, path) for path in chosen)),
            whole=tuple(sorted({p.split("/")[0] for p in found if not p.endswith((A, B, MAGNITUDE))})),
        )
    except (KeyError, ValueError) as e:
        raise DataError(f"{path}: r, lora_alpha or another field is missing or wrong ({str(e).splitlines()[0]})") from e
    return Adapter(config, found, str(values.get("base_model_name_or_path", "")))


def _arrays(path: pathlib.Path, description: Description, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    """Yields our parameters by path; raises DataError if a tensor has no place or another shape."""
    ours, left = shapes(description.config, description.heads), set(tensors)
    for row in description.rows():
        module = description.rename(row.theirs[0]).rpartition(".")[0]
        names = [description.rename(name) for name in row.theirs]
        if all(name in tensors for name in names):
            left -= set(names)
            yield from zip(
                row.ours, row.layout.split([tensors[n] for n in names], [ours[p] for p in row.ours]), strict=True
            )
        for name, (theirs, layout) in _layouts(row).items() if _modules(row) else ():
            if (tensor := tensors.get(f"{module}.{theirs}")) is None:
                continue
            left.discard(f"{module}.{theirs}")
            wanted = _wanted(row, name, ours, tensor, path)
            split = layout.split([tensor], wanted if name != A else wanted[:1])
            parts = split * len(row.ours) if name == A else split
            yield from ((f"{m}/{name}", x) for m, x in zip(_modules(row), parts, strict=True))
    if left:
        raise DataError(f"{path}: tensor {min(left)!r} belongs to no layer of the model; is this its base?")


def _wanted(
    row: Row, name: str, ours: Mapping[str, tuple[int, ...]], tensor: np.ndarray, path: pathlib.Path
) -> list[tuple[int, ...]]:
    """Returns the shapes of our parameters that a tensor holds; raises DataError if it has another size."""
    inputs = 1 if isinstance(row.layout, Same) else row.layout.inputs
    rank = tensor.shape[0] if name == A else tensor.shape[-1]
    found = []
    for shape in (ours[p] for p in row.ours):
        found.append({A: (*shape[:inputs], rank), B: (rank, *shape[inputs:]), MAGNITUDE: shape[inputs:]}[name])
    if sum(int(np.prod(shape)) for shape in (found[:1] if name == A else found)) != tensor.size:
        raise DataError(f"{path}: an adapter of {row.theirs[0]} is {list(tensor.shape)}; is this its base?")
    return found
