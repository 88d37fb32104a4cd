"""Dropout with a traced rate, and the two generators of its masks."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmjax.hashed_bits import hashed
from lmjax.model.dropout import DropoutRates, dropout
from lmjax.model.groups import DropoutConfig
from lmjax.parallel.mesh import ParallelConfig, make_mesh

HASH = DropoutRates(generator="hash")


def test_dropout_keeps_the_right_fraction_and_the_mean():
    y = dropout(jnp.full((1000, 1000), 2.0), jnp.float32(0.2), lambda _: jax.random.key(0))
    kept = y != 0
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.002)
    np.testing.assert_allclose(y[kept], 2.5, rtol=1e-6)
    assert kept.mean(0).std() == pytest.approx(0.4 / math.sqrt(1000), rel=0.1), "elements are dropped independently"


def test_stochastic_depth_drops_whole_rows():
    y = dropout(jnp.ones((4000, 3, 2)), jnp.float32(0.2), lambda _: jax.random.key(0), rows=True)
    kept = y[:, 0, 0] != 0
    np.testing.assert_allclose(y, jnp.broadcast_to(jnp.where(kept, 1.25, 0.0)[:, None, None], y.shape))
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.03)


def test_a_changed_rate_compiles_nothing_and_no_rate_draws_nothing():
    f = jax.jit(lambda x, rate: dropout(x, rate, lambda _: jax.random.key(0)))
    x = jnp.ones((8, 8))
    outputs = [f(x, np.float32(rate)) for rate in (0.0, 0.1, 0.5)]
    assert f._cache_size() == 1
    np.testing.assert_array_equal(outputs[0], x)
    assert (outputs[1] != outputs[2]).any()
    assert dropout(x, None, make_rng=functools.partial(pytest.fail, "a random number was drawn")) is x
    many = jax.vmap(f, (None, 0))(x, jnp.array([0.1, 0.5]))
    np.testing.assert_array_equal(many, jnp.stack(outputs[1:]), "many rates at once: the same masks")


def test_dropout_keeps_the_compute_dtype():
    y = dropout(jnp.ones((8, 8), jnp.bfloat16), jnp.float32(0.5), lambda _: jax.random.key(0))
    assert y.dtype == jnp.bfloat16


def reference(key: tuple[int, int], count: int) -> np.ndarray:
    """The first numbers of a key, by integers without a width."""

    def mixed(x: int, first: int, by: int, second: int, then_by: int, last: int) -> int:
        x = (x ^ x >> first) * by % 2**32
        x = (x ^ x >> second) * then_by % 2**32
        return x ^ x >> last

    one, other = (16, 0x21F0AAAD, 15, 0xD35A2D97, 15), (16, 0x7FEB352D, 15, 0x846CA68B, 16)
    first = mixed(key[0] ^ 0x9E3779B9, *one)
    second = mixed(key[1] ^ first, *other)
    return np.array([mixed(mixed((i + first) % 2**32, *one) ^ second, *other) for i in range(count)], np.uint32)


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (1, 24), (24, 1, 1)])
def test_hashes_are_those_of_the_definition_for_every_shape(shape):
    key = jnp.array([0xFFFFFFF0, 7], jnp.uint32)
    np.testing.assert_array_equal(hashed(key, shape), reference((0xFFFFFFF0, 7), 24).reshape(shape))


def test_a_key_keeps_its_words_and_is_split_and_folded_as_by_threefry():
    plain = jax.random.key(3)
    key = HASH.key(plain)
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(plain))
    for derive in (lambda k: jax.random.fold_in(k, 11), lambda k: jax.random.split(k, (2, 3))):
        np.testing.assert_array_equal(jax.random.key_data(derive(key)), jax.random.key_data(derive(plain)))
    assert DropoutRates().key(plain) is plain


def test_keys_of_other_generators_have_masks_of_their_own():
    with jax.default_prng_impl("rbg"):
        keys = [HASH.key(jax.random.fold_in(jax.random.key(3), i)) for i in range(8)]
    drawn = np.stack([jax.random.bits(key, (64,)) for key in keys])
    assert len(np.unique(drawn)) == drawn.size


def masks(keys: jax.Array, size: int, rate: float = 0.5) -> np.ndarray:
    """Which of `size` elements are dropped with each of the keys, `[keys, size]`."""
    ones = jnp.ones(size)
    return np.asarray(jax.vmap(lambda key: dropout(ones, jnp.float32(rate), lambda _: key))(keys) == 0)


def derived(count: int) -> dict[str, jax.Array]:
    """Keys as steps and layers derive them, and keys that differ in few bits."""
    key = HASH.key(jax.random.key(0))
    return {
        "folded": jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count)),
        "split": jax.random.split(key, count),
        "first words in a row": HASH.key(jax.random.wrap_key_data(jnp.stack(
            [jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32)], 1))),
        "second words in a row": HASH.key(jax.random.wrap_key_data(jnp.stack(
            [jnp.zeros(count, jnp.uint32), jnp.arange(count, dtype=jnp.uint32)], 1))),
    }  # fmt: skip


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("kind", derived(2))
def test_hashed_masks_pass_tests_of_independence(kind, rate):
    # The limits are those of one false alarm in 10,000 for each test of a perfect generator; the keys are fixed.
    dropped = masks(derived(256)[kind], 4096, rate)
    total, alarm = dropped.size, 1e-4
    assert stats.binomtest(int(dropped.sum()), total, rate).pvalue > alarm
    spread = math.sqrt(rate * (1 - rate))
    z = (dropped - rate) / spread
    for axis in (0, 1):
        # The sums over all keys, and over all elements, vary as those of independent draws.
        sums = z.sum(axis) ** 2 / z.shape[axis]
        below = stats.chi2(len(sums)).cdf(sums.sum())
        assert alarm < below < 1 - alarm, axis
    for key_lag, element_lag in itertools.product((0, 1, 2, 16, 128), (0, 1, 2, 3, 4, 64, 128, 512, 2048)):
        if key_lag or element_lag:
            pairs = z[key_lag:, element_lag:] * z[: len(z) - key_lag, : z.shape[1] - element_lag]
            assert abs(pairs.sum()) / math.sqrt(pairs.size) < 4.5, (key_lag, element_lag)
    assert len(np.unique(dropped, axis=0)) == len(dropped), "no two keys have the same mask"


def test_a_bit_of_a_key_changes_half_of_the_bits_of_its_numbers():
    key = np.array([0x12345678, 0x9ABCDEF0], np.uint32)
    flipped = [key ^ (np.arange(2) == word) * np.uint32(1 << bit) for word in range(2) for bit in range(32)]
    bits = jax.vmap(lambda key: hashed(key, (4096,)))(jnp.asarray(np.stack([key, *flipped]), jnp.uint32))
    changed = bits[:1] ^ bits[1:]
    share = np.asarray(jax.lax.population_count(changed)).mean(1) / 32
    np.testing.assert_allclose(share, 0.5, atol=0.02)


def test_wide_numbers_have_all_their_bits():
    bits = jax.random.bits(HASH.key(jax.random.key(1)), (4096,), "uint16")
    assert bits.dtype == jnp.uint16
    with jax.enable_x64(True):
        bits = np.asarray(jax.random.bits(HASH.key(jax.random.key(1)), (4096,), "uint64"))
    assert bits.dtype == np.uint64
    assert len(np.unique(bits)) == 4096
    ones = (bits[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).mean(0)
    np.testing.assert_allclose(ones, 0.5, atol=4 * 0.5 / 64)


def test_the_config_says_which_generator_and_rates_of_zero_draw_nothing():
    rates = DropoutConfig(residual=0.1, generator="hash").rates()
    assert (rates.generator, rates.residual, rates.mlp) == ("hash", np.float32(0.1), None)
    assert jax.tree.leaves(rates) == [np.float32(0.1)], "the generator is static"


@pytest.mark.parametrize("generator", ["threefry", "hash"])
def test_a_mesh_drops_what_one_device_drops(generator):
    x, key = jnp.ones((8, 4, 16)), DropoutRates(generator=generator).key(jax.random.key(5))
    whole = jax.jit(lambda x: dropout(x, jnp.float32(0.5), lambda _: key))(x)
    split = jax.device_put(
        x,
        jax.sharding.NamedSharding(make_mesh(ParallelConfig(), jax.devices()[:4]), jax.sharding.PartitionSpec("data")),
    )
    compiled = jax.jit(lambda x: dropout(x, jnp.float32(0.5), lambda _: key)).lower(split).compile()
    np.testing.assert_array_equal(compiled(split), whole)
    assert "all-" not in compiled.as_text(), "each device makes the numbers of its own elements"
