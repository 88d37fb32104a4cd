"""Opens adapters over one base: those of runs, and folders in PEFT's format."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.model import make_model
from lmjax.adapters.several import Several, together
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import CheckpointError, FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.interop.export import choose_family
from lmjax.interop.peft import is_adapter, read_adapter
from lmjax.model.parameters import unflat
from lmjax.model.quantized import quantize_layers
from lmjax.paths import expanded
from lmjax.runs.base import base_of
from lmjax.runs.pretrained import Pretrained, open_pretrained
from lmjax.runs.trained import assemble, inference_config, inference_mesh

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LoadedAdapters:
    """One base on its devices, and adapters that are exchanged without another compilation.

    Attributes:
        loaded: the model; its parameters are those of the base.
        several: the adapters.
    """

    loaded: LoadedModel
    several: Several

    def __getitem__(self, name: str) -> LoadedModel:
        """Returns the model with an adapter; raises FlagError for an unknown name."""
        return dataclasses.replace(self.loaded, params=self.several.one(self.loaded.params, name))

    def by_row(self, names: Sequence[str]) -> LoadedModel:
        """Returns the model for batches of so many rows, each with the adapter that is named; see `Several.by_row`."""
        return dataclasses.replace(self.loaded, params=self.several.by_row(self.loaded.params, names))


def load_adapters(
    place: str | os.PathLike[str],
    adapters: Mapping[str, str | os.PathLike[str]],
    *,
    dtype: str | None = None,
    tensor: int = 1,
    accept_fields: Sequence[str] = (),
) -> LoadedAdapters:
    """Returns a base with adapters, by the names that they are given here.

    Args:
        place: the base, as for `open_pretrained`.
        adapters: the place of each: a workdir of a run with an adapter, or a folder in PEFT's format.
        dtype: of parameters and compute; None: the model's compute dtype.
        tensor: the number of devices that split the model.
        accept_fields: as for `open_pretrained`.

    Raises:
        FlagError: a place holds no adapter, or adapters have no common form.
        CheckpointError: an adapter was trained on another base.
    """
    base = open_pretrained(place, accept_fields=accept_fields)
    sources = {name: adapter_source(base, folder) for name, folder in adapters.items()}
    first = next(iter(sources.values()))
    if odd := [name for name, source in sources.items() if source.heads != first.heads]:
        raise FlagError(f"adapter {odd[0]}: has the heads {sources[odd[0]].heads}, and others have {first.heads}")
    config = inference_config(base.config, dtype)
    mesh = inference_mesh(config, tensor)
    read = {name: _read(base, source, expanded(adapters[name]), mesh) for name, source in sources.items()}
    several = together(read)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(lambda x: jax.device_put(x.astype(config.param_dtype), everywhere), dict(several.adapters))
    params = {part: x for part, x in base.params(config, mesh).items() if part not in several.config.whole}
    if several.config.base_dtype == "int8":
        params = quantize_layers(params)
    tokenizer = load_tokenizer(str(first.folder))
    loaded = assemble(config, first.heads, params, tokenizer, first.prompts(tokenizer), mesh)
    known = {"defaults": first.defaults, "tasks": first.tasks, "length": first.length, "shown": first.shown}
    model = make_model(config, first.heads, several.config)
    return LoadedAdapters(dataclasses.replace(loaded, model=model, **known), several._replace(adapters=placed))


def adapter_source(base: Pretrained, place: str | os.PathLike[str]) -> Pretrained:
    """Returns the model that an adapter belongs to: its run, or for a folder in PEFT's format the base itself.

    Raises:
        FlagError: the place holds no adapter.
        CheckpointError: the adapter was trained on another base.
    """
    folder = expanded(place)
    if is_adapter(folder):
        return base
    source = open_pretrained(place)
    if source.adapted is None:
        raise FlagError(f"--adapter={place}: holds no adapter; give the workdir of a run with one, or PEFT's folder")
    if base_of(base.folder).fingerprint != source.adapted.base.fingerprint:
        raise CheckpointError(
            f"--adapter={place}: was trained on {source.adapted.base.place}, whose parameters are not those of "
            f"{base.folder}; give that one with --model"
        )
    return source


def _read(
    base: Pretrained, source: Pretrained, folder: pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[AdapterConfig, PyTree]:
    """Returns the fields and the parameters of an adapter, unrolled."""
    if source.adapted is not None:
        return source.adapted.config, source.adapted.own(mesh)
    unrolled = base.config.with_fields({"scan_layers": False})
    found = read_adapter(folder, choose_family(unrolled, base.heads, None, base.origin))
    return found.config, unflat(found.arrays)
