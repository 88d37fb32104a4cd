"""Attention over rows whose positions are split over the mesh axis `sequence`: ring attention, and all-to-all.

Both are exact. In `ring` each device keeps its queries, and the keys and values go round the devices (Liu et al. 2023,
arXiv:2310.01889, section 3); the backward pass computes the scores again and sends the gradients of keys and values
round with them. In `all_to_all` the devices exchange positions for heads, so that each has some heads of the whole row,
and any kernel computes them (DeepSpeed-Ulysses: Jacobs et al. 2023, arXiv:2309.14509, section 3). The rules of
`lmjax.axes` say which: all-to-all splits the heads over `sequence`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax import axes
from lmjax.errors import FlagError
from lmjax.model.kernels.masks import Mask
from lmjax.model.kernels.parts import Dropout
from lmjax.model.kernels.ring import AXIS, over_ring, ring_plan
from lmjax.model.positions.by_distance import ByDistance

# Kernels by name that the ring does the same as.
_OWN = ("auto", "plain", "blockwise")


def split_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    kernel: str,
    local: Callable[..., jax.Array],
    mask: Mask,
    bias: jax.Array | ByDistance | None,
    sink_logits: jax.Array | None,
    dropout_rate: jax.Array | None,
    make_rng: Callable[[str], jax.Array] | None,
    **scores: Any,
) -> jax.Array:
    """Returns `lmjax.model.kernels.attention` of rows that are split over the mesh axis `sequence`.

    Args:
        query: as for `attention`; the other arguments that are not named here too.
        key: as for `attention`.
        value: as for `attention`.
        kernel: the name of the kernel, or auto.
        local: `attention` itself, for the heads of one device in all-to-all.
        mask: as for `attention`.
        bias: as for `attention`.
        sink_logits: as for `attention`.
        dropout_rate: as for `attention`.
        make_rng: as for `attention`.
        scores: `scale` and `softcap`, as for `attention`.

    Raises:
        FlagError: the axis does not divide the length or, in all-to-all, the heads; or the ring cannot use the kernel.
    """
    ways, queries, keys = axes.sequence_ways(), query.shape[1], key.shape[1]
    length, heads = nn.logical_to_mesh_axes(("act_attention_length", "act_attention_heads"))
    check_split(ways, (queries, keys), query.shape[2] // _size("tensor"), kernel, ring=length is not None)
    seed = None if dropout_rate is None else make_rng("dropout")
    rows = nn.logical_to_mesh_axes(("act_batch",))[0]
    whole = mask.filled(queries, keys)
    # An array with one row is for all rows.
    of_mask = jax.tree.map(lambda x: _spec(rows if jnp.ndim(x) and len(x) > 1 else None, x), whole)
    of_bias = None
    if isinstance(bias, ByDistance):
        of_bias = ByDistance(PartitionSpec(heads, None))
    elif bias is not None:
        of_bias = PartitionSpec(rows if len(bias) > 1 else None, heads, length, None)
    split = nn.logical_to_mesh_axes(("act_batch", "act_length", "act_heads", None))
    compute = functools.partial(over_ring, ring_plan(ways, queries, keys, mask, bias, **scores))
    if length is None:
        window = mask.window if isinstance(mask.window, int) else None
        compute = functools.partial(_over_heads, functools.partial(local, kernel=kernel, **scores), window)
    return jax.shard_map(
        lambda *arrays: compute(*arrays[:-1], _own(arrays[-1])),
        in_specs=(split, split, split, of_bias, PartitionSpec(heads), of_mask, PartitionSpec()),
        out_specs=split,
        check_vma=False,
    )(query, key, value, bias, sink_logits, whole, Dropout(dropout_rate, seed))


def check_split(ways: int, lengths: tuple[int, ...], heads: int, kernel: str, *, ring: bool) -> None:
    """Raises FlagError if attention cannot be split over the mesh axis `sequence`.

    Args:
        ways: devices of the axis.
        lengths: of the rows of queries and keys.
        heads: query heads on a device.
        kernel: `attention.kernel` of the model.
        ring: whether by the ring; else by all-to-all.
    """
    flag = f"--config.parallel.sequence={ways}"
    for length in lengths:
        if length % ways:
            raise FlagError(
                f"{flag} does not divide rows of {length} positions; take a length (--length, "
                f"--config.task.target_length) that is a multiple of {ways}"
            )
    if ring and kernel not in _OWN:
        raise FlagError(
            f"--config.model.attention.kernel={kernel}: ring attention has a kernel of its own; use auto, or "
            "--config.parallel.sequence_attention=all_to_all"
        )
    if not ring and heads % ways:
        raise FlagError(
            f"--config.parallel.sequence_attention=all_to_all: {flag} does not divide the {heads} heads of a device; "
            "take fewer devices, or --config.parallel.sequence_attention=ring"
        )


def _size(axis: str) -> int:
    """Returns the size of an axis of the mesh in use."""
    return jax.sharding.get_abstract_mesh().shape[axis]


def _spec(rows: Any, x: Any) -> PartitionSpec:
    """Returns the spec of an array of the mask: each device has all positions of its rows."""
    return PartitionSpec(*[rows][: jnp.ndim(x)])


def _own(drop: Dropout) -> Dropout:
    """Returns the dropout of this device, which differs from that of all others."""
    for axis in jax.sharding.get_abstract_mesh().axis_names:
        drop = drop.fold(jax.lax.axis_index(axis))
    return drop


def _over_heads(
    local: Callable[..., jax.Array],
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | ByDistance | None,
    sink_logits: jax.Array | None,
    mask: Mask,
    drop: Dropout,
) -> jax.Array:
    """Returns a device's part of attention by all-to-all; `window` is known while tracing, or None."""
    ways = _size(AXIS)
    # Too few key heads are repeated, so that each device has those of its query heads.
    copies = ways // math.gcd(ways, key.shape[2])
    exchange = functools.partial(jax.lax.all_to_all, axis_name=AXIS, tiled=True)
    query, key, value = (
        exchange(x if x is query or copies == 1 else jnp.repeat(x, copies, axis=2), split_axis=2, concat_axis=1)
        for x in (query, key, value)
    )
    mask = mask if window is None else mask.replace(window=window)
    if isinstance(bias, ByDistance):
        bias = bias.part(0, query.shape[1], 0, key.shape[1])
    y = local(
        query, key, value, mask=mask, bias=bias, sink_logits=sink_logits, dropout_rate=drop.rate,
        make_rng=lambda _: drop.seed,
    )  # fmt: skip
    return exchange(y, split_axis=1, concat_axis=2)
