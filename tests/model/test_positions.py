"""Position schemes against their definitions, computed one element at a time."""

import math
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from lmjax.interop.fields import Fields, rope_fields, rope_json
from lmjax.model import tpu
from lmjax.model.config import ModelConfig
from lmjax.model.groups import RelativeConfig, RopeConfig
from lmjax.model.layers import Embed
from lmjax.model.positions import SCHEMES
from lmjax.model.positions import rope as rope_module
from lmjax.model.positions.alibi import alibi, alibi_slopes
from lmjax.model.positions.relative import RelativeBias, relative_bucket
from lmjax.model.positions.rope import Rotation, rope, rope_frequencies
from lmjax.model.positions.sinusoidal import sinusoidal
from lmjax.model.presets import PRESETS

CONFIG = ModelConfig(
    architecture="encoder",
    vocab_size=8,
    embed_dim=16,
    num_heads=2,
    mlp_dim=8,
    num_layers=1,
    max_length=8,
    positions="relative",
    relative=RelativeConfig(buckets=8, max_distance=12),
)


def _bucket(distance, buckets, max_distance, causal):
    """Returns T5's bucket of one distance, as the paper defines it."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = -abs(distance)
    away = max(0, -distance)
    exact = buckets // 2
    if away < exact:
        return first + away
    steps = math.log(away / exact) / math.log(max_distance / exact) * (buckets - exact)
    return first + min(buckets - 1, exact + math.floor(steps))


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets_are_t5s(causal):
    distances = np.arange(-300, 301)
    expected = [_bucket(int(d), 32, 128, causal) for d in distances]
    np.testing.assert_array_equal(relative_bucket(distances, 32, 128, causal), expected)


def test_relative_buckets_at_the_boundaries():
    distances = np.array([0, -7, -8, -16, -32, -64, -128, -999, 7, 8, 16, 64, 999])
    expected = [0, 7, 8, 10, 12, 14, 15, 15, 23, 24, 26, 30, 31]
    np.testing.assert_array_equal(relative_bucket(distances, 32, 128, causal=False), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (20, 2), (1, 1)])
def test_relative_bias_is_the_tables_entry_for_every_pair(causal, queries, keys):
    module = RelativeBias(CONFIG, causal)
    bias, variables = module.init_with_output(jax.random.key(0), queries, keys)
    table = np.asarray(nn.unbox(variables)["params"]["table"])
    expected = [[table[_bucket(k - q, 8, 12, causal)] for k in range(keys)] for q in range(queries)]
    np.testing.assert_array_equal(bias[0], np.transpose(expected, (2, 0, 1)))


def test_sinusoidal_is_that_of_the_transformer_paper():
    positions = np.array([[0, 1, 7, 500]])
    expected = np.zeros((1, 4, 6))
    for i in range(3):
        angle = positions / 10_000 ** (2 * i / 6)
        expected[..., 2 * i], expected[..., 2 * i + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoidal(jnp.asarray(positions), 6), expected, atol=5e-5)
    # In Marian: the same columns, with all sines first.
    halves = sinusoidal(jnp.asarray(positions), 6, halves=True)
    np.testing.assert_allclose(halves, expected[..., [0, 2, 4, 1, 3, 5]], atol=5e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_bias_between_two_sequences_is_that_of_their_positions(causal):
    module = RelativeBias(CONFIG, causal)
    queries, keys = np.array([[0, 1, 0], [40, 2, 3]]), np.array([[3, 0, 1, 2], [0, 1, 99, 5]])
    bias, variables = module.init_with_output(jax.random.key(0), queries, keys, method="between")
    table = np.asarray(nn.unbox(variables)["params"]["table"])
    for b, q, k in np.ndindex(2, 3, 4):
        bucket = _bucket(int(keys[b, k] - queries[b, q]), 8, 12, causal)
        np.testing.assert_array_equal(bias[b, :, q, k], table[bucket])


def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])
    np.testing.assert_allclose(alibi_slopes(1), [1 / 256])
    # Not a power of two: the eight slopes for eight heads, then the first, third, ... of those for sixteen.
    expected = [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(alibi_slopes(12), expected)


def test_alibi_falls_linearly_to_either_side():
    queries, keys = np.array([[0, 2], [7, 1]]), np.array([[3, 0, 2], [1, 7, 4]])
    bias = alibi(2, jnp.asarray(queries), jnp.asarray(keys))
    for b, h, q, k in np.ndindex(2, 2, 2, 3):
        assert bias[b, h, q, k] == -abs(keys[b, k] - queries[b, q]) * (1 / 16, 1 / 256)[h]


def _config(head_dim, max_length=8, **rope):
    fields = {"positions": "rope", "head_dim": head_dim, "max_length": max_length, "rope": RopeConfig(**rope)}
    if "local_theta" in rope:
        fields["attention.window"] = 4
    return CONFIG.model_copy(update=fields)


def _turned(x, positions, config, **kwargs):
    return rope(jnp.asarray(x), Rotation.build(config, jnp.asarray(positions), **kwargs))


def test_rope_rotates_each_pair_by_its_angle():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2, 6)))
    positions = np.array([[0, 3, 1, 9]])
    pairs = x[..., :3] + 1j * x[..., 3:]
    turned = pairs * np.exp(1j * positions[:, :, None, None] * 100.0 ** -(np.arange(3) / 3))
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(_turned(x, positions, _config(6, theta=100.0)), expected, rtol=1e-4, atol=1e-5)


def test_a_fraction_of_the_head_rotates_and_the_rest_stays():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2, 8)))
    positions = np.array([[0, 3, 1, 9]])
    turned = _turned(x, positions, _config(8, fraction=0.5, theta=100.0))
    expected = _turned(x[..., :4], positions, _config(4, theta=100.0))
    np.testing.assert_array_equal(turned[..., :4], expected, "wavelengths are those of the rotated width")
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])


@pytest.mark.parametrize(("width", "fraction"), [(8, 1.0), (12, 0.5)])
def test_the_rotation_for_a_tpu_is_the_same(width, fraction):
    """Also its gradient, and with columns that do not rotate; the product that exchanges the halves is exact."""
    config = _config(width, fraction=fraction, theta=100.0)
    keys = jax.random.split(jax.random.key(0))
    x, g = (jax.random.normal(key, (2, 5, 3, width)).astype(jnp.bfloat16) for key in keys)
    places = jnp.array([[0, 3, 1, 9, 2], [4, 0, 7, 7, 1]])
    rotation = Rotation.build(config, places)
    turns = (lambda x: rope(x, rotation)), (lambda x: tpu.rotate(x, rotation.sin, rotation.cos))
    (first, first_gradient), (second, second_gradient) = (jax.vjp(turn, x) for turn in turns)
    for one, other in ((first, second), (first_gradient(g)[0], second_gradient(g)[0])):
        assert other.dtype == one.dtype == jnp.bfloat16
        # A fused multiplication and addition may round the last of 8 bits differently.
        np.testing.assert_allclose(np.float32(other), np.float32(one), rtol=2**-7, atol=1e-6)
        assert (one == other).mean() > 0.95


def test_only_bfloat16_for_a_tpu_rotates_by_a_product(monkeypatch):
    """A TPU multiplies float32 numbers in bfloat16, so that exchanging halves by a product would round them."""
    monkeypatch.setattr(rope_module, "platform", lambda: "tpu")
    rotation = Rotation.build(_config(8), jnp.arange(4)[None])
    for dtype, products in ((jnp.bfloat16, 1), (jnp.float32, 0)):
        made = str(jax.make_jaxpr(lambda x: rope(x, rotation))(jnp.ones((1, 4, 2, 8), dtype)))
        assert made.count("dot_general[") == products


_SHORT, _LONG = (1.0, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 8.0)
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 4.0, "beta_slow": 0.5}
_LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [*_SHORT]}
_LONGROPE |= {"long_factor": [*_LONG]}
_SLOWEST = (0.001666902, 0.0007029267, 0.0002964217)
# Of ROPE_INIT_FUNCTIONS of transformers 5.24 for heads of width 16 and base 1000: the parameters,
# max_position_embeddings, the length of the row, the frequencies, and the factor on sines and cosines.
RECORDED = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        512,
        64,
        (0.25, 0.1054241, 0.04445698, 0.01874735, 0.007905695, 0.003333804, 0.001405853, 0.0005928435),
        1,
    ),
    "dynamic": (
        {"rope_type": "dynamic", "factor": 4.0},
        64,
        100,
        (1.0, 0.3563476, 0.1269836, 0.04525029, 0.01612483, 0.005746045, 0.002047589, 0.0007296534),
        1,
    ),
    "yarn": (_YARN, 512, 64, (1.0, 0.4216965, 0.1259615, 0.03124559, 0.003952847, *_SLOWEST), 1.2079442),
    "yarn_not_truncated": (
        _YARN | {"truncate": False},
        512,
        64,
        (1.0, 0.4216965, 0.1185476, 0.02274474, 0.003952847, *_SLOWEST),
        1.2079442,
    ),
    "yarn_mscale": (
        _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
        512,
        64,
        (1.0, 0.4216965, 0.1259615, 0.03124559, 0.003952847, *_SLOWEST),
        1.09418,
    ),
    "longrope_short": (
        _LONGROPE | {"factor": 8.0},
        512,
        64,
        (1.0, 0.4216965, 0.1778279, 0.06817219, 0.02635231, 0.01025786, 0.004016723, 0.001580916),
        1.2247449,
    ),
    "longrope_long": (
        _LONGROPE,
        512,
        65,
        (1.0, 0.281131, 0.08891397, 0.02499647, 0.007905695, 0.002222536, 0.0007029267, 0.0002964217),
        1.2247449,
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        512,
        64,
        (1.0, 0.4216965, 0.06430987, 0.009373677, 0.003952847, *_SLOWEST),
        1,
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_scalings_are_those_of_transformers(name):
    parameters, most, length, expected, factor = RECORDED[name]
    values = {"max_position_embeddings": most, "rope_parameters": {"rope_theta": 1000.0} | parameters}
    fields = Fields(values, pathlib.Path("config.json"))
    config = _config(16, most, **rope_fields(fields))
    frequencies, scale = rope_frequencies(config, length)
    np.testing.assert_allclose(frequencies, expected, rtol=2e-6)
    assert scale == pytest.approx(factor, rel=1e-6)
    # What is written is read again as the same.
    again = Fields({"max_position_embeddings": most} | rope_json(config.rope), pathlib.Path("config.json"))
    np.testing.assert_array_equal(rope_frequencies(_config(16, most, **rope_fields(again)), length)[0], frequencies)


def test_ntk_slows_the_slowest_by_the_factor_and_leaves_the_fastest():
    plain, _ = rope_frequencies(_config(16), 8)
    slowed, scale = rope_frequencies(_config(16, scaling="ntk", factor=4.0), 8)
    assert scale == 1
    assert slowed[0] == plain[0]
    assert slowed[-1] == pytest.approx(plain[-1] / 4)


def test_generation_ends_where_frequencies_would_change():
    """The keys in a cache are stored rotated."""
    long = {"scaling": "longrope", "factor": 4.0, "original_length": 16, "long_factors": _LONG}
    assert SCHEMES["rope"].limit(_config(16, 64, **long, short_factors=_SHORT)) == 16
    assert SCHEMES["rope"].limit(_config(16, 64, **long)) == 64
    assert SCHEMES["rope"].limit(_config(16, 64, scaling="ntk", factor=4.0, original_length=16)) == 64


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scaling": "longrope"}, "rope.long_factors has 0 numbers, and 16 dimensions rotate in 8 pairs"),
        ({"scaling": "longrope", "long_factors": _LONG, "short_factors": (1.0,)}, "rope.short_factors has 1 numbers"),
        ({"long_factors": _LONG}, "has no effect with scaling='none'; set scaling=longrope"),
        ({"scaling": "longrope", "long_factors": (-1.0,) * 8}, "-1.0 is no divisor"),
    ],
)
def test_factors_that_do_not_fit(fields, said):
    with pytest.raises(pydantic.ValidationError, match=said):
        _config(16, **fields)


def test_rope_scores_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 3, 1, 8))

    def scores(start):
        positions = jnp.array([[0, 2, 5]]) + start
        query_turned, key_turned = (_turned(x, positions, _config(8, theta=100.0)) for x in (query, key))
        return jnp.einsum("bqhd,bkhd->bqk", query_turned, key_turned)

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)


def test_linear_scaling_is_a_slower_clock():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 3, 1, 8)))
    slow = _turned(x, np.array([[4, 8, 12]]), _config(8, scaling="linear", factor=4.0))
    np.testing.assert_allclose(slow, _turned(x, np.array([[1, 2, 3]]), _config(8)), rtol=1e-4, atol=1e-5)


def test_dynamic_scaling_changes_the_base_beyond_the_original_length():
    config = _config(8, scaling="dynamic", factor=2.0, original_length=16)
    plain, _ = rope_frequencies(_config(8), 16)
    for length in (8, 16):
        np.testing.assert_array_equal(rope_frequencies(config, length)[0], plain)
    # Twice the length: base * (2 * 2 - 1) ** (8 / 6).
    expected = (10_000 * 3 ** (4 / 3)) ** -(np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(rope_frequencies(config, 32)[0], expected, rtol=1e-12)


def test_llama3_scaling_leaves_the_fast_and_slows_the_slow():
    # Grattafiori et al. 2024's numbers: 8,192 tokens, factors 1 and 4, scaled by 8.
    config = _config(128, theta=500_000.0, scaling="llama3", factor=8.0, original_length=8192)
    frequencies, factor = rope_frequencies(config, 99)
    plain = 500_000.0 ** -(np.arange(64) / 64)
    expected = []
    for f in plain:
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            expected.append(f)
        elif wavelength > 8192 / 1:
            expected.append(f / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * f / 8 + smooth * f)
    np.testing.assert_allclose(frequencies, expected, rtol=1e-12)
    assert factor == 1.0
    assert 0 < sum(f not in (p, p / 8) for f, p in zip(frequencies, plain, strict=True)) < 20, "some lie between"


def test_yarn_ramps_between_the_dimensions_of_its_turns():
    # 32 and 1 turns in 4,096 tokens at base 10,000 and width 128: dimensions 20.95 and 45.03, widened to 20 and 46.
    config = _config(128, scaling="yarn", factor=16.0, original_length=4096)
    frequencies, factor = rope_frequencies(config, 99)
    plain = 10_000.0 ** -(np.arange(64) / 64)
    ramp = [0.0] * 21 + [(i - 20) / 26 for i in range(21, 46)] + [1.0] * 18
    np.testing.assert_allclose(frequencies, [(1 - r) * f + r * f / 16 for r, f in zip(ramp, plain, strict=True)])
    assert factor == pytest.approx(0.1 * math.log(16) + 1)
    given = _config(128, scaling="yarn", factor=16.0, attention_factor=1.25, beta_fast=64.0, beta_slow=2.0)
    assert rope_frequencies(given, 99)[1] == 1.25
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 1, 1, 128)))
    at_start = _turned(x, np.array([[0]]), given)
    np.testing.assert_allclose(at_start, 1.25 * x, rtol=1e-6, err_msg="sines and cosines carry the factor")
    shifted = rope_frequencies(given.model_copy(update={"max_length": 4096}), 99)[0]
    assert np.flatnonzero(shifted != plain)[0] == 17, "64 turns are made at 16.1"
    assert np.flatnonzero(np.isclose(shifted, plain / 16, rtol=1e-12))[0] == 41, "and 2 at 40.2"


def test_local_layers_have_wavelengths_of_their_own_unscaled():
    config = _config(8, theta=1e6, local_theta=100.0, scaling="linear", factor=8.0)
    np.testing.assert_allclose(rope_frequencies(config, 8, local=True)[0], 100.0 ** -(np.arange(4) / 4))
    np.testing.assert_allclose(rope_frequencies(config, 8)[0], 1e6 ** -(np.arange(4) / 4) / 8)
    same = _config(8, theta=1e6, scaling="linear", factor=8.0)
    np.testing.assert_array_equal(rope_frequencies(same, 8, local=True)[0], rope_frequencies(same, 8)[0])


def test_small_embeddings_beside_sines_are_remarked_with_a_remedy_that_works():
    """The remark says how large the embeddings are when they are added to the sines, which is measured here."""

    def size(config):
        embed = Embed(config, config.vocab_size, "vocab")
        vectors, _ = embed.init_with_output(jax.random.key(0), jnp.arange(config.vocab_size))
        return float(jnp.std(vectors)) * (config.table_dim**0.5 if config.embedding.scale else 1.0)

    drowned = PRESETS["nano_decoder"].with_fields({"vocab_size": 512, "positions": "sinusoidal"})
    (remark,) = drowned.remarks
    assert f"about {size(drowned):.1g}," in remark
    assert size(drowned) < 0.3
    remedy = dict(re.findall(r"--config\.model\.([a-z.]+)=(\w+)", remark))
    mended = drowned.with_fields({name: {"true": True}.get(value, value) for name, value in remedy.items()})
    assert not mended.remarks
    assert size(mended) > 0.3
    assert not [name for name, preset in PRESETS.items() if preset.remarks]
