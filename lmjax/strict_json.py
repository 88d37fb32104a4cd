"""JSON that every reader accepts: NaN and infinite numbers, which JSON does not have, are written as null."""

import json
import math
import pathlib
from typing import Any

from lmjax.paths import write_durably


def dumps(values: Any, **options: Any) -> str:
    """Returns the values as JSON text; `options` are those of `json.dumps`."""
    return json.dumps(_finite(values), allow_nan=False, **options)


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes values as JSON, or a text as it is; if it is interrupted, the old file stays complete."""
    write_durably(path, values if isinstance(values, str) else dumps(values, indent=2) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    return [_finite(value) for value in values] if isinstance(values, list | tuple) else values
