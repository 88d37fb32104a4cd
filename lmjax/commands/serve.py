"""`lmjax serve`: answers requests over HTTP with trained models."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from absl import flags
from pydantic import ValidationError

from lmjax.adapters.several import Several
from lmjax.commands.models import prepare
from lmjax.commands.serve_flags import FIELDS
from lmjax.errors import FlagError
from lmjax.paths import expanded
from lmjax.phases import phase
from lmjax.runs.adapters import load_adapters
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.trained import load_model
from lmjax.serving.config import EngineConfig
from lmjax.serving.engine import Engine

_NEEDED = ("starlette", "uvicorn", "prometheus_client")


def main(values: flags.FlagValues) -> None:
    """Serves until it is told to end."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise FlagError(f"{missing[0]} is not installed: pip install 'lmjax[serve]'")
    from lmjax.serving.app import Limits, make_app
    from lmjax.serving.server import checked_token, listen, run

    if not values["model"].value:
        raise FlagError("lmjax serve needs --model=PLACE; it may be given several times")
    models = named_places("model", values["model"].value)
    adapters = named_places("adapter", values["adapter"].value)
    if adapters and len(models) > 1:
        raise FlagError(f"--adapter={next(iter(adapters))}: is for a single --model, and there are {len(models)}")
    if both := models.keys() & adapters.keys():
        raise FlagError(f"--adapter={min(both)}: --model has this name too; give another one with NAME=PLACE")
    config = configure(values)
    host, port = values["host"].value, values["port"].value
    token = checked_token(host, values["token"].value)
    for place in models.values():
        open_pretrained(place, None, values["accept_fields"].value)
    with listen(host, port) as listening:
        prepare()
        served = {}
        for name, place in models.items():
            served |= opened(name, place, adapters, config, values)
        engines = [each.engine for each in served.values() if not each.parent]
        limits = Limits(token, values["max_body"].value * 2**20)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}"
        run(make_app(served, limits), listening, engines, drain=values["drain"].value, url=url)


def named_places(flag: str, given: Sequence[str]) -> dict[str, str]:
    """Returns the places of a flag by name: the one before "=", or else the last part of the place.

    Raises:
        FlagError: a name is given twice, or an adapter has none.
    """
    found: dict[str, str] = {}
    for spec in given:
        name, equals, place = spec.partition("=")
        if not equals or expanded(spec).exists():
            if flag == "adapter":
                raise FlagError(f"--adapter={spec}: give NAME=PLACE; requests ask for it by NAME")
            name, place = pathlib.PurePath(spec).name or spec, spec
        if not name or not place:
            raise FlagError(f"--{flag}={spec}: give NAME=PLACE")
        if name in found:
            raise FlagError(f"--{flag}={spec}: the name {name} is given twice; give another one with NAME=PLACE")
        found[name] = place
    return found


def configure(values: flags.FlagValues) -> EngineConfig:
    """Returns the sizes that the flags give; raises FlagError for a value that cannot be used."""
    given = {path: values[name].value for name, path in FIELDS.items() if values[name].value is not None}
    try:
        return EngineConfig.model_validate(given)
    except ValidationError as e:
        first = e.errors()[0]
        flag = next(name for name, path in FIELDS.items() if path == first["loc"][0])
        message = first["msg"]
        raise FlagError(f"--{flag}={first['input']}: {message[0].lower()}{message[1:]}") from e


def with_base(several: Several, name: str) -> Several:
    """Returns adapters with one more before them that changes nothing, so that rows with it have the base.

    There is none among adapters whose zeros change the model; then only those are served.
    """
    config = several.config
    if config.kind not in ("lora", "rslora") or config.whole:
        return several
    none = jax.tree.map(jnp.zeros_like, next(iter(several.adapters.values())))
    return several._replace(adapters={name: none, **several.adapters})


def opened(name: str, place: str, adapters: Mapping[str, str], config: EngineConfig, values: flags.FlagValues) -> dict:
    """Returns a model and its adapters by name, with an engine that has started."""
    from lmjax.serving.served import Served

    opening = {flag: values[flag].value for flag in ("dtype", "tensor", "accept_fields")}
    with phase(f"loading {place}"):
        if not adapters:
            loaded, several, order = load_model(place, **opening, several_rows=config.rows > 1), None, [name]
        else:
            found = load_adapters(place, adapters, **opening)
            loaded, several = found.loaded, found.several
            several = with_base(several, name)
            order = list(several.adapters)
    with phase("compiling"):
        engine = Engine(loaded, config, several)
        engine.start()
    found = {}
    for i, each in enumerate(order):
        own = loaded
        if several is not None:
            own = dataclasses.replace(loaded, params=several.one(loaded.params, each))
        parent = "" if each == order[0] else order[0]
        found[each] = Served(each, engine, own, i, parent)
    return found
