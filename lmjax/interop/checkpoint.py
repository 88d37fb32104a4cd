"""Reads a Hugging Face checkpoint folder: the model's config, its heads, and its parameters on a mesh."""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pydantic

from lmjax.errors import DataError, FlagError
from lmjax.interop.families import FAMILIES
from lmjax.interop.fields import Fields
from lmjax.interop.immaterial import CODE_FIELDS
from lmjax.interop.shards import Shards, read_json
from lmjax.interop.table import Family, Row
from lmjax.model.config import ModelConfig
from lmjax.model.heads import BARE, HEADS
from lmjax.model.language_model import abstract_params
from lmjax.model.parameter_paths import layer_paths
from lmjax.model.parameters import flat
from lmjax.parallel.mesh import on_mesh

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Description:
    """The model that a config.json describes.

    Attributes:
        model_type: the family's name.
        family: its config and table.
        config: of the model.
        heads: of the checkpoint.
        bare: whether the class is the model without heads.
        values: all fields of the file except the accepted ones; `architectures` has the class's current name.
        accepted: fields that passed only because the user listed them.
    """

    model_type: str
    family: Family
    config: ModelConfig
    heads: tuple[str, ...]
    bare: bool
    values: Mapping[str, Any]
    accepted: frozenset[str] = frozenset()

    def rename(self, tensor: str) -> str:
        """Returns the name in checkpoints of this class for a tensor of the family's table."""
        return self.family.rename(tensor, bare=self.bare)

    def rows(self) -> list[Row]:
        """Returns the table of this model, with a row for each layer and a tensor for each expert."""
        return self.family.expand(shapes(self.config, self.heads))


def family_of(path: pathlib.Path, values: Mapping[str, Any]) -> tuple[str, Family]:
    """Returns the name of the family that a config.json names, and the family; raises FlagError if it is unknown."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        remedy = "; write there what these weights are" if name is None else ""
        raise FlagError(f"{path}: model_type={name!r}: lmjax implements {', '.join(sorted(FAMILIES))}{remedy}")
    return name, FAMILIES[name]


def describe(
    path: pathlib.Path,
    values: Mapping[str, Any],
    tensors: Collection[str] = (),
    accept: Collection[str] = (),
    *,
    lenient: bool = False,
) -> Description:
    """Returns the model that the values of a config.json describe.

    Args:
        path: of the file, for messages.
        values: of the file.
        tensors: names of the checkpoint's tensors; in some families only a tensor shows whether a model has a part.
        accept: unknown fields that pass, because the user states that they change no number of the model.
        lenient: whether a value that lmjax does not implement is read as one that it implements.

    Raises:
        FlagError: a family, a class, a field or a value that lmjax does not implement.
    """
    name, family = family_of(path, values)
    chosen = _class(path, values.get("architectures"), name, family)
    values = dict(values) | {"architectures": [chosen]}
    fields = Fields(values, path, tensors, accept, lenient)
    labels = fields.take("id2label", {"0": "", "1": ""})
    try:
        config = ModelConfig.model_validate(family.read(fields) | {"head.labels": max(1, len(labels))})
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise FlagError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from e
    fields.finish()
    bare = chosen in family.bare
    heads = family.heads.get(chosen, ())
    if bare and tensors:
        # Some checkpoints lack the pooler that their class has.
        heads = tuple(head for head in heads if family.has_head(head, tensors))
    if bare and not config.family.vocabulary_heads and not config.head.tied:
        heads = (BARE,)
    # An export must not write accepted fields, which are not implemented here, or fields that name remote code.
    values = {k: v for k, v in values.items() if k not in fields.accepted | CODE_FIELDS}
    return Description(name, family, config, heads, bare, values, frozenset(fields.accepted))


def _class(path: pathlib.Path, named: Any, model_type: str, family: Family) -> str:
    """Returns the current name of the class that `architectures` names; raises FlagError if it is unknown."""
    known = {name.lower(): name for name in (*family.heads, *family.bare)}
    known |= {old.lower(): new for old, new in family.aliases.items()}
    if not isinstance(named, list) or len(named) != 1 or str(named[0]).lower() not in known:
        raise FlagError(
            f"{path}: architectures={named}: of {model_type} lmjax implements one of "
            f"{', '.join(dict.fromkeys((*family.bare, *family.heads)))}"
        )
    return known[str(named[0]).lower()]


def _described_by_tensors(
    path: pathlib.Path, values: Mapping[str, Any], tensors: Collection[str], accept: Collection[str]
) -> Description:
    """Returns the model of a config.json without a class: that of the class with most tensors, none of them missing.

    Raises:
        FlagError: there is no such class, or several fine-tuned heads fit the same tensors.
    """
    model_type, family = family_of(path, values)
    found: dict[str, tuple[int, Description]] = {}
    for name in dict.fromkeys((*family.heads, *family.bare)):
        description = describe(path, values | {"architectures": [name]}, tensors, accept)
        wanted = {tensor for row in description.rows() for tensor in row.theirs}
        if wanted <= set(tensors):
            found[name] = (len(wanted), description)
    labels = [name for name, (_, each) in found.items() if any(HEADS[h].fine_tuned for h in each.heads)]
    if not found or len(labels) > 1:
        choices = labels or dict.fromkeys((*family.heads, *family.bare))
        raise FlagError(
            f'{path}: names no class, and the tensors do not tell it; add "architectures": [NAME], of {model_type} '
            f"one of {', '.join(choices)}"
        )
    return max(found.values(), key=lambda each: each[0])[1]


def shapes(config: ModelConfig, heads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters by path, with unstacked layers."""
    unrolled = config.model_copy(update={"scan_layers": False})
    return {path: leaf.shape for path, leaf in flat(abstract_params(unrolled, heads)).items()}


