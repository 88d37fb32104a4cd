"""What the commands for trained models have in common: which model the flags name, and how it is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from lmjax.commands.flags import PROCESSES
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.sources import DataConfig
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.model.presets import PRESETS
from lmjax.parallel import distributed
from lmjax.parallel.compilation_cache import cache_compilations
from lmjax.parallel.malloc import keep_freed_memory
from lmjax.phases import phase, tell
from lmjax.runs.adapters import adapter_source, load_adapters
from lmjax.runs.places import local_folder
from lmjax.runs.pretrained import Pretrained, open_pretrained
from lmjax.runs.trained import load_model
from lmjax.runs.untrained import random_model

_WHERE = {"model": "PLACE", "workdir": "DIR", "preset": "NAME"}


def named(
    values: flags.FlagValues, command: str, names: tuple[str, ...] = ("model", "workdir"), several: bool = False
) -> str:
    """Returns which flag names the model; raises FlagError unless exactly one does, or if the workdir does not exist.

    Args:
        values: the flags.
        command: the command's name, for messages.
        names: the flags that may name a model.
        several: whether --workdir may name several, joined by commas.
    """
    given = [name for name in names if values[name].value]
    if len(given) != 1:
        *first, last = (f"--{name}={_WHERE[name]}" for name in names)
        raise FlagError(
            f"lmjax {command} needs one of {', '.join(first)} and {last}; "
            f"{', '.join(f'--{name}' for name in given) or 'none'} given"
        )
    if given[0] == "workdir":
        for place in places(values["workdir"].value) if several else [values["workdir"].value]:
            local_folder(place)
    return given[0]


def places(given: str) -> list[str]:
    """Returns the places in a list joined by commas; a folder whose name has a comma is one place."""
    return [given] if pathlib.Path(given).expanduser().is_dir() else [place for place in given.split(",") if place]


def prepare() -> None:
    """Sets up malloc and the cache of compiled programs; must be called before the first array is made."""
    keep_freed_memory()
    cache_compilations(DataConfig().cache_path)


def in_processes(main: Callable[[flags.FlagValues], Any]) -> Callable[[flags.FlagValues], Any]:
    """Returns a command that runs in the processes of its flags, or of a cluster; only the first one prints."""

    @functools.wraps(main)
    def start(values: flags.FlagValues) -> Any:
        if not distributed.initialize(*(values[name].value for name in PROCESSES)):
            return main(values)
        with contextlib.ExitStack() as stack:
            if jax.process_index():
                tell(False)
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            stack.enter_context(distributed.together())
            return main(values)

    return start


def described(values: flags.FlagValues, place: str) -> Pretrained:
    """Returns what is known of a model before its parameters are read: its config, its task and its heads."""
    found = open_pretrained(place, values["step"].value, values["accept_fields"].value)
    return adapter_source(found, values["adapter"].value) if _is_adapted(values, place) else found


def _is_adapted(values: flags.FlagValues, place: str) -> bool:
    """Returns whether --adapter changes the model in a place; raises FlagError if there is no --model to change."""
    given = values["adapter"].value
    if given and not values["model"].value:
        raise FlagError(f"--adapter={given}: changes the model that --model=PLACE names; give that too")
    return bool(given) and place == values["model"].value


def opened(values: flags.FlagValues, place: str, *, several_rows: bool = False) -> LoadedModel:
    """Returns the model in a folder or on the hub, loaded with the flags of `flags.define_model`.

    Args:
        values: the flags.
        place: of the model.
        several_rows: as for `load_model`; not read for a model with an adapter.
    """
    names = ("step", "dtype", "tensor", "sequence", "accept_fields")
    opening = {name: values[name].value for name in names if name in values}
    with phase(f"loading {place}"):
        if _is_adapted(values, place):
            if opening.pop("step") is not None:
                raise FlagError(f"--step={values['step'].value}: with --adapter the newest checkpoint is read")
            if opening.pop("sequence", 1) > 1:
                raise FlagError(f"--sequence={values['sequence'].value}: is not for --adapter; merge it into the model")
            loaded = load_adapters(place, {"given": values["adapter"].value}, **opening)["given"]
        else:
            loaded = load_model(place, **opening, several_rows=several_rows)
    return dataclasses.replace(loaded, together=jax.process_count() > 1)


def random_of(values: flags.FlagValues, preset: str, seed: int) -> LoadedModel:
    """Returns a preset with random weights and the tokenizer of --tokenizer."""
    dtype, tensor = values["dtype"].value, values["tensor"].value
    print(f"{preset}: the weights are random (--seed={seed}), and so are its texts", file=sys.stderr)
    with phase(f"making {preset}"):
        tokenizer = load_tokenizer(values["tokenizer"].value)
        return random_model(PRESETS[preset], tokenizer, seed, dtype=dtype, tensor=tensor)


def draft_of(values: flags.FlagValues) -> LoadedModel | None:
    """Returns the draft model of speculative decoding, or None without --draft."""
    if not values["draft"].value:
        return None
    return load_model(values["draft"].value, dtype=values["dtype"].value, tensor=values["tensor"].value)
