"""The generation settings that a model's folder gives, and how they combine with the settings of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Fields of BeamConfig that depend on the number of beams: the model's own are dropped if a call sets another number.
_OF_THE_NUMBER = ("beams", "groups", "diversity", "num_return")
# Fields of GenerateConfig that exclude beam search: a call that sets one turns off the model's own beam search.
_WITHOUT_BEAMS = ("sampling", "stop", "regex", "json_schema", "lookup")


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """Values of GenerateConfig fields that are used where a call sets none.

    Attributes:
        source: the file that they were read from.
        whole: fields of the config itself.
        processors: fields of its processors.
        sampling: fields of its sampling; the filters apply whenever the temperature is above 0.
        draws: whether the model samples by default; otherwise it is greedy.
        beams: fields of its beam search; length penalty and early stopping apply to every beam search.
        searches: whether the model uses beam search by default.
        ignored: settings of the file that have no counterpart here.
    """

    source: str = ""
    whole: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draws: bool = False
    beams: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    searches: bool = False
    ignored: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def merged(given: Mapping[str, Any], defaults: GenerationDefaults, *, drafted: bool = False) -> dict[str, Any]:
    """Returns the fields of a GenerateConfig: those given, completed by the model's own where they are compatible.

    Args:
        given: fields set by the call, nested like the config; a missing field was not set.
        defaults: the model's own.
        drafted: whether a draft model proposes tokens, which excludes beam search.
    """
    result = dict(defaults.whole) | dict(given)
    processors = dict(defaults.processors)
    if "min_new_tokens" in given.get("processors", {}):
        processors.pop("min_length", None)
    if processors := processors | given.get("processors", {}):
        result["processors"] = processors
    asked = given.get("beams")
    other = drafted or any(given.get(name) for name in _WITHOUT_BEAMS if name != "sampling") or "sampling" in given
    if asked is not None or (defaults.searches and "beams" not in given and not other):
        asked = asked or {}
        own = {k: v for k, v in defaults.beams.items() if "beams" not in asked or k not in _OF_THE_NUMBER}
        result["beams"] = own | asked
        if "stop" not in given:
            result.pop("stop", None)
        return result
    sampling = dict(given.get("sampling", {}))
    temperature = sampling.get("temperature", defaults.sampling.get("temperature") if defaults.draws else None)
    if temperature is not None and str(temperature) not in ("0", "0.0"):
        result["sampling"] = dict(defaults.sampling) | {"temperature": temperature} | sampling
    return result
