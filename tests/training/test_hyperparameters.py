"""The optimizer's config: what is refused, and that every number of it is traced."""

import jax
import jax.numpy as jnp
import pydantic
import pytest

from lmjax.model.config import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"group_patterns": ("a",)}, "group_patterns has 1 and group_factors 0"),
        ({"group_patterns": ("(",), "group_factors": (1.0,)}, "no regular expression"),
        ({"schedule": "joined"}, "takes schedules and as many shares"),
        ({"schedule": "joined", "schedules": ("cosine",), "shares": (1, 2)}, "takes schedules and as many shares"),
        ({"schedules": ("cosine",), "shares": (1,)}, "schedule=cosine"),
        ({"name": "schedule_free"}, r"takes schedule=constant \(given: cosine\)"),
    ],
)
def test_what_cannot_work_is_refused_in_words(fields, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        OptimizerConfig(**fields)


def test_every_number_is_a_float32_array_and_what_is_off_is_none():
    config = OptimizerConfig(clip_norm=None, group_patterns=("a", "b"), group_factors=(0.5, 0))
    h = Hyperparameters.build(config, steps=7, dropout=DropoutRates(), loss_weights={"mlm": 1.0})
    assert {x.dtype for x in jax.tree.leaves(h)} == {jnp.dtype("float32")}
    assert (h.clip_norm, h.ema_decay, h.spike_factor) == (None, None, None)
    assert h.group_factors.shape == (2,)
    numbers = {n for n, f in OptimizerConfig.model_fields.items() if f.annotation in (float, float | None)}
    assert numbers <= set(Hyperparameters.__dataclass_fields__), "a number that is a constant of the program"
