"""The files of texts that methods of `lmjax explain` read, and the settings of these methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from lmjax.analysis.case import Push
from lmjax.analysis.inside import cut_rows
from lmjax.analysis.studies import Study
from lmjax.commands.steering import direction_of
from lmjax.commands.texts import Labelled, read_labelled, read_texts
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase
from lmjax.runs.trained import load_model

# The files that a method cannot do without, and the flags that only some methods read.
_NEEDS = {
    "probe": ("labels",),
    "cka": ("data",),
    "features": ("data",),
    "tuned_lens": ("data",),
    "steering": ("towards", "away"),
}
_OF = {
    "data": ("cka", "features", "tuned_lens"),
    "labels": ("probe",),
    "other": ("cka",),
    "towards": ("steering",),
    "away": ("steering",),
    "layer": ("features", "steering"),
    "train_steps": ("features", "tuned_lens"),
}
# Steps of training, unless --train_steps says another number.
_STEPS = {"features": 2000, "tuned_lens": 250}


class Given(NamedTuple):
    """What was read from the files of texts."""

    texts: list[str]
    labelled: Labelled
    sides: tuple[list[str], list[str]]
    strengths: tuple[float, ...]


def read_given(values: flags.FlagValues, methods: Sequence[str]) -> Given:
    """Returns what the files hold that the flags name.

    Raises:
        FlagError: a method lacks a file, or a file or a number is given for no method.
        DataError: a file cannot be read.
    """
    for method in methods:
        for flag in _NEEDS.get(method, ()):
            if not values[flag].value:
                what = "with a text and a label in each record" if flag == "labels" else "texts, one in each line"
                raise FlagError(f"--method={method} needs --{flag}=FILE, {what}")
    for flag, of in _OF.items():
        if values[flag].value is not None and not set(of) & set(methods):
            raise FlagError(f"--{flag}={values[flag].value}: is for --method={' or '.join(of)}; give that, or neither")
    name, labelled = values["text_field"].value, Labelled([], [], None)
    if spec := values["labels"].value:
        labelled = read_labelled(spec, name, values["column_names"].value)
    texts, *sides = (read_texts(values[flag].value, flag, name) for flag in ("data", "towards", "away"))
    return Given(texts, labelled, tuple(sides), _strengths(values["strengths"].value))


def _strengths(given: Sequence[str]) -> tuple[float, ...]:
    try:
        found = tuple(map(float, given))
    except ValueError as e:
        raise FlagError(f"--strengths={','.join(given)}: give numbers, as --strengths=0,1,2") from e
    if not found or not all(map(math.isfinite, found)):
        raise FlagError(f"--strengths={','.join(given)}: give at least one finite number, as --strengths=0,1,2")
    return found


def study_of(values: flags.FlagValues, given: Given, loaded: LoadedModel) -> Study:
    """Returns what the methods of many texts look at."""
    other = None
    if place := values["other"].value:
        with phase(f"loading {place}"):
            other = load_model(place, dtype=values["dtype"].value, tensor=values["tensor"].value)
    return Study(
        loaded,
        given.texts,
        given.labelled.labels,
        given.labelled.texts,
        given.labelled.groups,
        values["tokens"].value or "mean",
        values["seeds"].value,
        other,
        layer_of(values, loaded),
        values["features"].value,
        values["active"].value,
        _steps(values, "features"),
        values["seed"].value,
    )


def case_of_texts(values: flags.FlagValues, given: Given, loaded: LoadedModel, methods: Sequence[str]) -> dict:
    """Returns the fields of a `Case` that come from the files of texts."""
    found: dict = {}
    if "tuned_lens" in methods:
        found = {"texts": cut_rows(loaded, given.texts), "steps": _steps(values, "tuned_lens")}
    if "steering" in methods:
        name, vector = direction_of(loaded, given.sides, layer_of(values, loaded), values["tokens"].value or "last")
        writes = loaded.config.family.causal and loaded.model.has_vocabulary and not loaded.has_task
        prompt = values["text"].value if writes and values["compare"].value is None else ""
        found["push"] = Push(name, vector, given.strengths, prompt, values["max_new_tokens"].value or 24)
    return found


def layer_of(values: flags.FlagValues, loaded: LoadedModel) -> int:
    """Returns the number of --layer, or of the one in the middle; raises FlagError if there is no such layer."""
    family, given = loaded.config.family, values["layer"].value
    count = loaded.config.side_layers(family.causal and not family.paired)
    if given is not None and given >= count:
        raise FlagError(f"--layer={given}: the model has {count} layers, from 0 to {count - 1}")
    return (count - 1) // 2 if given is None else given


def _steps(values: flags.FlagValues, method: str) -> int:
    return values["train_steps"].value or _STEPS[method]
