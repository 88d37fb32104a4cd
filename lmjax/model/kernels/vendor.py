"""Attention by kernels of JAX: `jax.nn.dot_product_attention` (XLA, cuDNN) and splash attention (TPU)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.model.kernels.masks import Mask

# Sizes of a block; the largest that divides the length is used. 128 is the width of a TPU's registers.
_SPLASH_BLOCKS = (512, 256, 128)
# The most keys for which one kernel computes the whole backward pass, without and with causal order or a window.
_ONE_PASS, _ONE_PASS_ORDERED = 2048, 1024


def xla(
    query: jax.Array, key: jax.Array, value: jax.Array, *, mask: Mask, bias: jax.Array | None, scale: float
) -> jax.Array:
    """Returns `attention` by XLA's `jax.nn.dot_product_attention`, which has all scores in memory."""
    return _dot_product_attention(query, key, value, mask, bias, scale, "xla")


def cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, *, mask: Mask, bias: jax.Array | None, scale: float
) -> jax.Array:
    """Returns `attention` by cuDNN's flash attention, which needs a bias of the query's dtype."""
    bias = None if bias is None else bias.astype(query.dtype)
    return _dot_product_attention(query, key, value, mask, bias, scale, "cudnn")


def _dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    scale: float,
    implementation: str,
) -> jax.Array:
    """Returns `attention` by an implementation of `jax.nn.dot_product_attention`.

    Causal order and window are passed as flags where possible, because cuDNN then skips masked keys. Values narrower
    than keys are padded.
    """
    lengths = query.shape[1], key.shape[1]
    causal = mask.causal and mask.query_positions is None and mask.prefix is None and lengths[0] == lengths[1]
    windowed = causal and mask.banded
    others = mask.replace(causal=mask.causal and not causal, window=None if windowed else mask.window)
    width = value.shape[-1]
    if width < key.shape[-1]:
        value = jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, key.shape[-1] - width)))
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        others.dense(*lengths),
        scale=scale,
        is_causal=causal,
        local_window_size=(mask.window - 1, 0) if windowed else None,
        implementation=implementation,
    )
    return _hide_blind(y[..., :width], mask, *lengths)


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """Returns `attention` by JAX's splash attention, which skips blocks that are masked.

    XLA cannot split a Pallas kernel over a mesh, so `shard_map` runs it on each device's rows and heads.

    Args:
        query: as for `attention`; the length is a multiple of 128.
        key: as for `attention`; the length is a multiple of 128.
        value: as for `attention`.
        mask: as for `attention`.
        scale: as for `attention`.
        softcap: as for `attention`.
        interpret: run the kernel without a TPU, slowly, for tests.
    """
    # Imported here, because importing Pallas takes 0.1 s, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernels

    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    segments = mask.segments(queries, keys) if mask.segmented else (None, None)
    segments = [None if x is None else jnp.broadcast_to(x, (batch, x.shape[1])) for x in segments]

    def local(query: jax.Array, key: jax.Array, value: jax.Array, *segments: jax.Array | None) -> jax.Array:
        kernel = _splash_kernel(splash_kernels, query.shape[2], queries, keys, mask, softcap, interpret)
        ids = None if segments[0] is None else splash_kernels.SegmentIds(*segments)
        heads_first = (x.swapaxes(1, 2) for x in (query * scale, key, value))
        return jax.vmap(kernel)(*heads_first, segment_ids=ids).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1 and not mesh.manual_axes:
        heads = nn.logical_to_mesh_axes(("act_batch", "act_length", "act_heads", None), axes.RULES)
        rows = nn.logical_to_mesh_axes(("act_batch", "act_length"), axes.RULES)
        local = jax.shard_map(local, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)
    return _hide_blind(local(query, key, value, *segments), mask, queries, keys)


def _splash_kernel(
    splash_kernels: Any, heads: int, queries: int, keys: int, mask: Mask, softcap: float | None, interpret: bool
) -> Any:
    """Returns the kernel of one row; the segments are an argument of its call."""
    shape = (queries, keys)
    if mask.window is not None:
        shown = splash_kernels.LocalMask(shape, (mask.window - 1, 0 if mask.causal else mask.window - 1), 0)
    else:
        shown = splash_kernels.CausalMask(shape) if mask.causal else splash_kernels.FullMask(shape)
    return splash_kernels.make_splash_mha_single_device(
        splash_kernels.MultiHeadMask([shown] * heads),
        block_sizes=_block_sizes(splash_kernels, queries, keys, mask.causal or mask.window is not None),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )


def _block_sizes(splash_kernels: Any, queries: int, keys: int, ordered: bool) -> Any:
    """Returns the sizes of blocks, and whether one kernel or two compute the backward pass.

    Two kernels, one for the queries and one for keys and values, both compute the scores and the gradients of the
    probabilities: 7 products of a matrix of queries and keys in place of 5, and they read all arrays twice. One kernel
    rounds the gradients of the queries for each block of keys, so it is used where all keys are one block. Then it
    cannot skip blocks that causal order masks: with 1,024 keys it still computes less than the two kernels, which
    compute 3 of 4 blocks, and with 2,048 more.

    Args:
        splash_kernels: the module of JAX.
        queries: number of queries.
        keys: number of keys.
        ordered: whether causal order or a window masks blocks.
    """
    block_q, block_kv = (next(size for size in _SPLASH_BLOCKS if length % size == 0) for length in (queries, keys))
    if keys <= (_ONE_PASS_ORDERED if ordered else _ONE_PASS):
        backward = {"block_kv_dkv": keys, "block_kv_dkv_compute": block_kv, "use_fused_bwd_kernel": True}
    else:
        backward = {"block_kv_dkv": block_kv, "block_q_dq": block_q, "block_kv_dq": block_kv}
    return splash_kernels.BlockSizes(block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, **backward)


def _hide_blind(y: jax.Array, mask: Mask, queries: int, keys: int) -> jax.Array:
    """Returns `y` with zeros for queries whose keys are all masked; these kernels return the mean of masked values."""
    any_key_visible = mask.any_key_visible(queries, keys)
    return y if any_key_visible is None else jnp.where(any_key_visible[:, :, None, None], y, jnp.zeros((), y.dtype))
