"""The fields of a checkpoint's config.json. Each one is read, known to be immaterial, or refused: none is skipped."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from lmjax.errors import FlagError
from lmjax.interop.immaterial import IMMATERIAL

QUANTISATION = ("quantization_config", "quantization")
_REQUIRED = object()
# Upper bounds of integers, so that a malicious file cannot cause endless loops or huge products.
_MOST_LAYERS, _LARGEST = 10_000, 2**31 - 1
_LARGEST_NUMBER = float(np.finfo(np.float32).max)


class Fields:
    """The values of a config.json, which records the fields that were read.

    Attributes:
        path: of the file, for messages.
        tensors: names of the checkpoint's tensors, for facts that no field contains.
        accepted: accepted fields that would have been refused; complete once all fields are read.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: pathlib.Path,
        tensors: Collection[str] = (),
        accept: Collection[str] = (),
        lenient: bool = False,
    ):
        """Stores the values of a file.

        Args:
            values: of the file.
            path: of the file.
            tensors: names of the checkpoint's tensors.
            accept: fields that pass although lmjax does not know their meaning.
            lenient: whether a value that lmjax does not implement is read as one that it implements, for comparison.
        """
        self._values, self.path, self.tensors = dict(values), path, tensors
        self._accept, self.accepted = accept, set[str]()
        self._read: set[str] = set()
        self._lenient, self._within = lenient, ""

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a value, or `default` if it is absent or null; transformers leaves out values equal to its default.

        Raises:
            FlagError: the value is absent and there is no default, or its type is not that of the default.
        """
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise self.error(name, "is missing, and there is no default")
            return default
        numbers = (int, float)
        kind = numbers if isinstance(default, numbers) and not isinstance(default, bool) else type(default)
        if default not in (None, _REQUIRED) and not isinstance(value, kind):
            raise self.error(name, f"must have the type of {default!r}")
        return value

    def integer(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a positive whole number, or the default."""
        value = self.take(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
            if self._lenient and isinstance(default, int):
                return default
            raise self.error(name, "must be a positive whole number")
        if value is not default and value > (_MOST_LAYERS if "layer" in name else _LARGEST):
            raise self.error(name, "is larger than any model's")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a number as a float, or the default."""
        value = self.take(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self.error(name, "must be a number")
        if value is not None and not abs(value) <= _LARGEST_NUMBER:
            raise self.error(name, "must be a finite number")
        return value if value is None else float(value)

    def agree(self, name: str, elsewhere: Any) -> None:
        """Raises FlagError if a field contradicts another field of the file."""
        if name in self and self.take(name) != elsewhere:
            raise self.error(name, f"another field of the file says {elsewhere!r}; remove the one that is wrong")

    def is_null(self, name: str) -> bool:
        """Returns whether the file has the field with the value null, as opposed to not having the field."""
        return name in self._values and self._values[name] is None

    def choose(self, name: str, choices: Mapping[Any, Any], default: Any = _REQUIRED) -> Any:
        """Returns the choice for a value; raises FlagError for a value that lmjax does not implement."""
        value = self.take(name, default)
        try:
            return choices[value]
        except (KeyError, TypeError) as e:
            if self._lenient:
                return choices.get(default, next(iter(choices.values())))
            known = ", ".join(map(repr, choices))
            raise self.error(name, f"lmjax implements {known}") from e

    def expect(self, **values: Any) -> None:
        """Raises FlagError unless each of these fields is absent, has this value or is accepted.

        lmjax implements only this value, also if another one is accepted.
        """
        for name, value in values.items():
            found = self.take(name, None)
            if found is None or found == value or self._lenient:
                continue
            full = self._within + name
            if full not in self._accept:
                raise self.error(
                    name, f"lmjax implements only {value!r}; if this changes no number, --accept_fields={full}"
                )
            self.accepted.add(full)

    def skip(self, *names: str) -> None:
        """Marks fields that this family's weights do not depend on."""
        self._read.update(names)

    def group(self, name: str) -> Fields | None:
        """Returns the fields of a nested object, or None; the caller must call `finish` on them."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        inner = Fields(value, pathlib.Path(f"{self.path}: {name}"), accept=self._accept, lenient=self._lenient)
        inner._within, inner.accepted = f"{self._within}{name}.", self.accepted
        return inner

    def finish(self) -> None:
        """Raises FlagError if a field was not read, is not known to be immaterial and is not accepted."""
        left = {n for n, v in self._values.items() if n not in self._read | IMMATERIAL and v is not None}
        if names := sorted(left.intersection(QUANTISATION)):
            raise self.error(names[0], "lmjax reads no quantised weights; take the checkpoint before quantisation")
        full = {self._within + name: name for name in left}
        self.accepted |= full.keys() & set(self._accept)
        if (left := sorted(full.keys() - self.accepted)) and not self._lenient:
            others = f", nor {', '.join(left[1:])}" if left[1:] else ""
            raise self.error(
                full[left[0]],
                f"lmjax does not know this field of this family{others}; if they change no number of the model, "
                f"--accept_fields={','.join(left)}",
            )

    def error(self, name: str, problem: str) -> FlagError:
        """Returns the error about one field."""
        shown = f"={self._values[name]!r}" if name in self._values else ""
        return FlagError(f"{self.path}: {name}{shown[:200]}: {problem}")


ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_new",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_new": "geglu_new", "relu": "reglu"}
GATED |= {"gelu_pytorch_tanh": "geglu_new"}


def rope_fields(
    fields: Fields,
    theta: float = 10_000.0,
    fraction: float | None = None,
    length: int | None = None,
    original_length: int | None = None,
) -> dict[str, Any]:
    """Returns the fields of a RopeConfig, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

    Args:
        fields: of the model.
        theta: the default.
        fraction: the default fraction of a head that rotates; None: in this family whole heads rotate.
        length: the default length of rows; None: the file must have it.
        original_length: length of rows before scaling, where the family has it outside of these objects.
    """
    base = fields.number("rope_theta", theta)
    # Files rewritten by transformers 5 may have both.
    groups = [group for name in ("rope_scaling", "rope_parameters") if (group := fields.group(name)) is not None]
    if not groups:
        return {"theta": base, "fraction": 1.0 if fraction is None else fraction}
    length = fields.integer("max_position_embeddings", *([] if length is None else [length]))
    found, *others = (rope_scaling(group, base, length, fraction, original_length) for group in groups)
    if others not in ([], [found]):
        raise fields.error("rope_scaling", "is not what rope_parameters says; remove the one that is wrong")
    fields.agree("rope_theta", found["theta"])
    if fraction is not None:
        fields.agree("partial_rotary_factor", found["fraction"])
    return found


def rope_scaling(
    scaling: Fields, theta: float, length: int, fraction: float | None = None, original_length: int | None = None
) -> dict[str, Any]:
    """Returns the fields of a RopeConfig from one object of rotary parameters.

    Args:
        scaling: the object; all of its fields are read.
        theta: the default.
        length: max_position_embeddings.
        fraction: as for `rope_fields`.
        original_length: as for `rope_fields`.
    """
    kinds = {name: name for name in ("linear", "dynamic", "yarn", "longrope", "llama3")} | {"default": "none"}
    kinds |= {"su": "longrope"} if "long_factor" in scaling else {}
    # Before transformers 4.43 the field was called `type`.
    kind = scaling.choose("rope_type" if "rope_type" in scaling else "type", kinds, "default")
    if "type" in scaling:
        scaling.agree("rope_type", scaling.take("type"))
    scaling.skip("type", "rope_type")
    if fraction is None:
        scaling.expect(partial_rotary_factor=1.0)
    values: dict[str, Any] = {
        "theta": scaling.number("rope_theta", theta),
        "fraction": 1.0 if fraction is None else scaling.number("partial_rotary_factor", fraction),
        "scaling": kind,
    }
    if kind == "none":
        scaling.skip("factor")
    if kind in ("yarn", "longrope", "llama3"):
        original = scaling.integer("original_max_position_embeddings", None)
        values["original_length"] = original if original_length is None else original_length
    elif kind == "dynamic":
        # In transformers, dynamic scaling always starts from max_position_embeddings.
        scaling.expect(original_max_position_embeddings=length)
    else:
        scaling.skip("original_max_position_embeddings")
    if kind in ("yarn", "longrope"):
        usual = length / (values["original_length"] or length)
        values["factor"] = max(1.0, scaling.number("factor", usual))
        values["attention_factor"] = scaling.number("attention_factor", None)
    elif kind != "none":
        values["factor"] = scaling.number("factor")
    if kind == "longrope":
        values["short_factors"], values["long_factors"] = (
            _factors(scaling, name) for name in ("short_factor", "long_factor")
        )
    if kind == "llama3":
        values["low_frequency"] = scaling.number("low_freq_factor")
        values["high_frequency"] = scaling.number("high_freq_factor")
    if kind == "yarn":
        values["beta_fast"] = scaling.number("beta_fast", 32.0)
        values["beta_slow"] = scaling.number("beta_slow", 1.0)
        values["truncate"] = scaling.take("truncate", True)
        mscale, everywhere = scaling.number("mscale", None), scaling.number("mscale_all_dim", None)
        if mscale and everywhere and values["attention_factor"] is None:
            # As DeepSeek: of the two, one is on the scores and one in the rotations.
            growth = 0.1 * math.log(values["factor"])
            values["attention_factor"] = (mscale * growth + 1) / (everywhere * growth + 1)
    scaling.finish()
    return values


def _factors(scaling: Fields, name: str) -> tuple[float, ...]:
    """Returns the divisors of frequencies of longrope; raises FlagError if they are no list of numbers."""
    values = scaling.take(name)
    if not isinstance(values, list) or not all(isinstance(x, int | float) and 0 < x <= _LARGEST_NUMBER for x in values):
        raise scaling.error(name, "must be a list of numbers above 0")
    return tuple(map(float, values))


def rope_json(rope: Any, fraction: bool = False) -> dict[str, Any]:
    """Returns `rope_theta`, `rope_scaling` and `rope_parameters` of a RopeConfig; the inverse of `rope_fields`.

    Args:
        rope: the config.
        fraction: whether files of this family have the fraction of a head that rotates.
    """
    scaling = scaling_json(rope, fraction)
    parameters = {"rope_theta": rope.theta} | scaling
    return {
        "rope_theta": rope.theta,
        # transformers 4 reads `rope_scaling`, transformers 5 `rope_parameters`.
        "rope_scaling": None if rope.scaling == "none" else parameters,
        "rope_parameters": parameters,
    }


def scaling_json(rope: Any, fraction: bool = False) -> dict[str, Any]:
    """Returns the object that `rope_scaling` reads, without theta."""
    values: dict[str, Any] = {"rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if fraction:
        values["partial_rotary_factor"] = rope.fraction
    if rope.scaling != "none":
        values["factor"] = rope.factor
    if rope.scaling in ("yarn", "longrope", "llama3") and rope.original_length is not None:
        values["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        values |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.scaling == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        values |= {} if rope.truncate else {"truncate": False}
    if rope.scaling == "longrope":
        long = list(rope.long_factors)
        values |= {"short_factor": list(rope.short_factors) or long, "long_factor": long}
    if rope.scaling in ("yarn", "longrope") and rope.attention_factor is not None:
        values["attention_factor"] = rope.attention_factor
    return values
