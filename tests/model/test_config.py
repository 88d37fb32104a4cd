"""An invalid config raises an error with field, value and remedy; derived values follow their definitions."""

import ast
import pathlib

import jax
import pydantic
import pytest

import lmjax
from lmjax.model.config import ModelConfig
from lmjax.model.groups import DropoutConfig
from lmjax.schema import Schema

GOOD = {
    "architecture": "decoder",
    "vocab_size": 64,
    "embed_dim": 16,
    "num_heads": 4,
    "mlp_dim": 32,
    "num_layers": 2,
    "max_length": 8,
}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_heads": 3}, ("embed_dim=16", "num_heads=3", "head_dim")),
        ({"num_kv_heads": 3}, ("num_heads=4", "num_kv_heads=3")),
        ({"positions": "rope", "head_dim": 3}, ("rope", "head_dim=3", "even")),
        ({"positions": "sinusoidal", "embed_dim": 15, "num_heads": 3}, ("sinusoidal", "15", "even")),
        ({"positions": "rope", "rope": {"fraction": 0.5}, "head_dim": 6}, ("fraction=0.5", "3", "even")),
        ({"positions": "rope", "rope": {"scaling": "dynamic"}, "head_dim": 2}, ("dynamic", "four", "2")),
        ({"rope": {"factor": 2}}, ("rope\n", "factor=2", "set scaling")),
        ({"rope": {"local_theta": 5}}, ("rope.local_theta=5", "attention.window")),
        ({"positions": "relative", "relative": {"max_distance": 16}}, ("max_distance=16", "buckets=32")),
        ({"decoder_positions": "rope"}, ("decoder_positions=rope", "encoder_decoder", "positions")),
        ({"cross_positions": "rope"}, ("cross_positions=rope", "encoder_decoder", "positions")),
        ({"sinusoidal_halves": True}, ("sinusoidal_halves=True", "positions=learned", "False")),
        ({"positions": "none", "position_offset": 2}, ("position_offset=2", "positions=none", "0")),
        ({"block": "parallel", "norm_position": "post"}, ("block=parallel", "norm_position=post")),
        ({"block": "parallel_shared", "norm_position": "output"}, ("parallel_shared", "norm_position=output", "pre")),
        ({"first_norm": False}, ("first_norm=False", "scan_layers=True", "scan_layers=False")),
        ({"first_norm": False, "scan_layers": False, "norm_position": "post"}, ("norm_position=post", "pre")),
        ({"norm_offset": True, "norm_scale": False}, ("norm_offset=True", "norm_scale=False")),
        ({"share_layers": True, "initializer": "depth_scaled"}, ("depth_scaled", "share_layers=True")),
        ({"moe": {"num_experts": 2, "top_k": 3}}, ("moe\n", "top_k=3", "num_experts=2")),
        ({"moe": {"num_experts": 2, "top_k": 1}}, ("top_k=1", "normalize=False")),
        ({"moe": {"offset": 1}}, ("offset=1", "every=1")),
        ({"moe": {"num_experts": 4, "every": 2}}, ("moe.every=2", "scan_layers=False")),
        ({"attention.global_every": 2}, ("attention\n", "global_every=2", "set window")),
        ({"attention.sink_tokens": 2}, ("sink_tokens=2", "set window")),
        ({"attention.window": 4, "attention.global_tokens": 1}, ("global_tokens=1", "sees no later one")),
        ({"attention.window": 4, "attention.decoder_window": False}, ("decoder_window=False is for",)),
        (
            {"attention.window": 4, "attention.global_every": 2, "attention.global_offset": 2},
            ("global_offset=2", "global_every=2"),
        ),
        ({"biases": ("query", "keys")}, ("biases", "keys", "'key'")),
        ({"num_decoder_layers": 2}, ("num_decoder_layers=2", "encoder_decoder", "num_layers")),
        ({"architecture": "encoder_decoder", "embedding.types": 2}, ("embedding.types=2", "embedding.types=0")),
        ({"head.scale": True, "head.tied": False}, ("head\n", "scale=True", "tied=True")),
        ({"head.transform": True}, ("head.transform=True", "decoder", "head.transform=False")),
        ({"head.classifier": "relu"}, ("head.classifier=relu", "decoder", "tanh")),
        ({"head.pooling": "mean"}, ("head.pooling=mean", "decoder", "first")),
        ({"dropout.residual": 1.0}, ("dropout.residual", "less than 1")),
        ({"num_layer": 3}, ("num_layer", "not permitted")),
        ({"num_layers": 0}, ("num_layers", "greater than 0")),
    ],
)
def test_a_config_that_does_not_fit_names_field_value_and_remedy(fields, words):
    with pytest.raises(pydantic.ValidationError) as error:
        ModelConfig(**(GOOD | fields))
    assert error.value.error_count() == 1
    assert all(word in str(error.value) for word in words)


