"""Prompts that were read, in files: a later prompt that begins like one of them reads only its rest.

A file is safetensors: the arrays of a cache of one row, and the ids, the kind of cache and a fingerprint of the model
in its metadata. It is data alone; nothing of it is executed.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.model.cache import Cache
from lmjax.model.outputs_first import inputs_first
from lmjax.model.parameters import fingerprint, flat
from lmjax.model.rolling import RollingCache

_VERSION = "1"


class PromptFiles(NamedTuple):
    """Where the cache of a prompt is read from, and where it is written to.

    Attributes:
        load: a file that `save` has made; None: the whole prompt is read.
        save: a new file; None: nothing is written.
    """

    load: pathlib.Path | None = None
    save: pathlib.Path | None = None


class Read(NamedTuple):
    """The beginning of a prompt that was read already.

    Attributes:
        count: the number of its first tokens that are in the cache.
        cache: of one row; slots from `count` on are empty.
    """

    count: int
    cache: Cache | RollingCache


def check_files(
    loaded: LoadedModel, config: GenerateConfig, prompts: int, files: PromptFiles | None, *, drafted: bool = False
) -> None:
    """Raises FlagError, before anything is compiled, if the caches of these prompts cannot be kept."""
    if files is None or files == PromptFiles():
        return
    flag = f"--prompt_cache={files.load}" if files.load else f"--save_prompt_cache={files.save}"
    if loaded.config.family.paired or not loaded.config.family.causal or loaded.prompts.bidirectional:
        raise FlagError(f"{flag}: is for decoders that read a prompt from left to right; leave it out")
    if prompts != 1:
        raise FlagError(f"{flag}: holds one prompt, and {prompts} are given; give one --prompt")
    if config.beams is not None or config.lookup or drafted:
        raise FlagError(f"{flag}: is for sampling and greedy decoding; leave out --beams, --lookup and --draft")
    if files.save is not None and files.save.exists():
        raise FlagError(f"--save_prompt_cache={files.save}: exists; choose another")
    if files.load is not None and not files.load.is_file():
        raise FlagError(f"--prompt_cache={files.load}: is no file; make one with --save_prompt_cache")


def save(path: pathlib.Path, loaded: LoadedModel, prompt: Sequence[int], cache: Any, config: GenerateConfig) -> None:
    """Writes the cache of one row that holds a prompt, and nothing else.

    Args:
        path: the new file.
        loaded: the model.
        prompt: the ids of the prompt.
        cache: as the model left it; padding is left out.
        config: by which the cache was made.
    """
    if isinstance(cache, Cache):
        cache = _compact(cache, len(prompt))
    arrays = {name: np.asarray(x, order="C") for name, x in jax.device_get(flat(cache)).items()}
    about = {"prompt": json.dumps([int(i) for i in prompt]), "model": _fingerprint(loaded), "version": _VERSION}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, path, metadata=about | _kind(config))
    except OSError as e:
        raise FlagError(f"--save_prompt_cache={path}: cannot be written ({e.strerror or e}); choose another") from e


def load(path: pathlib.Path, loaded: LoadedModel, prompt: Sequence[int], config: GenerateConfig) -> Read:
    """Returns the beginning of a prompt that a file holds.

    Raises:
        DataError: it is no such file, or a truncated one.
        FlagError: it is of another model or kind of cache, or the prompt does not begin like its prompt.
    """
    try:
        with safe_open(path, "numpy") as file:
            about, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ids = [int(i) for i in json.loads(about["prompt"])]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path}: is no prompt cache, or a damaged one; make it again with --save_prompt_cache") from e
    for name, ours in {"version": _VERSION, "model": _fingerprint(loaded), **_kind(config)}.items():
        if about.get(name) != ours:
            raise FlagError(f"--prompt_cache={path}: its {name} is {about.get(name)}, not {ours}; make it again")
    shared = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), min(len(ids), len(prompt)))
    # After the last token of the prompt the logits are needed, so it is always read.
    count = min(shared, len(prompt) - 1)
    whole = config.window is not None or loaded.config.attention.window is not None
    if not count or (whole and count < len(ids)):
        raise FlagError(f"--prompt_cache={path}: holds {len(ids)} tokens, and the prompt does not begin with them")
    shapes = jax.eval_shape(lambda: _empty(loaded, len(ids), config))
    if {n: (x.shape, x.dtype) for n, x in flat(shapes).items()} != {n: (x.shape, x.dtype) for n, x in arrays.items()}:
        raise DataError(f"{path}: its arrays are not those of this cache; make it again with --save_prompt_cache")
    cache = jax.tree.unflatten(jax.tree.structure(shapes), [jnp.asarray(arrays[name]) for name in flat(shapes)])
    return Read(count, cache.rewind(jnp.int32(count)) if count < len(ids) else cache)


def _kind(config: GenerateConfig) -> dict[str, str]:
    """Returns the settings on which the form of a cache depends."""
    sinks = config.sinks if config.window is not None else None
    return {"cache_dtype": config.cache, "window": str(config.window), "sinks": str(sinks)}


def _fingerprint(loaded: LoadedModel) -> str:
    return fingerprint(jax.device_get(flat(inputs_first(loaded.params))))


def _empty(loaded: LoadedModel, count: int, config: GenerateConfig) -> Cache | RollingCache:
    """Returns a cache in the form in which a prompt of `count` tokens is kept."""
    if config.window is not None:
        return RollingCache.empty(loaded.config, config.sinks, config.window, config.cache)
    return loaded.model.empty_cache(1, count, kind=config.cache).replace(filled=jnp.int32(count))


def _compact(cache: Cache, count: int) -> Cache:
    """Returns the cache of one row without its padding and its empty slots: `count` slots, all filled."""
    start = int(jnp.max(cache.filled)) - count
    assert int(cache.segment_ids[0, start]) == 1, "a prompt is written without gaps"

    def cut(kept: Any) -> Any:
        # A layer with a window holds its last tokens only, each in the slot of its index modulo the number of slots.
        slots = min(kept.slots, count)
        ring = kept.slots < cache.capacity
        index = np.arange(count - slots, count)
        at = np.zeros(slots, np.int32)
        at[index % slots if slots < count else index] = (index + start) % kept.slots if ring else index + start
        return jax.tree.map(lambda x: jnp.take(x, at, axis=-2), kept)

    layers = tuple({name: cut(kept) for name, kept in layer.items()} for layer in cache.layers)
    part = slice(start, start + count)
    positions, segments = cache.positions[:, part], cache.segment_ids[:, part]
    return cache.replace(layers=layers, positions=positions, segment_ids=segments, filled=jnp.int32(count))
