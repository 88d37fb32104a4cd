"""muP: widths change neither the sizes of activations nor those of their updates, and the base is the plain model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import resolve
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.training.groups import rate_factors
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.update import make_optimizer

WIDTHS = (64, 1024)
LENGTH, ROWS, VOCAB = 8, 4, 32
OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=0, schedule="constant", weight_decay=0.0)


def config(architecture, width, base, **fields):
    return ModelConfig.model_validate(
        {
            "architecture": architecture, "vocab_size": VOCAB, "embed_dim": width, "mlp_dim": 2 * width,
            "num_heads": 4, "num_layers": 2, "max_length": LENGTH, "init_std": 0.1, "scan_layers": False,
            "mup.width": base, "mup.head_dim": base and base // 4,
        }
        | fields
    )  # fmt: skip


def batch(architecture):
    rng = np.random.default_rng(0)
    side = {
        "tokens": rng.integers(1, VOCAB, (ROWS, LENGTH)),
        "positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH)),
        "segment_ids": np.ones((ROWS, LENGTH)),
    }
    sides = ("encoder_", "decoder_") if architecture == "encoder_decoder" else ("",)
    return {f"{name}{field}": jnp.asarray(x, jnp.int32) for name in sides for field, x in side.items()}


def sizes(model, steps=3):
    """Returns the mean absolute hidden state and logit of a model, and how much each moves in some steps of Adam."""
    given = batch(model.config.architecture)
    params = jax.tree.map(lambda x: x.unbox() if hasattr(x, "unbox") else x, init_params(model, jax.random.key(0)),
                          is_leaf=lambda x: hasattr(x, "unbox"))  # fmt: skip
    wide = model.config.mup.width
    h = Hyperparameters.build(
        OPTIMIZER, steps=10, dropout=DropoutRates(), loss_weights={},
        width_factor=None if wide is None else model.config.width_factor,
    )  # fmt: skip
    optimizer = make_optimizer(OPTIMIZER, h, jnp.zeros((), jnp.int32))
    targets = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, VOCAB)

    @jax.jit
    def outputs(params):
        hidden = model.apply({"params": params}, given, DropoutRates(), method="states")
        return hidden, model.apply({"params": params}, hidden, method="logits")

    def loss(params):
        shares = jax.nn.log_softmax(outputs(params)[1])
        return -jnp.take_along_axis(shares, targets[..., None], -1).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, curvature=lambda: None)
        return jax.tree.map(jnp.add, params, updates), state

    first, state = outputs(params), optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    last = outputs(params)
    size = lambda x: float(jnp.abs(x).mean())  # noqa: E731
    return size(first[0]), *(size(b - a) for a, b in zip(first, last, strict=True))


@functools.cache
def growth(architecture, mup, **fields):
    """Returns by how much the sizes grow from the narrowest model to the widest."""
    fields = dict(fields)
    heads = ("masked_lm",) if architecture == "encoder" else ()
    models = (
        LanguageModel(config(architecture, width, WIDTHS[0] if mup else None, **fields), heads) for width in WIDTHS
    )
    found = [sizes(model) for model in models]
    return np.array(found[-1]) / np.array(found[0])


@pytest.mark.parametrize(
    "architecture", ["encoder", "decoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)]
)
def test_activations_and_their_updates_are_as_large_in_a_wide_model(architecture):
    heads = {"head.tied": architecture != "decoder"}
    grown = growth(architecture, True, **heads)
    assert (grown > 0.5).all(), grown
    assert (grown < 2).all(), grown


def test_without_mup_they_grow():
    grown = growth("decoder", False, **{"head.tied": False})
    assert grown[1:].max() > 3, "the check finds nothing where there is something to find"


@pytest.mark.parametrize("initializer", ["normal", "fan_in"])
def test_the_base_has_the_standard_parametrisation(initializer):
    plain, base = (
        LanguageModel(config("encoder_decoder", 16, width, initializer=initializer)) for width in (None, 16)
    )  # fmt: skip
    first, second = (jax.jit(functools.partial(init_params, model))(jax.random.key(3)) for model in (plain, base))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, second))
    assert (plain.config.score_scale, plain.config.logit_scale) == (base.config.score_scale, base.config.logit_scale)


def test_factors_by_hand():
    wide = config("encoder", 64, 16, **{"head.scale": True, "embedding.scale": True, "initializer": "fan_in"})
    assert wide.width_factor == 4
    # A head of 16 and not of 4: 4**-0.5 * 4 / 16.
    assert wide.score_scale == 0.125
    # The table has the base's deviation, 16**-0.5, and is scaled by 16**0.5 at the input and 16**-0.5 / 4 at the end.
    assert (wide.embedding_std, wide.base_table_dim, wide.logit_scale) == (0.25, 16, 0.0625)
    h = Hyperparameters.build(OPTIMIZER, steps=10, dropout=DropoutRates(), loss_weights={}, width_factor=4.0)
    tree = {
        "embedding": {"table": 0, "project_in": {"kernel": 0}},
        "backbone": {"stack": {"layer_0": {"mlp": {"up": {"kernel": 0, "bias": 0}}, "norm": {"scale": 0}}}},
        "output": {"kernel": 0},
    }
    factors = rate_factors(OPTIMIZER, h, jax.tree.map(jnp.float32, tree))
    layer = factors["backbone"]["stack"]["layer_0"]
    assert (layer["mlp"]["up"]["kernel"], factors["output"]["kernel"]) == (0.25, 0.25)
    others = (layer["mlp"]["up"]["bias"], layer["norm"]["scale"], *jax.tree.leaves(factors["embedding"]))
    assert set(map(float, others)) == {1.0}


def test_deviations_of_initial_kernels():
    params = init_params(LanguageModel(config("decoder", 256, 64, **{"head.tied": False})), jax.random.key(0))
    stack = params["backbone"]["stack"]["layer_0"]
    found = {
        "table": params["embedding"]["table"],
        "hidden": stack["mlp"]["up"]["kernel"],
        "output": params["vocabulary"]["output"]["kernel"] if "vocabulary" in params else params["output"]["kernel"],
    }
    stds = {name: float(getattr(x, "value", x).std()) for name, x in found.items()}
    assert stds == pytest.approx({"table": 0.1, "hidden": 0.05, "output": 0.025}, rel=0.03)


def test_other_optimizers_are_refused():
    with pytest.raises(FlagError, match=r"mup\.width=32\.0 with --optimizer=sgd"):
        resolve(overrides={"model.mup.width": "32", "optimizer.name": "sgd"})
    with pytest.raises(FlagError, match="of the base model"):
        resolve(overrides={"model.mup.head_dim": "8"})
