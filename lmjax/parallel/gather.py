"""What processes that run together give to each other on the host: parameters in parts, and results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any


def on_host(arrays: PyTree) -> PyTree:
    """Returns arrays as numpy arrays, whole in every process; all processes call it with the same arrays."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)


def over_processes(items: Sequence[Any], compute: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """Returns `compute(items)`, of which each process computes a share; all call it with the same items.

    Args:
        items: what is computed.
        compute: from some of the items to a JSON value for each. In one process tuples stay tuples.
    """
    count = jax.process_count()
    return joined(compute(items[jax.process_index() :: count]))


def joined(share: Sequence[Any]) -> list[Any]:
    """Returns the JSON values of all processes in order; process `i` of `n` has every `n`-th one from number `i` on."""
    count = jax.process_count()
    if count == 1:
        return list(share)
    mine = np.frombuffer(json.dumps(list(share)).encode(), np.uint8)
    # Arrays of one size can be gathered; spaces after JSON change nothing.
    size = int(np.max(multihost_utils.process_allgather(np.array(len(mine)))))
    padded = np.full(size, ord(" "), np.uint8)
    padded[: len(mine)] = mine
    parts = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]
    found: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        found[number::count] = part
    return found
