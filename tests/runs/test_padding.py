"""Rows of the token table without a token: nothing is ever predicted there, and nothing else changes."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lmjax
from lmjax import cli
from lmjax.axes import RULES
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, abstract_params, init_params
from lmjax.model.padding import padded, resized
from lmjax.model.parameters import axis_names, flat
from lmjax.objectives.losses import vocab_loss
from lmjax.objectives.sums import Penalties
from lmjax.parallel.mesh import ParallelConfig, check_divisible, make_mesh, on_mesh
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.start import resolve

pytestmark = pytest.mark.usefixtures("all_devices")

every_device = jax.devices
WIDTH, TOKENS, LENGTH = 16, 61, 6
PRIME = 149  # More than the ids of the tokenizer.


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


def test_stored_rows_are_cut_and_padded_as_wanted():
    """A published model whose vocabulary of 51 two devices do not divide."""
    source = open_pretrained(pathlib.Path("tests/interop/recorded/llama"))
    wide, mesh = padded(source.config, 2), make_mesh(ParallelConfig(tensor=2))
    params = {path: x for path, x in flat(source.params(wide, mesh)).items() if "table" in path}
    whole = flat(source.params(source.config, make_mesh(ParallelConfig(), jax.devices()[:1])))
    table = "embedding/table"
    assert params[table].shape[0] == 52
    assert params[table].addressable_shards[0].data.shape[0] == 26
    np.testing.assert_array_equal(params[table][:51], whole[table])
    np.testing.assert_array_equal(params[table][51:], 0)


@pytest.mark.slow
def test_a_run_over_devices_writes_the_folder_of_one_device(tiny, corpus, tmp_path):
    """From a workdir with a prime vocabulary, which gets rows for the devices, and is exported without them."""
    quick = {"evaluation.batches": "1", "logging.tensorboard": "false", "model.dropout.residual": "0"}
    quick |= {"model.dropout.attention": "0", "data.train": str(corpus), "data.held_out": "0.2", "task.length": "16"}
    config = tiny("next_token", model__vocab_size=PRIME, steps=1, evaluation__batches=1, task__length=16)
    source = lmjax.train(config, tmp_path / "source", progress=False)
    folders = {}
    for tensor in (1, 2):
        own = {"parallel.data": "2", "parallel.tensor": str(tensor), "steps": "2", "batch_size": "8"}
        config = resolve(init_from=source, overrides=quick | own)
        assert (config.model.vocab_size, config.model.embedding.padding) == ((PRIME, 0) if tensor == 1 else (192, 43))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "devices", lambda *_, count=2 * tensor: every_device()[:count])
            run = lmjax.train(config, tmp_path / f"run{tensor}", progress=False)
        folders[tensor] = tmp_path / f"out{tensor}"
        cli.run(["convert", f"--workdir={run}", f"--to={folders[tensor]}"])
    one, two = (load_file(folder / "model.safetensors") for folder in folders.values())
    assert one.keys() == two.keys()
    for name, x in one.items():
        np.testing.assert_allclose(two[name], x, rtol=1e-4, atol=2e-6, err_msg=name)
    assert [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in folders.values()] == [
        PRIME,
        PRIME,
    ]
    # Generation over devices pads again, and has the logits of one device.
    logits = [lmjax.load_model(folders[2], tensor=tensor)([[5, 6, 7]]).logits for tensor in (1, 2)]
    np.testing.assert_allclose(logits[1][..., :PRIME], logits[0], rtol=1e-4, atol=1e-5)
    assert np.all(logits[1][..., PRIME:] < -1e29)
