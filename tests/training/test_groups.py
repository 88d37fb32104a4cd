"""Parameters by path: matrices, decay, and learning rates by pattern and by depth, scanned or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.model.config import DropoutRates, ModelConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.training.groups import (
    check_groups,
    decay_mask,
    is_frozen,
    is_hidden_matrix,
    map_named,
    matrix_shape,
    names_of,
    rate_factors,
)
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig


def shapes(**fields):
    """Returns shapes by path of a small model of any family."""
    sizes = {"vocab_size": 64, "embed_dim": 8, "num_heads": 2, "mlp_dim": 32, "num_layers": 3, "max_length": 16}
    model = LanguageModel(ModelConfig(**(sizes | {"architecture": "decoder"} | fields)))
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    plain = map_named(lambda names, x: jax.ShapeDtypeStruct(x.shape, x.dtype), boxed)
    return {"/".join(names_of(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(plain)}


def tree(paths):
    """Returns arrays by path as nested dictionaries."""
    result = {}
    for path, leaf in paths.items():
        *parents, last = path.split("/")
        here = result
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = leaf
    return result


def factors(paths, **fields):
    """Returns the factor of every path, stacked layers as lists."""
    config = OptimizerConfig(**fields)
    h = Hyperparameters.build(config, steps=1, dropout=DropoutRates(), loss_weights={})
    found = rate_factors(config, h, tree(paths))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {"/".join(names_of(path)): np.asarray(x).reshape(-1).tolist() for path, x in leaves}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_kernels_of_layers_are_matrices_from_inputs_to_outputs(scan_layers):
    paths = shapes(scan_layers=scan_layers, tie_embeddings=False)
    hidden = {p: matrix_shape(tuple(p.split("/")), x.shape) for p, x in paths.items() if is_hidden_matrix(p.split("/"))}
    layers = 3 if scan_layers else 1
    expected = {"query": (8, 8), "key": (8, 8), "value": (8, 8), "out": (8, 8), "up": (8, 32), "down": (32, 8)}
    for path, found in hidden.items():
        assert found == (layers, *expected[path.split("/")[-2]]), path
    assert len(hidden) == len(expected) * (1 if scan_layers else 3)
    assert not [p for p in hidden if "embedding" in p or "output" in p or "positions" in p]


def test_experts_are_a_matrix_each_and_the_router_is_no_hidden_one():
    assert matrix_shape(("layers", "mlp", "up", "kernel"), (3, 4, 8, 32)) == (12, 8, 32)
    assert not is_hidden_matrix(("layers", "mlp", "router", "kernel"))
    assert is_hidden_matrix(("stack", "shared_layer", "mlp", "up", "kernel"))


def test_decay_leaves_vectors_of_biases_and_norms_alone():
    params = {"a": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}, "embedding": {"table": 4}, "output_bias": 5}
    assert decay_mask(params) == {
        "a": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "embedding": {"table": True},
        "output_bias": False,
    }
    assert decay_mask({"relative_bias": {"table": 1}}) == {"relative_bias": {"table": True}}


def test_the_first_pattern_that_matches_counts():
    paths = shapes()
    groups = {"group_patterns": ("embedding", ".*norm.*", "kernel$"), "group_factors": (0.1, 0, 0.5)}
    found = factors(paths, **groups)
    assert found["embedding/table"] == [pytest.approx(0.1)]
    assert found["backbone/stack/final_norm/scale"] == [0.0]
    assert found["backbone/stack/layers/mlp/up/kernel"] == [0.5]
    assert found["backbone/stack/layers/mlp/up/bias"] == [1.0]
    assert is_frozen(OptimizerConfig(**groups), ("stack", "final_norm", "scale"))
    assert not is_frozen(OptimizerConfig(**groups), ("embedding", "table"))


def test_a_pattern_that_matches_nothing_names_the_nearest_path():
    params = tree(shapes())
    with pytest.raises(FlagError, match=r"'embeding' matches no parameter; the nearest is embedding/table"):
        check_groups(OptimizerConfig(group_patterns=("embeding",), group_factors=(0.5,)), params)
    with pytest.raises(FlagError, match="freezes every parameter"):
        check_groups(OptimizerConfig(group_patterns=(".",), group_factors=(0,)), params)


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_layer_decay_falls_from_the_top_to_the_embeddings(positions):
    scanned = factors(shapes(positions=positions), layer_decay=0.5)
    assert scanned["backbone/stack/layers/mlp/up/kernel"] == [0.125, 0.25, 0.5]
    assert scanned["backbone/stack/final_norm/scale"] == [1.0]
    assert {p: x for p, x in scanned.items() if p.endswith("table")} == {
        p: [0.0625] for p in scanned if p.endswith("table")
    }
    unrolled = factors(shapes(positions=positions, scan_layers=False), layer_decay=0.5)
    for path, found in unrolled.items():
        name = next((n for n in path.split("/") if n.startswith("layer_")), None)
        expected = scanned[path.replace(name, "layers") if name else path]
        assert found == [expected[int(name[-1])] if name else expected[0]], path


def test_a_layer_that_all_share_is_one_layer():
    assert factors({"stack/shared_layer/mlp/up/kernel": jnp.ones((2, 2))}, layer_decay=0.5) == {
        "stack/shared_layer/mlp/up/kernel": [0.5]
    }


def test_scanned_layers_get_a_factor_that_fits_their_shape():
    config = OptimizerConfig(layer_decay=0.5)
    h = Hyperparameters.build(config, steps=1, dropout=DropoutRates(), loss_weights={})
    leaf = jnp.ones((3, 4, 2))
    found = rate_factors(config, h, {"layers": {"kernel": leaf}})["layers"]["kernel"]
    np.testing.assert_array_equal((found * leaf)[:, 0, 0], [0.125, 0.25, 0.5])