class Checkpoint:
    """A checkpoint folder whose names and shapes have all been checked; its weights are still on disk.

    Attributes:
        description: the model that config.json describes, with param_dtype from the tensors.
        shards: the tensors.
        ignored: names of tensors that are not read: they hold no parameter, or one that the class does not use.
    """

    def __init__(self, folder: pathlib.Path, accept: Collection[str] = ()):
        """Reads config.json and the headers.

        Args:
            folder: of the checkpoint.
            accept: unknown fields of config.json that pass, because the user states that they change no number.

        Raises:
            FlagError: config.json has something that lmjax does not implement, or `accept` a field that needs no
                acceptance.
            DataError: a file cannot be read, or a tensor is missing, unexpected, or of another shape.
        """
        path = folder / "config.json"
        values = read_json(path)
        self.shards = Shards(folder)
        family = family_of(path, values)[1]
        # From here on, tensors have the names of the table, whichever class wrote the file.
        self.shards.rename(family.names(self.shards.headers))
        tensors = self.shards.headers.keys()
        make = describe if values.get("architectures") else _described_by_tensors
        description = make(path, values, tensors, accept)
        if surplus := sorted(set(accept) - description.accepted):
            raise FlagError(f"--accept_fields={surplus[0]}: lmjax does not refuse this field of {path}; leave it out")
        half = any(h.dtype is not None and h.dtype.name == "bfloat16" for h in self.shards.headers.values())
        dtype = "bfloat16" if half else "float32"
        config = description.config.model_copy(update={"param_dtype": dtype})
        self.description = dataclasses.replace(description, config=config)
        self._check_sizes()
        self._shapes = shapes(config, description.heads)
        self._rows = self.description.rows()
        self._row_of = {path: row for row in self._rows for path in row.ours}
        self._constants = {n: make for n, make in family.constants.items() if n in tensors}
        self._copies = self._check_names()

    def _check_sizes(self) -> None:
        """Raises DataError if there are more layers or experts than tensors: tracing such a model might never end."""
        config, held = self.description.config, len(self.shards.headers)
        for size, what in (
            (max(config.num_layers, config.side_layers(True)), "layers"),
            (config.moe.num_experts, "experts"),
        ):
            if size > held:
                raise DataError(
                    f"{self.shards.folder}: config.json says {size} {what}, but there are only {held} tensors; is it "
                    "the config.json of these weights?"
                )

    def _check_names(self) -> dict[str, str]:
        """Returns tensors that copy another one, as {copy: original}; raises DataError for wrong names or shapes."""
        folder, headers = self.shards.folder, self.shards.headers
        wanted: dict[str, tuple[int, ...]] = {}
        for row in self._rows:
            wanted |= zip(row.theirs, row.layout.shapes([self._shapes[p] for p in row.ours]), strict=True)
        family, tied = self.description.family, self.description.config.head.tied
        copies = {a: b for a, b in family.copies.items() if a in headers and a not in wanted and b in wanted}
        # An untied output head in a checkpoint of the bare model is ignored, not compared with the embedding table.
        copies = {a: b for a, b in copies.items() if tied or not family.of_a_head(a)}
        left = [n for n in headers if n not in wanted and n not in copies and n not in self._constants]
        self.ignored = sorted(
            n for n in left if family.of_a_head(n) or any(fnmatch.fnmatch(n, pattern) for pattern in family.ignored)
        )
        left = sorted(set(left) - set(self.ignored))
        if missing := sorted(wanted.keys() - headers.keys()):
            raise self._missing(missing, left)
        if left:
            raise DataError(
                f"{folder}: tensor {left[0]!r}{f' and {len(left) - 1} more' if left[1:] else ''}: no part of the model "
                f"in config.json has this name; is it the config.json of these weights?"
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

    def _missing(self, missing: Sequence[str], left: Sequence[str]) -> DataError:
        """Returns the error about missing tensors; `left`: unexpected tensors, which may explain it."""
        described, family = self.description, self.description.family
        named = described.values["architectures"][0]
        more = f", and {len(missing) - 1} more" if missing[1:] else ""
        if all(family.of_a_head(n) for n in missing) and family.bare and not described.bare:
            remedy = f'for the model without it, write "architectures": ["{family.bare[0]}"] in config.json'
            what = f"these are weights without the head of a {named}"
        else:
            what = f"config.json describes a {named} of {described.config.num_layers} layers"
            remedy = f"it has no {left[0]!r}; is it" if left else "is it"
            remedy += " the config.json of these weights?"
        return DataError(f"{self.shards.folder}: tensor {missing[0]!r} is missing{more}: {what}; {remedy}")

    def params(self, config: ModelConfig, mesh: jax.sharding.Mesh) -> PyTree:
        """Returns the parameters on a mesh, read tensor by tensor.

        Args:
            config: the checkpoint's own; only fields that do not change the function may differ (scan_layers,
                param_dtype and the like).
            mesh: the devices; parameters are sharded by the rules of `lmjax.axes`.

        Raises:
            DataError: a number is not finite, two copies of a tensor differ, or a tensor does not hold the values of
                its formula.
        """
        for name, make in self._constants.items():
            right, found = make(config), self.shards.read(name)
            # The tolerance allows for files in half precision.
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
        """Returns one parameter; only the slices on this process's devices are created."""
        paths = layer_paths(path)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if paths is None:
                # A contiguous copy, so that the tensor read from disk is freed before the transfer to the device.
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
