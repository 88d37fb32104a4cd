"""Attention kernels, and the function `attention`, which selects a kernel that has all features of the call.

| kernel | runs on | how it computes |
|---|---|---|
| plain | every platform | all scores in memory; the reference of the tests |
| blockwise | every platform | queries in blocks, recomputed in the backward pass: memory linear in the length |
| xla | every platform | `jax.nn.dot_product_attention` |
| cudnn | NVIDIA GPU | cuDNN's flash attention, in 16 bits |
| splash | TPU | JAX's Pallas kernel, which skips blocks that are masked |

Rows that are split over the mesh axis `sequence` are attended to by `sequence.split_attention`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax import axes
from lmjax.errors import FlagError
from lmjax.model.kernels.masks import Mask
from lmjax.model.kernels.sequence import split_attention
from lmjax.model.kernels.softmax import blockwise, plain
from lmjax.model.kernels.vendor import cudnn, splash, xla
from lmjax.model.platform import platform

_FUNCTIONS = {"plain": plain, "blockwise": blockwise, "xla": xla, "cudnn": cudnn, "splash": splash}
_ARGUMENTS = {
    "xla": ("mask", "bias", "scale"),
    "cudnn": ("mask", "bias", "scale"),
    "splash": ("mask", "scale", "softcap"),
}

# The features of a call that some kernel lacks, with their description in the error message.
FEATURES = {
    "bias": "a bias on the scores (by positions)",
    "softcap": "attention.softcap",
    "sink_logits": "attention.sink_logits=True",
    "dropout": "dropout of the probabilities (dropout.attention)",
    "prefix": "a visible prefix",
    "sink_tokens": "attention.sink_tokens, global_tokens or global_block with a window",
    "traced_window": "a window that differs between scanned layers (scan_layers with attention.global_every)",
    "uneven_order": "causal order or a window between queries and keys of different lengths (cached decoding)",
    "length_128": "lengths that are not multiples of 128",
    "odd_length": "an odd length with a mask or bias",
    "float32": "float32 (dtype)",
    "head_dim": "a head_dim that is not a multiple of 8, or is above 128",
}
LACKS = {
    "plain": frozenset(),
    "blockwise": frozenset(),
    "xla": frozenset({"softcap", "sink_logits", "dropout"}),
    "cudnn": frozenset({"softcap", "sink_logits", "dropout", "float32", "odd_length", "head_dim"}),
    "splash": frozenset(
        {"bias", "sink_logits", "dropout", "prefix", "sink_tokens", "traced_window", "uneven_order", "length_128"}
    ),
}
_PLATFORMS = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}
# By platform: `auto` takes the first kernel that has all features; on a CPU, short rows use `plain` instead.
_PREFERRED = {
    "cpu": ("blockwise",),
    "gpu": ("cudnn", "xla", "blockwise"),
    "cuda": ("cudnn", "xla", "blockwise"),
    "tpu": ("splash", "xla", "blockwise"),
}
# The numbers of queries from which `auto` uses `blockwise` on a CPU, to save memory: with a mask by which it can skip
# keys, it is as fast as `plain` from `_LONG_NARROWED` on; without, it can take twice the time.
_LONG_NARROWED = 1024
_LONG = 4096


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Mask,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    sink_logits: jax.Array | None = None,
    dropout_rate: jax.Array | None = None,
    make_rng: Callable[[str], jax.Array] | None = None,
    kernel: str = "auto",
) -> jax.Array:
    """Returns `[batch, queries, heads, head_dim]`: values weighted by the softmax of scaled scores, in float32.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1. With fewer key heads than query heads, each group of query
    heads shares a key head (Ainslie et al. 2023, arXiv:2305.13245, section 2.2). For a query whose keys are all masked,
    output and gradients are zero.

    Args:
        query: `[batch, queries, heads, head_dim]`.
        key: `[batch, keys, kv_heads, head_dim]`.
        value: `[batch, keys, kv_heads, head_dim]`.
        mask: which keys each query may attend to.
        scale: factor on the scores.
        bias: float32 `[1 or batch, heads, queries, keys]`, added to the scaled and capped scores; None: no bias.
        softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv:2408.00118, section 2); None: no cap.
        sink_logits: `[heads]`, an additional logit in each softmax, without a value (gpt-oss, arXiv:2508.10925); None:
            no such logit.
        dropout_rate: of the probabilities; None: no dropout.
        make_rng: the `make_rng` of the calling module, for dropout.
        kernel: a name in the table above, or auto.

    Raises:
        FlagError: a kernel given by name lacks a feature of this call, or does not run on this platform.
    """
    arguments = {
        "mask": mask,
        "bias": bias,
        "scale": scale,
        "softcap": softcap,
        "sink_logits": sink_logits,
        "dropout_rate": dropout_rate,
        "make_rng": make_rng,
    }
    # Tokens that follow those of a cache are few: XLA alone divides them by the keys, which lie on all devices.
    if axes.sequence_ways() > 1 and mask.query_positions is None:
        return split_attention(query, key, value, kernel=kernel, local=attention, **arguments)
    needed = features(query, key, mask, bias, softcap, sink_logits, dropout_rate)
    narrowed = kernel == "auto" and mask.columns(0, 1, key.shape[1]) != (0, key.shape[1])
    name = choose(kernel, platform(), needed, query.shape[1], narrowed)
    return _FUNCTIONS[name](query, key, value, **{each: arguments[each] for each in _ARGUMENTS.get(name, arguments)})


def features(
    query: jax.Array,
    key: jax.Array,
    mask: Mask,
    bias: jax.Array | None,
    softcap: float | None,
    sink_logits: jax.Array | None,
    dropout_rate: jax.Array | None,
) -> frozenset[str]:
    """Returns the names in `FEATURES` that a call of `attention` with these arguments needs."""
    queries, keys, width = query.shape[1], key.shape[1], query.shape[3]
    ordered = mask.causal or mask.window is not None
    masked = mask.segmented or mask.prefix is not None or mask.window is not None or bias is not None
    found = {
        "bias": bias is not None,
        "softcap": softcap is not None,
        "sink_logits": sink_logits is not None,
        "dropout": dropout_rate is not None,
        "prefix": mask.causal and mask.prefix is not None,
        "sink_tokens": mask.window is not None and (mask.sink_tokens > 0 or mask.global_keys is not None),
        "traced_window": mask.window is not None and not isinstance(mask.window, int),
        "uneven_order": ordered and (mask.query_positions is not None or queries != keys),
        "length_128": queries % 128 != 0 or keys % 128 != 0,
        "odd_length": masked and (queries % 2 != 0 or keys % 2 != 0),
        "float32": query.dtype not in (jnp.bfloat16, jnp.float16),
        "head_dim": width % 8 != 0 or width > 128,
    }
    return frozenset(name for name, needed in found.items() if needed)


def choose(kernel: str, platform: str, needed: frozenset[str], queries: int, narrowed: bool) -> str:
    """Returns the name of the kernel to use.

    Args:
        kernel: `attention.kernel` of the config.
        platform: cpu, gpu, cuda or tpu; any other gets a kernel that runs on every platform.
        needed: names in `FEATURES` that the call needs.
        queries: number of queries in a row.
        narrowed: whether the mask is known, while tracing, to hide some keys from a whole block of queries.

    Raises:
        FlagError: a kernel given by name lacks a feature, or does not run on this platform.
    """
    if kernel == "auto":
        if platform == "cpu" and queries < (_LONG_NARROWED if narrowed else _LONG):
            return "plain"
        return next(name for name in _PREFERRED.get(platform, ("xla", "blockwise")) if not needed & LACKS[name])
    if platform not in _PLATFORMS.get(kernel, (platform,)):
        needs = {"cudnn": "an NVIDIA GPU", "splash": "a TPU"}[kernel]
        raise FlagError(
            f"--config.model.attention.kernel={kernel} needs {needs}, and this is {platform}; use auto or blockwise"
        )
    missing = [FEATURES[name] for name in FEATURES if name in needed & LACKS[kernel]]
    if missing:
        raise FlagError(
            f"--config.model.attention.kernel={kernel} does not support {' and '.join(missing)}; use auto or blockwise"
        )
    return kernel
