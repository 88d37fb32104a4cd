"""The optimizer's config: its errors, and that all of its numbers are traced."""

import jax
import jax.numpy as jnp
import pydantic
import pytest

from lmjax.model.dropout import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.optimizers import OPTIMIZERS


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"group_patterns": ("a",)}, "group_patterns has 1 and group_factors 0"),
        ({"group_patterns": ("(",), "group_factors": (1.0,)}, "no regular expression"),
        ({"schedule": "joined"}, "takes schedules and as many shares"),
        (
            {"schedule": "joined", "joined": {"schedules": ("cosine",), "shares": (1, 2)}},
            "takes schedules and as many shares",
        ),
        ({"joined": {"schedules": ("cosine",), "shares": (1,)}}, "schedule=cosine"),
        ({"name": "schedule_free"}, r"name=schedule_free takes schedule=constant \(given: cosine\)"),
        ({"beta2": 0.9}, r"beta2 is now adamw\.beta2 or adam\.beta2 or lion\.beta2"),
        ({"muon_rms": 0.1}, r"muon_rms is now muon\.rms"),
    ],
)
def test_what_cannot_work_is_refused_in_words(fields, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        OptimizerConfig(**fields)


def test_every_number_is_a_float32_array_and_what_is_off_is_none():
    config = OptimizerConfig(clip_norm=None, group_patterns=("a", "b"), group_factors=(0.5, 0))
    h = Hyperparameters.build(config, steps=7, dropout=DropoutRates(), loss_weights={"mlm": 1.0})
    assert {x.dtype for x in jax.tree.leaves(h)} == {jnp.dtype("float32")}
    n = h.optimizer
    assert (n.clip_norm, n.ema_decay, n.spike_factor) == (None, None, None)
    assert n.group_factors.shape == (2,)


def floats(schema, prefix=""):
    """Yields the paths of fields of floats, of several floats, or of a float or None."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from floats(field.annotation, f"{prefix}.{name}")
        elif "float" in str(field.annotation) and "Literal" not in str(field.annotation):
            yield f"{prefix}.{name}"


def test_the_numbers_stand_where_the_config_has_them():
    """A number that is left out would be a constant of the program, and every new value would need a compilation."""
    config = OptimizerConfig()
    h = Hyperparameters.build(config, steps=7, dropout=DropoutRates(), loss_weights={})
    paths = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(h.optimizer)}
    named = set(floats(OptimizerConfig)) | {
        ".warmup_steps",
        ".sophia.curvature_every",
        ".spike_warmup",
        ".average_every",
    }
    # Of the first, only the number of steps that follows from it is traced; without the second, no zeros are computed.
    named -= {".warmup_share", ".sparsity.amount"}
    assert named == {*paths, ".ema_decay", ".spike_factor"}, "the last two are None, and so no leaves"
    assert float(paths[".sophia.gamma"]) == pytest.approx(config.sophia.gamma)
    for group in (config, config.sophia):
        assert hash(group), "a config must be hashable to be a static argument"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_defaults_of_every_optimizer_are_its_own(name):
    """The defaults are those from before the fields were grouped; another default would change runs unnoticed."""
    defaults = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "momentum": 0.95, "nesterov": True, "rms": 0.2}
    defaults |= {"decay_exponent": 0.8, "factor_from": 128, "update_clip": 1.0, "parameter_scale": True, "gamma": 0.05}
    defaults |= {"curvature_every": 10, "moment_dtype": "float32"}
    group = getattr(OptimizerConfig(), name).model_dump()
    assert group == {field: defaults[field] for field in group}
