"""Rows of the token table without a token: nothing is ever predicted there, and nothing else changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.axes import RULES
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, abstract_params, init_params
from lmjax.model.padding import padded, resized
from lmjax.model.parameters import axis_names, flat
from lmjax.objectives.losses import vocab_loss
from lmjax.objectives.sums import Penalties
from lmjax.parallel.mesh import ParallelConfig, check_divisible, make_mesh, on_mesh

pytestmark = pytest.mark.usefixtures("all_devices")

WIDTH, TOKENS, LENGTH = 16, 61, 6


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request):
    """Returns the config of a model whose vocabulary is a prime, and its parameters on the host."""
    config = ModelConfig(
        architecture="decoder", vocab_size=TOKENS, embed_dim=WIDTH, num_heads=4, mlp_dim=32, num_layers=1,
        max_length=16, **{"head.tied": request.param, "head.bias": True},
    )  # fmt: skip
    params = nn.unbox(jax.jit(lambda: init_params(LanguageModel(config), jax.random.key(0)))())
    return config, jax.device_get(params)


def gradient(config, params, chunk=0):
    """Returns the loss of some tokens and its gradient, and the function that computes them, to be jitted."""
    tokens = jnp.arange(8 * LENGTH).reshape(8, LENGTH) % TOKENS
    penalties = Penalties(z_loss=jnp.float32(0.1), label_smoothing=jnp.float32(0.1))

    def loss(params):
        apply = LanguageModel(config).apply
        hidden = apply({"params": params}, {"tokens": tokens})
        logits = lambda hidden: apply({"params": params}, hidden, method="logits")  # noqa: E731
        sums = vocab_loss(
            hidden, logits, (tokens + 1) % TOKENS, jnp.ones(tokens.shape), chunk=chunk, penalties=penalties,
            num_ids=TOKENS,
        )  # fmt: skip
        return sums.loss + sums.penalty

    return jax.jit(jax.value_and_grad(loss))


def test_rows_without_a_token_change_nothing_over_devices_that_split_the_rest(model):
    """The program has no array of all logits: none that it gathers has the 64 rows of the padded vocabulary."""
    config, params = model
    wide = padded(config, 8)
    assert (wide.vocab_size, wide.embedding.padding) == (64, 3)
    expected, grads = gradient(config, params)(params)
    mesh = make_mesh(ParallelConfig(data=2, tensor=4))
    placed = on_mesh(abstract_params(wide, ()), mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        given = jax.tree.map(lambda x, p: jax.device_put(x, p.sharding), resized(params, wide, ()), placed)
        compiled = gradient(wide, given).lower(given).compile()
        found, wide_grads = compiled(given)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    cut = resized(wide_grads, config, ())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), cut, jax.device_get(grads))
    names = axis_names(abstract_params(wide, ()))
    for path, x in flat(jax.device_get(wide_grads)).items():
        if "vocab" in names[path]:
            np.testing.assert_array_equal(np.moveaxis(x, names[path].index("vocab"), 0)[TOKENS:], 0)
    gathers = [line for line in compiled.as_text().splitlines() if " all-gather" in line and "64]" in line]
    assert not gathers, gathers


def test_no_probability_and_no_sample_there(model):
    config, params = model
    wide = padded(config, 8)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(4, WIDTH)), jnp.float32)
    logits = LanguageModel(wide).apply({"params": resized(params, wide, ())}, hidden, method="logits")
    assert logits.shape == (4, 64)
    probabilities = np.asarray(jax.nn.softmax(logits * 0.01))
    np.testing.assert_array_equal(probabilities[:, TOKENS:], 0)
    kept = LanguageModel(config).apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(probabilities[:, :TOKENS], jax.nn.softmax(kept * 0.01), rtol=1e-5)


def test_the_error_about_a_prime_vocabulary_gives_the_remedy():
    mesh = make_mesh(ParallelConfig(tensor=4))
    with pytest.raises(FlagError, match=r"vocab dimension of 61; .*vocab_size=64 --config.model.embedding.padding=3"):
        check_divisible(mesh, batch_size=2, accumulation=1, sharded={"vocab": 61})
