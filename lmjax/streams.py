"""Random streams: every random number of lmjax comes from here, by a seed and the name of what it is for.

A generator of numpy or a key of JAX follows from a hash of the seed, a name, and what else tells it from its like (an
epoch, a row). So no two purposes share a stream, whatever the seed and the numbers are; `numpy.random.default_rng`
takes a seed, (seed, 0) and (seed, 0, 0) for the same. Each name stands at one place of the code, which a test checks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmjax.errors import FlagError

if TYPE_CHECKING:  # data/ reads this module, and imports no jax
    import jax

# Seeds are whole numbers below this.
SEEDS = 2**64


def random_stream(seed: int, name: str, *of: int | str) -> np.random.Generator:
    """Returns a generator of the host's random numbers.

    Args:
        seed: from 0 to SEEDS - 1.
        name: of what is drawn.
        of: what tells streams of one name apart.

    Raises:
        FlagError: a seed out of range.
    """
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(_digest(seed, name, of))))


def subseed(seed: int, name: str, *of: int | str) -> int:
    """Returns a seed of its own for a part of a run; the arguments are those of `random_stream`."""
    return int.from_bytes(_digest(seed, name, of)[:8])


def prng_key(seed: int, name: str, *of: int | str) -> jax.Array:
    """Returns a key of JAX's default generator; the arguments are those of `random_stream`, inside of jit constants."""
    return prng_keys([seed], name, *of)[0]


def prng_keys(seeds: Sequence[int], name: str, *of: int | str) -> jax.Array:
    """Returns `[seeds]` keys, each as `prng_key` gives it, by one program on the device."""
    words = [np.frombuffer(_digest(seed, name, of), "<u4")[:2] for seed in seeds]
    return _maker()(np.array(words, np.uint32).reshape(-1, 2))


@functools.cache
def _maker() -> Callable[[np.ndarray], jax.Array]:
    """Returns the program that makes keys `[seeds]` of uint32 `[seeds, 2]`, for every kind of generator alike."""
    import jax

    def one(words: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(words[0]), words[1])

    return jax.jit(jax.vmap(one))


def named_key(parent: jax.Array, name: str) -> jax.Array:
    """Returns the key for one purpose out of a key that serves several; inside of jit too."""
    import jax

    return jax.random.fold_in(parent, np.frombuffer(_digest(0, name, ()), "<u4")[0])


def _digest(seed: int, name: str, of: Sequence[int | str]) -> bytes:
    """Returns 16 bytes that differ for different arguments."""
    if not 0 <= seed < SEEDS:
        raise FlagError(f"--seed={seed}: seeds go from 0 to {SEEDS - 1}")
    parts = [operator.index(seed), name, *(part if isinstance(part, str) else operator.index(part) for part in of)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
