"""The forms of the codes in which kernels are kept: from numbers, in units of their scale, to codes and back."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Form(NamedTuple):
    """A form of codes.

    Attributes:
        most: the largest code's value; scales are such that the largest number of a group has it.
        nearest: from numbers, in units of their scale, to the nearest codes, one in each array element.
        value: from codes to numbers, float32.
        bits: of a code; codes of 4 bits are stored in pairs.
    """

    most: float
    nearest: Callable[[jax.Array], jax.Array]
    value: Callable[[jax.Array], jax.Array]
    bits: int = 8


def _integers(most: int, bits: int) -> Form:
    def nearest(x: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(x), -most, most).astype(jnp.int8)

    return Form(most, nearest, lambda codes: codes.astype(jnp.float32), bits)


def normal_float() -> np.ndarray:
    """Returns the 16 values of NF4, from -1 to 1 (Dettmers et al. 2023, section 3 and appendix E).

    They are quantiles of the normal distribution: 8 of its positive half, 7 of its negative half, and zero.
    """
    # The probability of the outermost quantile, as in the code of the paper, which keeps it away from 1.
    last, quantile = 0.9677083, statistics.NormalDist().inv_cdf
    halves = {sign: [sign * quantile(p) for p in np.linspace(last, 0.5, n)[:-1]] for sign, n in ((1, 9), (-1, 8))}
    values = np.array(sorted([*halves[1], *halves[-1], 0.0]))
    return (values / values.max()).astype(np.float32)


def _normal() -> Form:
    levels = normal_float()
    middles = (levels[1:] + levels[:-1]) / 2

    def value(codes: jax.Array) -> jax.Array:
        return jnp.take(jnp.asarray(levels), codes.astype(jnp.int32) + 8)

    return Form(1.0, lambda x: (jnp.searchsorted(jnp.asarray(middles), x) - 8).astype(jnp.int8), value, 4)


def _float8() -> Form:
    most = 448.0

    def nearest(x: jax.Array) -> jax.Array:
        return jnp.clip(x, -most, most).astype(jnp.float8_e4m3fn)

    return Form(most, nearest, lambda codes: codes.astype(jnp.float32))


FORMS: dict[str, Form] = {"int8": _integers(127, 8), "int4": _integers(7, 4), "nf4": _normal(), "fp8": _float8()}


def packed(codes: jax.Array) -> jax.Array:
    """Returns codes of 4 bits, int8 `[..., inputs, outputs]`, two in each byte: uint8 `[..., inputs / 2, outputs]`."""
    pairs = codes.astype(jnp.uint8).reshape(*codes.shape[:-2], -1, 2, codes.shape[-1]) & 15
    return pairs[..., 0, :] | (pairs[..., 1, :] << 4)


def unpacked(pairs: jax.Array) -> jax.Array:
    """Returns the codes that `packed` put into pairs."""
    return jnp.stack(halves(pairs), axis=-2).reshape(*pairs.shape[:-2], -1, pairs.shape[-1])


def halves(pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the codes of even and of odd inputs, `[..., inputs / 2, outputs]` each."""
    low, high = (jax.lax.shift_right_arithmetic(x.astype(jnp.int8), jnp.int8(4)) for x in (pairs << 4, pairs))
    return low, high