def test_defaults_that_follow_other_fields():
    config = ModelConfig(**GOOD)
    assert (config.kv_heads, config.width_of_head, config.side_layers(True)) == (4, 4, 2)
    config = ModelConfig(
        **(GOOD | {"architecture": "encoder_decoder", "num_kv_heads": 2, "head_dim": 6}), num_decoder_layers=5
    )
    assert (config.kv_heads, config.width_of_head, config.side_layers(True)) == (2, 6, 5)


def test_a_rate_of_zero_is_compiled_out_and_any_other_is_data():
    rates = ModelConfig(**GOOD, **{"dropout.residual": 0.25, "dropout.layer": 0.5}).dropout.rates()
    assert rates.attention is None
    assert rates.mlp is None
    assert [(float(leaf), leaf.dtype.name) for leaf in jax.tree.leaves(rates)] == [(0.25, "float32"), (0.5, "float32")]


def test_a_generator_is_narrower_and_as_deep_and_shares_the_tables_width():
    small = {"embed_dim": 256, "num_heads": 4, "mlp_dim": 1024, "num_layers": 12, "embedding.dim": 128}
    generator = ModelConfig(**(GOOD | small | {"architecture": "encoder"})).generator()
    sizes = (generator.embed_dim, generator.num_heads, generator.width_of_head, generator.mlp_dim, generator.num_layers)
    assert sizes == (64, 1, 64, 256, 12), "ELECTRA-small: Clark et al. 2020, table 6"
    assert generator.table_dim == 128
    base = {"embed_dim": 768, "num_heads": 12, "mlp_dim": 3072, "head.generator_size": 1 / 3, "head.tied": False}
    generator = ModelConfig(**(GOOD | base | {"num_kv_heads": 6, "moe": {"num_experts": 4}})).generator()
    assert (generator.embed_dim, generator.num_heads, generator.kv_heads, generator.mlp_dim) == (256, 4, 2, 1024)
    assert (generator.table_dim, generator.head.tied, generator.moe.num_experts) == (768, True, 0)


def test_layers_differ_as_the_fields_say():
    config = ModelConfig(**GOOD, **{"attention.window": 4, "attention.global_every": 6, "attention.global_offset": 5})
    assert [i for i in range(12) if config.attention.is_global(i)] == [5, 11], (
        "Gemma 3: five local layers, then a global one"
    )
    assert not any(ModelConfig(**GOOD, **{"attention.window": 4}).attention.is_global(i) for i in range(4))
    assert all(ModelConfig(**GOOD).attention.is_global(i) for i in range(4))
    config = ModelConfig(**GOOD, scan_layers=False, moe={"num_experts": 2, "every": 2, "offset": 1})
    assert [config.moe.has_experts(i) for i in range(4)] == [False, True, False, True]
    assert not ModelConfig(**GOOD).moe.has_experts(0)


def reads() -> set[tuple[str, str]]:
    """Returns (owner, name) of every attribute that lmjax.model reads outside of rules; for `self`, its class."""
    found = set()
    for path in (pathlib.Path(lmjax.__file__).parent / "model").rglob("*.py"):
        tree = ast.parse(path.read_text())
        rules = {
            n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "_check" for n in ast.walk(f)
        }
        for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            for node in ast.walk(scope):
                if isinstance(node, ast.Attribute) and node not in rules:
                    owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                    found.add((getattr(scope, "name", "") if owner == "self" else owner, node.attr))
    return found


def test_every_field_of_a_group_is_read_from_its_group():
    """Short names such as `scale` occur in many groups, so each field must be read from its own group."""
    found = reads()
    for name, info in ModelConfig.model_fields.items():
        group = info.annotation
        if isinstance(group, type) and issubclass(group, Schema):
            # The rates are read through `DropoutRates`.
            owners = {name, group.__name__} | ({"rates"} if group is DropoutConfig else set())
            unread = [field for field in group.model_fields if not any((owner, field) in found for owner in owners)]
            assert not unread, f"nothing reads {unread} of {name}: knobs that turn nothing"


def test_configs_are_values():
    assert hash(ModelConfig(**GOOD)) == hash(ModelConfig(**GOOD))
    assert ModelConfig(**GOOD) == ModelConfig(**ModelConfig(**GOOD).model_dump())
    assert all(field.description for field in ModelConfig.model_fields.values()), "every field says what it is"
