"""What `lmjax train --help_config` prints: every config field with its value, allowed values and description."""

from __future__ import annotations

import operator
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import annotated_types
import pydantic
from pydantic.fields import FieldInfo

from lmjax.config import Config
from lmjax.errors import FlagError
from lmjax.nearest import nearest_fields
from lmjax.schema import shown

_WORDS = {int: "an integer", float: "a number", str: "text"}
_SIGNS = {
    annotated_types.Ge: ("ge", ">="),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "<="),
    annotated_types.Lt: ("lt", "<"),
}
_WIDTH = 112


class Entry(NamedTuple):
    """A field of a config.

    Attributes:
        path: the dotted path.
        value: the value as a flag would give it.
        allowed: the allowed values in words.
        description: the field's description.
    """

    path: str
    value: str
    allowed: str
    description: str


def entries(config: pydantic.BaseModel, prefix: str = "") -> Iterator[Entry]:
    """Yields the fields of a config in their order, with the fields of a nested config in its place."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, pydantic.BaseModel):
            yield from entries(value, f"{prefix}{name}.")
        else:
            yield Entry(f"{prefix}{name}", shown(value), allowed(field), field.description or "")


def allowed(field: FieldInfo) -> str:
    """Returns the allowed values of a field in words: its choices, its type and its bounds."""
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [m for x in arguments[1:] for m in (x.metadata if isinstance(x, FieldInfo) else [x])]
        return _allowed(arguments[0], [*inner, *metadata])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        kinds = [_allowed(a, metadata) for a in arguments if a is not type(None)]
        return " or ".join(kinds + ["none"] * (type(None) in arguments))
    if origin is tuple:
        return f"{_allowed(arguments[0], metadata)}; several joined by commas, or none"
    if annotation is bool:
        return "true|false"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "=".join(name.upper() for name in annotation.model_fields)
    bounds = [
        f"{sign} {getattr(m, name):g}" for m in metadata for kind, (name, sign) in _SIGNS.items() if isinstance(m, kind)
    ]
    return " ".join([_WORDS.get(annotation, str(annotation)), " and ".join(bounds)]).strip()


def _heading(config: Config, path: str) -> str:
    """Returns the dotted path of a group with the first line of its class's docstring."""
    if not path:
        return "the run"
    about = (type(operator.attrgetter(path)(config)).__doc__ or "").partition("\n")[0]
    return f"{path}: {about}"


def explain(config: Config, pattern: str = "") -> str:
    """Returns the fields of a config by group, as text; with `pattern`, only those that contain it.

    Args:
        config: the config.
        pattern: a regular expression or a word, searched in path, allowed values and description; empty: all fields.

    Raises:
        FlagError: no field contains the pattern.
    """
    try:
        found = re.compile(pattern, re.IGNORECASE)
    except re.error:
        found = re.compile(re.escape(pattern), re.IGNORECASE)
    every = list(entries(config))
    chosen = [e for e in every if found.search(f"{e.path} {e.allowed} {e.description}")]
    if not chosen:
        hint = nearest_fields(pattern, [e.path for e in every])
        raise FlagError(f"--help_config={pattern}: matches no field; {hint or '--help_config alone shows them all'}")
    lines: list[str] = []
    group = None
    for entry in chosen:
        if (own := entry.path.rpartition(".")[0]) != group:
            group = own
            lines += [*([""] if lines else []), _heading(config, group)]
        lines.append(f"  --config.{entry.path}={entry.value}  ({entry.allowed})")
        lines += textwrap.wrap(entry.description, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
