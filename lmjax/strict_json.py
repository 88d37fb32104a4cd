"""JSON that every reader accepts: NaN and infinite numbers, which JSON does not have, are written as null."""

import json
import math
from typing import Any


def dumps(values: Any, **options: Any) -> str:
    """Returns the values as JSON text; `options` are those of `json.dumps`."""
    return json.dumps(_finite(values), allow_nan=False, **options)


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    return [_finite(value) for value in values] if isinstance(values, list | tuple) else values
