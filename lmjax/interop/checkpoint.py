"""A Hugging Face checkpoint folder as a model of ours: its config, its heads, its parameters put on a mesh."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import pydantic

from lmjax.errors import DataError, FlagError
from lmjax.interop.families import FAMILIES
from lmjax.interop.fields import Fields
from lmjax.interop.shards import Shards, read_json
from lmjax.interop.table import Family, Row
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import unboxed
from lmjax.model.transformer import layer_paths, unstack_layers
from lmjax.parallel.mesh import on_mesh

PyTree = Any

# Layers from which one that stands for all is traced sooner than all.
_MANY = 5


@dataclasses.dataclass(frozen=True)
class Description:
    """What a config.json says.

    Attributes:
        model_type: the family's name.
        family: its config and table.
        config: of the model.
        heads: that the checkpoint has.
        bare: whether it is of the model without heads.
        values: all that the file holds.
    """

    model_type: str
    family: Family
    config: ModelConfig
    heads: tuple[str, ...]
    bare: bool
    values: Mapping[str, Any]

    def rename(self, tensor: str) -> str:
        """Returns the name of a tensor of the family's table in this checkpoint."""
        return self.family.rename(tensor, bare=self.bare)

    def rows(self) -> list[Row]:
        """Returns the table of this model, layers and experts written out."""
        return self.family.expand(shapes(self.config, self.heads), bare=self.bare)


