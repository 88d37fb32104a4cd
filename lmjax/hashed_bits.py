"""Random bits by hashing the numbers of elements, for masks."""

import jax
import jax.numpy as jnp

# Shift, multiplier, shift, multiplier, shift.
_ONE = (16, 0x21F0AAAD, 15, 0xD35A2D97, 15)
_OTHER = (16, 0x7FEB352D, 15, 0x846CA68B, 16)


def hashed(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uint32 `shape`: a hash of the key and of each element's number, in row-major order.

    The words of the key are hashed first, so that keys that differ in one bit have nothing in common; then each
    element's number is mixed with both. All mixing is by bijections of 32-bit integers with two multiplications (C.
    Wellons' search for those with the least bias, github.com/skeeto/hash-prospector), about a fifth of the operations
    of threefry with 20 rounds (Salmon et al. 2011, section 4.3). That is enough for masks; it is no generator for
    cryptography, and a key has 2**32 numbers.

    Args:
        key: uint32 `[2]`.
        shape: of the result.
    """
    first = _mixed(key[0] ^ jnp.uint32(0x9E3779B9), _ONE)
    second = _mixed(key[1] ^ first, _OTHER)
    number = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        number = number * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mixed(_mixed(number + first, _ONE) ^ second, _OTHER)


def _mixed(x: jax.Array, constants: tuple[int, int, int, int, int]) -> jax.Array:
    """Returns a bijection of uint32: exclusive ors with shifted values, and two multiplications by odd numbers."""
    first, by, second, then_by, last = constants
    x = (x ^ (x >> first)) * jnp.uint32(by)
    x = (x ^ (x >> second)) * jnp.uint32(then_by)
    return x ^ (x >> last)
