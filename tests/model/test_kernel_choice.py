"""The choice of an attention kernel: features of kernels and of calls, and errors for a kernel given by name."""

import jax
import jax.numpy as jnp
import pytest

from lmjax.errors import FlagError
from lmjax.model import kernels
from lmjax.model.kernels import Mask, attention, choose


@pytest.mark.parametrize(
    ("platform", "asked", "queries", "narrowed", "expected"),
    [
        ("cpu", "float32", 128, True, "plain"),
        ("cpu", "float32", 1024, True, "blockwise"),
        ("cpu", "float32", 1024, False, "plain"),
        ("cpu", "bias dropout softcap sink_logits", 4096, False, "blockwise"),
        ("gpu", "", 1024, True, "cudnn"),
        ("gpu", "float32", 1024, True, "xla"),
        ("gpu", "dropout", 1024, True, "blockwise"),
        ("cuda", "head_dim", 1024, True, "xla"),
        ("tpu", "softcap float32", 1024, True, "splash"),
        ("tpu", "traced_window", 1024, True, "xla"),
        ("tpu", "sink_logits length_128", 1000, True, "blockwise"),
        ("neuron", "", 1024, True, "xla"),
    ],
)
def test_auto_takes_the_first_kernel_that_has_everything(platform, asked, queries, narrowed, expected):
    assert choose("auto", platform, frozenset(asked.split()), queries, narrowed) == expected


@pytest.mark.parametrize("kernel", kernels.LACKS)
@pytest.mark.parametrize("feature", kernels.FEATURES)
def test_an_explicit_kernel_does_what_is_asked_or_says_what_it_lacks(kernel, feature):
    platform = {"cudnn": "gpu", "splash": "tpu"}.get(kernel, "cpu")
    if feature in kernels.LACKS[kernel]:
        with pytest.raises(FlagError) as error:
            choose(kernel, platform, frozenset({feature}), 64, False)
        for part in (f"--config.model.attention.kernel={kernel}", kernels.FEATURES[feature], "use auto"):
            assert part in str(error.value)
    else:
        assert choose(kernel, platform, frozenset({feature}), 64, False) == kernel


@pytest.mark.parametrize(("kernel", "device"), [("cudnn", "NVIDIA GPU"), ("splash", "TPU")])
def test_a_kernel_of_another_device_is_refused(kernel, device):
    x = jnp.zeros((1, 128, 2, 8), jnp.bfloat16)
    with pytest.raises(FlagError, match=f"attention.kernel={kernel} needs an? {device}, and this is cpu; use auto"):
        attention(x, x, x, mask=Mask(), scale=1.0, kernel=kernel)


def test_a_call_asks_for_what_its_arguments_need():
    x, bias = jnp.zeros((1, 128, 2, 64), jnp.bfloat16), jnp.zeros((1, 2, 128, 128))

    def asked(query=x, key=x, mask=None, bias=None, softcap=None, sink_logits=None, dropout_rate=None):
        mask = Mask() if mask is None else mask
        return set(kernels.features(query, key, mask, bias, softcap, sink_logits, dropout_rate))

    assert asked(mask=Mask(causal=True, window=4, query_segments=jnp.ones((1, 128)))) == set()
    assert asked(bias=bias, softcap=1.0) == {"bias", "softcap"}
    assert asked(sink_logits=jnp.zeros(2), dropout_rate=jnp.float32(0.1)) == {"sink_logits", "dropout"}
    assert asked(mask=Mask(causal=True, prefix=jnp.ones((1, 128), bool))) == {"prefix"}
    assert asked(mask=Mask(window=jnp.int32(4), sink_tokens=1)) == {"traced_window", "sink_tokens"}
    positions = jnp.zeros((1, 128), jnp.int32)
    assert asked(mask=Mask(causal=True, query_positions=positions, key_positions=positions)) == {"uneven_order"}
    assert asked(query=x[:, :1], mask=Mask(causal=True)) == {"uneven_order", "length_128"}
    assert asked(query=x[:, :1], mask=Mask(key_segments=jnp.ones((1, 128)))) == {"length_128", "odd_length"}
    assert asked(query=x.astype(jnp.float32)) == {"float32"}
    assert asked(query=x[..., :4], key=x[..., :4]) == {"head_dim"}


def test_the_platform_is_that_of_the_mesh_in_use():
    assert kernels.platform() == "cpu"
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert jax.jit(lambda: len(kernels.platform()))() == len("cpu")
