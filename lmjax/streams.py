"""Random streams: all random numbers of lmjax are drawn from generators made here, from a seed and a name.

A numpy generator or a JAX key is made from a hash of the seed, the name of its purpose, and numbers or strings that
distinguish streams of the same name (an epoch, a row). So no two purposes share a stream, whatever seeds and numbers
are; `numpy.random.default_rng` gives the same stream for seed, (seed, 0) and (seed, 0, 0). Each name is used at one
place in the code, which a test checks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from lmjax.errors import FlagError
from lmjax.schema import Schema

if TYPE_CHECKING:  # data/ imports this module, and must not import jax
    import jax

# The number of seeds: seeds are integers from 0 to SEEDS - 1.
SEEDS = 2**64


class SeedsConfig(Schema):
    """Seeds of single sources of randomness, so that an ablation can vary one of them and keep the others."""

    init: int | None = Field(None, ge=0, lt=SEEDS, description="seed of the initial parameters; none: the run's")
    order: int | None = Field(
        None, ge=0, lt=SEEDS, description="seed of the order of the rows and of their corruption; none: the run's"
    )
    dropout: int | None = Field(
        None,
        ge=0,
        lt=SEEDS,
        description="seed of dropout and of what else a training step draws on the device; none: the run's",
    )
    subset: int | None = Field(
        None, ge=0, lt=SEEDS, description="seed of the training documents that data.subset chooses; none: the run's"
    )


def random_stream(seed: int, name: str, *of: int | str) -> np.random.Generator:
    """Returns a numpy generator.

    Args:
        seed: from 0 to SEEDS - 1.
        name: of the purpose of the numbers.
        of: numbers or strings that distinguish streams of the same name.

    Raises:
        FlagError: the seed is out of range.
    """
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(_digest(seed, name, of))))


def subseed(seed: int, name: str, *of: int | str) -> int:
    """Returns a new seed for a part of a run; arguments as of `random_stream`."""
    return int.from_bytes(_digest(seed, name, of)[:8])


@contextlib.contextmanager
def global_stream(seed: int, name: str, *of: int | str) -> Iterator[None]:
    """Seeds numpy's global generator, for a library that draws from it, and puts its state back; as `random_stream`."""
    before = np.random.get_state()
    np.random.seed(subseed(seed, name, *of) % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def prng_key(seed: int, name: str, *of: int | str) -> jax.Array:
    """Returns a key of JAX's default generator; arguments as of `random_stream`, and not traced."""
    return prng_keys([seed], name, *of)[0]


def prng_keys(seeds: Sequence[int], name: str, *of: int | str) -> jax.Array:
    """Returns keys `[seeds]`, each equal to that of `prng_key`, made by one program on the device."""
    words = [np.frombuffer(_digest(seed, name, of), "<u4")[:2] for seed in seeds]
    return _maker()(np.array(words, np.uint32).reshape(-1, 2))


@functools.cache
def _maker() -> Callable[[np.ndarray], jax.Array]:
    """Returns the compiled function from uint32 `[seeds, 2]` to keys `[seeds]`, for any generator of JAX."""
    import jax

    def one(words: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(words[0]), words[1])

    return jax.jit(jax.vmap(one))


def named_key(parent: jax.Array, name: str) -> jax.Array:
    """Returns the key for one purpose, derived from the key `parent`; `parent` may be traced."""
    import jax

    return jax.random.fold_in(parent, np.frombuffer(_digest(0, name, ()), "<u4")[0])


def hash_key(key: jax.Array) -> jax.Array:
    """Returns a key with the first two words of `key`, whose numbers are those of `lmjax.hashed_bits`."""
    import jax

    # Keys of threefry have two words, those of JAX's other generators four, of which each half is a key of threefry.
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl=_hash_generator())


@functools.cache
def _hash_generator() -> Hashable:
    """Returns a generator for JAX whose keys are split and folded by threefry, and whose numbers are hashes."""
    import jax
    from jax.extend.random import define_prng_impl

    from lmjax.hashed_bits import hashed

    def of_threefry(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def derived(words: jax.Array, data: Any) -> jax.Array:
            return jax.random.key_data(function(jax.random.wrap_key_data(words, impl="threefry2x32"), data))

        return derived

    def random_bits(words: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
        if width == 64:
            return jax.lax.bitcast_convert_type(hashed(words, (*shape, 2)), "uint64")
        return hashed(words, shape).astype(f"uint{width}")

    return define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
        split=of_threefry(jax.random.split),
        fold_in=of_threefry(jax.random.fold_in),
        random_bits=random_bits,
        name="hash",
        tag="hash",
    )


def _digest(seed: int, name: str, of: Sequence[int | str]) -> bytes:
    """Returns a hash of 16 bytes of the arguments."""
    if not 0 <= seed < SEEDS:
        raise FlagError(f"--seed={seed}: seeds go from 0 to {SEEDS - 1}")
    parts = [operator.index(seed), name, *(part if isinstance(part, str) else operator.index(part) for part in of)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
