"""A config that cannot be built says which field, its value and the remedy; derived values follow their definitions."""

import jax
import pydantic
import pytest

from lmjax.model.config import ModelConfig

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
        ({"positions": "relative", "relative_max_distance": 16}, ("relative_max_distance=16", "relative_buckets=32")),
        ({"num_decoder_layers": 2}, ("num_decoder_layers=2", "encoder_decoder", "num_layers")),
        ({"architecture": "encoder_decoder", "num_types": 2}, ("num_types=2", "num_types=0")),
        ({"logit_scale": True, "tie_embeddings": False}, ("logit_scale=True", "tie_embeddings=True")),
        ({"mlm_transform": True}, ("mlm_transform=True", "decoder", "mlm_transform=False")),
        ({"dropout_rate": 1.0}, ("dropout_rate", "less than 1")),
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
    assert (config.kv_heads, config.width_of_head, config.decoder_layers) == (4, 4, 2)
    config = ModelConfig(
        **(GOOD | {"architecture": "encoder_decoder", "num_kv_heads": 2, "head_dim": 6}), num_decoder_layers=5
    )
    assert (config.kv_heads, config.width_of_head, config.decoder_layers) == (2, 6, 5)


def test_a_rate_of_zero_is_compiled_out_and_any_other_is_data():
    rates = ModelConfig(**GOOD, dropout_rate=0.25, output_dropout_rate=0.5).dropout_rates()
    assert rates.attention is None
    assert rates.mlp is None
    assert [(float(leaf), leaf.dtype.name) for leaf in jax.tree.leaves(rates)] == [(0.25, "float32"), (0.5, "float32")]


def test_configs_are_values():
    assert hash(ModelConfig(**GOOD)) == hash(ModelConfig(**GOOD))
    assert ModelConfig(**GOOD) == ModelConfig(**ModelConfig(**GOOD).model_dump())
    assert all(field.description for field in ModelConfig.model_fields.values()), "every field says what it is"
