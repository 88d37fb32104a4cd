"""Groups of parameters by path: matrices, weight decay, and learning rates by pattern and by layer, scanned or not."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.model import parameter_paths
from lmjax.model.config import ModelConfig
from lmjax.model.dropout import DropoutRates
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameter_paths import is_hidden_matrix, is_matrix, map_named, matrix_shape, names_of
from lmjax.model.presets import PRESETS
from lmjax.training.groups import check_groups, decay_mask, is_frozen, rate_factors
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig


def shapes(**fields):
    """Returns the shapes of a small model's parameters by path."""
    sizes = {"vocab_size": 64, "embed_dim": 8, "num_heads": 2, "mlp_dim": 32, "num_layers": 3, "max_length": 16}
    model = LanguageModel(ModelConfig(**(sizes | {"architecture": "decoder"} | fields)))
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return flat(map_named(lambda names, x: jax.ShapeDtypeStruct(x.shape, x.dtype), boxed))


def tree(paths):
    """Returns nested dictionaries from values by path."""
    result = {}
    for path, leaf in paths.items():
        *parents, last = path.split("/")
        here = result
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = leaf
    return result


def flat(nested):
    """Returns values by path from nested dictionaries."""
    return {"/".join(names_of(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}


def factors(paths, **fields):
    """Returns the factors of every path as a list, with one factor for each stacked layer."""
    config = OptimizerConfig(**fields)
    h = Hyperparameters.build(config, steps=1, dropout=DropoutRates(), loss_weights={})
    found = rate_factors(config, h, tree(paths))
    return {path: np.asarray(x).reshape(-1).tolist() for path, x in flat(found).items()}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_kernels_of_layers_are_matrices_from_inputs_to_outputs(scan_layers):
    paths = shapes(scan_layers=scan_layers, **{"head.tied": False})
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


# Every kind of parameter by the end of its path: whether it decays, whether it is a matrix, whether it is a kernel of
# a layer (for muon), and its depth for layer decay: its own layer, the lowest one, below the layers or above them.
KINDS = {
    r"(attention|cross_attention)/(query|key|value|out)/kernel": (True, True, True, "layer"),
    r"mlp/(up|gate|down)/kernel": (True, True, True, "layer"),
    r"moe/(up|gate|down)/kernel": (True, True, True, "layer"),
    r"router/kernel": (True, True, False, "layer"),
    r"(attention|cross_attention)/(query|key|value|out)/bias": (False, False, False, "layer"),
    r"(mlp|moe)/(up|gate|down)/bias": (False, False, False, "layer"),
    r"(query|key|block)_norm/(scale|bias)": (False, False, False, "layer"),
    r"(attention|cross_attention|mlp)(_output)?_norm/(scale|bias)": (False, False, False, "layer"),
    r"sink_logits": (False, False, False, "layer"),
    r"layer[^/]*/(cross_|block_)?relative_bias/table": (False, False, False, "layer"),
    r"stack/(cross_|block_)?relative_bias/table": (False, False, False, "lowest"),
    r"embedding/table": (True, True, False, "below"),
    r"inputs/(positions|types)/table": (True, True, False, "below"),
    r"inputs/norm/(scale|bias)": (False, False, False, "below"),
    r"project_in/kernel": (True, True, False, "below"),
    r"project_in/bias": (False, False, False, "below"),
    r"stack/final_norm/(scale|bias)": (False, False, False, "above"),
    r"(project_out|output)/kernel": (True, True, False, "above"),
    r"(project_out/|output_)bias": (False, False, False, "above"),
    r"(\w+_head/\w+|transform/dense)/kernel": (True, True, False, "above"),
    r"(\w+_head/\w+|transform/dense)/bias": (False, False, False, "above"),
    r"transform/norm/(scale|bias)": (False, False, False, "above"),
}
HEADS_OF = {"encoder": ("masked_lm", "next_sentence", "replaced_token", "pooler", "classifier", "tagger", "span")}
EXTRA = {
    "relative_per_layer": {"architecture": "encoder_decoder", "positions": "relative", "cross_positions": "relative",
                           "relative": {"per_layer": True}},
    "relative_across": {"architecture": "encoder_decoder", "positions": "relative", "cross_positions": "relative"},
    "sinks": {"attention.sink_logits": True, "attention.qk_norm": "head"},
    "factorised": {"embedding.dim": 4},
    "experts": {"moe": {"num_experts": 4, "top_k": 2}},
}  # fmt: skip


def small(config):
    """Returns the config with two layers, or one shared layer."""
    sizes = {"num_layers": 2, "vocab_size": config.vocab_size or 64}
    return config.model_copy(update=sizes | ({"num_decoder_layers": 2} if config.num_decoder_layers else {}))


@functools.cache
def parameters_of(name):
    """Returns the shapes of a preset's parameters by path, or those of a model with a part that no preset has."""
    if name in EXTRA:
        return shapes(**(EXTRA[name] | {"num_layers": 2}))
    config = small(PRESETS[name])
    model = LanguageModel(config, HEADS_OF.get(config.architecture, ()))
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return flat(map_named(lambda names, x: jax.ShapeDtypeStruct(x.shape, x.dtype), boxed))


def kind_of(path):
    """Returns the only row of the table that matches a path; rows for layers match only paths inside layers."""
    in_layer = re.search(r"/(layers|layer_\d+|shared_layer)/", path) is not None
    found = [p for p in KINDS if re.fullmatch(f"(.*/)?{p}", path) and (KINDS[p][3] == "layer") == in_layer]
    assert len(found) == 1, f"{path}: matches {found}; add this kind of parameter to KINDS"
    return found[0]


@pytest.mark.parametrize("name", [*PRESETS, *EXTRA])
def test_what_decays_what_is_a_matrix_and_how_deep_it_stands(name):
    """Checks every parameter of every preset against an explicit table; a new kind of parameter needs a row there."""
    paths = parameters_of(name)
    decays = flat(decay_mask(tree(paths)))
    found_factors = factors(paths, layer_decay=0.5)
    layers = 1 if any("shared_layer" in path for path in paths) else 2
    for path in paths:
        names = tuple(path.split("/"))
        decay, matrix, hidden, place = KINDS[kind_of(path)]
        assert (decays[path], is_matrix(names), is_hidden_matrix(names)) == (decay, matrix, hidden), path
        expected = {"below": [0.5 ** (layers + 1)], "lowest": [0.5**layers], "above": [1.0]}
        if place != "layer":
            assert found_factors[path] == expected[place], path
        elif "layers" in names:
            assert found_factors[path] == [0.25, 0.5], path
        else:
            assert found_factors[path] == [0.25 if "layer_0" in names else 0.5], path


def test_every_kind_of_parameter_exists():
    """A row of the table that matches no parameter would test nothing."""
    assert {kind_of(path) for name in [*PRESETS, *EXTRA] for path in parameters_of(name)} == set(KINDS)


def test_every_name_is_that_of_a_part_of_some_model():
    """A name that no parameter has would match nothing, and the rule that uses it would have no effect."""
    named = {value for key, value in vars(parameter_paths).items() if key.isupper() and isinstance(value, str)}
    named = {f"{name}0" if name == parameter_paths.UNROLLED else name.format(i=0) for name in named}
    named |= parameter_paths.BELOW_LAYERS
    trees = [*map(parameters_of, [*PRESETS, *EXTRA]), shapes(scan_layers=False)]
    paths = {f"/{path}" for tree in trees for path in tree}
    assert not [name for name in sorted(named) if not any(f"/{name}/" in path for path in paths)]


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
    tables = {p: x for p, x in scanned.items() if p.endswith("table")}
    assert tables == {p: [0.125 if "relative_bias" in p else 0.0625] for p in tables}
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
