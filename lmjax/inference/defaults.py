"""How a published model says that it writes, and what is left of that where a caller asks for something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Of beam search, what does not go with another number of beams than the model's own.
_OF_THE_NUMBER = ("beams", "groups", "diversity", "num_return")
# Fields of GenerateConfig that beam search goes without: who gives one wants no beams.
_WITHOUT_BEAMS = ("sampling", "stop", "regex", "json_schema", "lookup")


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
    """Fields of a GenerateConfig that hold where nothing else was asked for.

    Attributes:
        source: the file that says them.
        whole: of the config itself.
        processors: of its processors.
        sampling: of its sampling; filters count wherever there is a temperature.
        draws: whether the model draws unless asked otherwise, or takes the likeliest.
        beams: of its beam search; the length penalty and the rule of stopping count in every beam search.
        searches: whether the model searches unless asked otherwise.
        ignored: what the file says that has no counterpart here.
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
    """Returns the fields of a GenerateConfig: those given, and of the model's own those that go with them.

    Args:
        given: fields, nested as the config is; what is not in it was not asked for.
        defaults: the model's own.
        drafted: whether a draft model guesses, which beam search goes without.
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
