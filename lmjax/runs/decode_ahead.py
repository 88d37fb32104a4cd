"""Compiles the step that generates one token, for devices that need not exist."""

from __future__ import annotations

import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.axes import RULES
from lmjax.config import Config
from lmjax.errors import FlagError
from lmjax.inference.generate.decode import extend, row_fields
from lmjax.model.cache import Cache
from lmjax.model.key_value import KeyValue
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.parallel.memory import ONE_DEVICE, held
from lmjax.parallel.mesh import ParallelConfig, make_mesh, on_mesh
from lmjax.parallel.roofline import Load
from lmjax.runs.ahead import load_of
from lmjax.runs.trained import inference_config


class Decode(NamedTuple):
    """A compiled decoding step and what it needs on each device.

    Attributes:
        mesh: the devices that hold one copy of the model.
        rows: texts that are written at the same time.
        length: slots of the cache.
        seconds: how long it took to trace and to compile.
        memory: bytes on one device by what they are for.
        load: what a step computes, moves and sends.
    """

    mesh: jax.sharding.Mesh
    rows: int
    length: int
    seconds: float
    memory: dict[str, int]
    load: Load


def compile_decode(config: Config, heads: tuple[str, ...], rows: int, devices: list[jax.Device]) -> Decode:
    """Returns the compiled step that reads one token of each row and returns logits, in the compute dtype.

    The tensor axis of the config splits the model, as `lmjax generate --tensor` does; along the other axes there would
    be copies of it, which write texts of their own.

    Args:
        config: the config, with the size of the vocabulary.
        heads: of its model.
        rows: texts that are written at the same time.
        devices: the devices, of which the first ones are used.

    Raises:
        FlagError: the family does not generate.
    """
    if not config.model.family.causal:
        raise FlagError(f"--decode={rows}: {config.model.family.label} generates no text token by token; leave it out")
    length, paired = config.task.length, config.model.family.paired
    model = LanguageModel(inference_config(config.model, None), heads)
    mesh = make_mesh(ParallelConfig(tensor=config.parallel.tensor), devices[: config.parallel.tensor])
    params = on_mesh(abstract_params(model.config, heads), mesh)
    memory_length, capacity = (length, config.task.default_target_length()) if paired else (0, length)
    empty = jax.eval_shape(lambda: model.empty_cache(rows, capacity, memory_length=memory_length))
    cache = _placed(empty.replace(filled=jax.ShapeDtypeStruct((), jnp.int32)), mesh)
    column = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=_sharding(mesh))
    fields = jax.eval_shape(lambda x: row_fields(model, x, x), column)
    fields = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=column.sharding) for name, x in fields.items()}
    began = time.perf_counter()
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        compiled = extend.lower(params, fields, cache, model=model).compile()
    analysis = compiled.memory_analysis()
    return Decode(
        mesh,
        rows,
        capacity,
        time.perf_counter() - began,
        {
            "parameters": held(params, ONE_DEVICE),
            "keys and values": held(cache, ONE_DEVICE),
            "temporaries": analysis.temp_size_in_bytes,
        },
        load_of(compiled.as_text(), mesh)[0],
    )


def _sharding(mesh: jax.sharding.Mesh, *names: str | None) -> jax.sharding.NamedSharding:
    return nn.logical_to_mesh_sharding(jax.sharding.PartitionSpec(*names), mesh, RULES)


def _placed(cache: Cache, mesh: jax.sharding.Mesh) -> Cache:
    """Returns the shapes of a cache with their shardings: heads over the tensor axis."""

    def layer(kept: KeyValue) -> KeyValue:
        names = [name for name, n in zip((None, "act_heads"), kept.shape, strict=True) if n > 1]
        place = _sharding(mesh, *names, None, None)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), kept)

    layers = tuple({name: layer(kept) for name, kept in each.items()} for each in cache.layers)
    rest = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(mesh)), cache.replace(layers=())
    )
    return rest.replace(layers=layers)
