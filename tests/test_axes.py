"""The glossary and the table of rules have the same names, and other names are an error."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from lmjax import axes


def test_every_rule_is_in_the_glossary_and_names_mesh_axes():
    for name, rule in axes.RULES:
        assert f"\n    {name} " in axes.__doc__, f"{name} is not explained"
        for mesh_axis in (rule,) if isinstance(rule, str) else rule or ():
            assert mesh_axis in axes.MESH_AXES


def test_an_unknown_name_is_an_error_where_linen_would_be_silent():
    with pytest.raises(ValueError, match=r"'embd'.*embed"):
        axes.constrain(jnp.zeros((2, 2)), ("act_batch", "embd"))
    with pytest.raises(ValueError, match="'headz'"):
        axes.partitioned(nn.initializers.zeros, ("headz",))
