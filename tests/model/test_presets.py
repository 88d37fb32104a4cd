"""Presets have the published sizes, to the parameter, and a known axis name on every dimension."""

import jax
import pytest
from flax import linen as nn

from lmjax.model.language_model import HEADS, LanguageModel, init_params
from lmjax.model.parameters import count_parameters
from lmjax.model.presets import PRESETS
from lmjax.parallel import axes


def _shapes(name, heads=None, **fields):
    config = PRESETS[name].model_copy(update=fields)
    heads = (HEADS if config.architecture == "encoder" else ()) if heads is None else heads
    return jax.eval_shape(lambda: init_params(LanguageModel(config, heads), jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "count"),
    [("bert_base", 110_106_428), ("gpt2", 124_439_808), ("t5_small", 60_506_624), ("t5_v1_1_small", 76_961_152)],
)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_published_parameter_counts(name, count, scan_layers):
    assert count_parameters(_shapes(name, scan_layers=scan_layers)) == count


def test_bert_with_its_pooler_alone():
    shapes = _shapes("bert_base", heads=("next_sentence",))
    classifier = count_parameters(shapes["next_sentence_head"]["classifier"])
    assert count_parameters(shapes) - classifier == 109_482_240


@pytest.mark.parametrize("name", PRESETS)
def test_every_dimension_has_a_known_axis_name(name):
    leaves = jax.tree.leaves(_shapes(name), is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    for leaf in leaves:
        assert len(leaf.names) == leaf.value.ndim
        assert None not in axes.check(leaf.names)
        used = [dict(axes.RULES)[axis] for axis in leaf.names if dict(axes.RULES)[axis]]
        assert len(used) == len(set(used)), f"{leaf.names} would split two dimensions over one mesh axis"


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("nano")])
def test_nano_models_fit_a_laptop(name):
    assert count_parameters(_shapes(name)) < 5_000_000