def describe(path: pathlib.Path, values: Mapping[str, Any], tensors: Collection[str] = ()) -> Description:
    """Returns what the values of a config.json say.

    Args:
        path: of the file, for messages.
        values: what is in it.
        tensors: names of those beside it; some families' files tell by a tensor whether a model has a part.

    Raises:
        FlagError: a family, a class, a field or a value that lmjax does not implement.
    """
    name = values.get("model_type")
    if name not in FAMILIES:
        raise FlagError(f"{path}: model_type={name!r}: lmjax implements {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    named = values.get("architectures") or ["nothing"]
    known = {**dict.fromkeys(family.bare, ()), **family.heads}
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        raise FlagError(f"{path}: architectures={named}: of {name} lmjax implements one of {', '.join(known)}")
    fields = Fields(values, path, tensors)
    heads = known[named[0]]
    labels = fields.take("id2label", {"0": "", "1": ""})
    try:
        config = ModelConfig.model_validate(family.read(fields) | {"num_labels": max(1, len(labels))})
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise FlagError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from e
    fields.finish()
    return Description(name, family, config, heads, named[0] in family.bare, values)


@functools.lru_cache(maxsize=8)
def abstract_params(config: ModelConfig, heads: tuple[str, ...]) -> PyTree:
    """Returns the shapes of the parameters, boxed with their axis names; not to be changed, for they are kept.

    Opening a model asks several times, and tracing all layers takes longer than reading their numbers. So only one
    layer is traced, where all are alike.
    """

    def make(config: ModelConfig) -> PyTree:
        return jax.eval_shape(lambda: init_params(LanguageModel(config, heads), jax.random.key(0)))

    if config.scan_layers or config.share_layers or config.num_layers < _MANY:
        return make(config)
    try:
        scanned = ModelConfig.model_validate(config.model_dump() | {"scan_layers": True})
    except pydantic.ValidationError:
        return make(config)
    return jax.eval_shape(unstack_layers, make(scanned))


def flat(params: PyTree) -> dict[str, Any]:
    """Returns arrays, or shapes, by path; boxed or plain."""
    leaves = jax.tree_util.tree_leaves_with_path(unboxed(params))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(config: ModelConfig, heads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters by path, layers not stacked."""
    unrolled = config.model_copy(update={"scan_layers": False})
    return {path: leaf.shape for path, leaf in flat(abstract_params(unrolled, heads)).items()}


class Checkpoint:
    """A checkpoint folder, all of whose names and shapes have been checked; its numbers are still on disk.

    Attributes:
        description: what its config.json says; parameters are of the dtype of the file.
        shards: the tensors.
        ignored: those of them that are not read: they hold no parameter, or one that the class has no use for.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads config.json and the headers.

        Raises:
            FlagError: something in config.json that lmjax does not implement.
            DataError: a file that cannot be read, or a tensor that is missing, left over, or of another shape.
        """
        path = folder / "config.json"
        values = read_json(path)
        self.shards = Shards(folder)
        description = describe(path, values, self.shards.headers.keys())
        half = any(h.dtype is not None and h.dtype.name == "bfloat16" for h in self.shards.headers.values())
        dtype = "bfloat16" if half else "float32"
        config = description.config.model_copy(update={"param_dtype": dtype})
        self.description = dataclasses.replace(description, config=config)
        self._check_sizes()
        self._shapes = shapes(config, description.heads)
        self._rows = self.description.rows()
        self._row_of = {path: row for row in self._rows for path in row.ours}
        constants = {self.description.rename(n): make for n, make in description.family.constants.items()}
        self._constants = {name: make for name, make in constants.items() if name in self.shards.headers}
        self._copies = self._check_names()

    def _check_sizes(self) -> None:
        """Raises DataError for more layers or experts than the files can hold: tracing those would not end."""
        config, held = self.description.config, len(self.shards.headers)
        for size, what in (
            (max(config.num_layers, config.decoder_layers), "layers"),
            (config.moe.num_experts, "experts"),
        ):
            if size > held:
                raise DataError(
                    f"{self.shards.folder}: config.json says {size} {what}, and there are {held} tensors in all; is it "
                    "the config.json of these weights?"
                )

    def _check_names(self) -> dict[str, str]:
        """Returns the tensors that repeat another, by name; raises DataError for names and shapes that do not fit."""
        folder, headers = self.shards.folder, self.shards.headers
        wanted: dict[str, tuple[int, ...]] = {}
        for row in self._rows:
            wanted |= zip(row.theirs, row.layout.shapes([self._shapes[p] for p in row.ours]), strict=True)
        if missing := sorted(wanted.keys() - headers.keys()):
            raise DataError(
                f"{folder}: tensor {missing[0]!r} is missing"
                f"{f', and {len(missing) - 1} more' if missing[1:] else ''}; copy the checkpoint again"
            )
        family, rename = self.description.family, self.description.rename
        copies = {rename(a): rename(b) for a, b in family.copies.items()}
        copies = {a: b for a, b in copies.items() if a in headers and a not in wanted and b in wanted}
        left = [n for n in headers if n not in wanted and n not in copies and n not in self._constants]
        self.ignored = sorted(n for n in left if any(fnmatch.fnmatch(n, pattern) for pattern in family.ignored))
        left = sorted(set(left) - set(self.ignored))
        if left:
            raise DataError(
                f"{folder}: tensor {left[0]!r}{f' and {len(left) - 1} more' if left[1:] else ''} belong to nothing "
                f"that config.json describes; is it the config.json of these weights?"
            )
        for name, shape in wanted.items() | {(a, wanted[b]) for a, b in copies.items()}:
            if headers[name].shape != shape:
                raise DataError(
                    f"{headers[name].file}: tensor {name!r} is {list(headers[name].shape)}, and by config.json it is "
                    f"{list(shape)}"
                )
            if headers[name].dtype is None:
                raise DataError(f"{headers[name].file}: tensor {name!r} does not hold floating-point numbers")
        return copies

    def params(self, config: ModelConfig, mesh: jax.sharding.Mesh) -> PyTree:
        """Returns the parameters on a mesh, read tensor by tensor.

        Args:
            config: the checkpoint's own, but for what changes no function: scan_layers, param_dtype and such.
            mesh: where they go, split as the rules of `lmjax.axes` say.

        Raises:
            DataError: a number that is not finite, two copies of a tensor that differ, or a tensor that should hold
                the values of a formula and does not.
        """
        for name, make in self._constants.items():
            right, found = make(config), self.shards.read(name)
            # The files may be of half precision.
            if right.shape != found.shape or np.abs(right - found.astype(np.float32)).max() > 5e-3:
                raise DataError(
                    f"{self.shards.folder}: tensor {name!r} {list(found.shape)} does not hold the values that"
                    f" {self.description.model_type} computes for it, {list(right.shape)}; lmjax cannot load others"
                )
        for copy, original in self._copies.items():
            if not np.array_equal(self.shards.read(copy), self.shards.read(original)):
                raise DataError(
                    f"{self.shards.folder}: tensors {copy!r} and {original!r} differ, and config.json says that they "
                    "are one (tie_word_embeddings); correct it"
                )
        placed = on_mesh(abstract_params(config, self.description.heads), mesh)
        arrays = [self._array(path, leaf) for path, leaf in flat(placed).items()]
        return jax.tree.unflatten(jax.tree.structure(placed), arrays)

    def _array(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """Returns one parameter, of which only the slices that this process's devices hold are made."""
        paths = layer_paths(path)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if paths is None:
                # A copy in order, so that what was read is free before the device takes it.
                return np.ascontiguousarray(self._read(path)[index], leaf.dtype)
            layers = range(leaf.shape[0])[index[0]]
            size = tuple(len(range(n)[s]) for n, s in zip(leaf.shape[1:], index[1:], strict=True))
            stacked = np.empty((len(layers), *size), leaf.dtype)
            for place, layer in enumerate(layers):
                stacked[place] = self._read(paths(layer))[index[1:]]
            return stacked

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    def _read(self, path: str) -> np.ndarray:
        row = self._row_of[path]
        tensors = [self.shards.read(name) for name in row.theirs]
        return row.layout.split(tensors, [self._shapes[p] for p in row.ours])[row.ours.index(path)]
