"""Structured pruning: heads, MLP neurons, layers and rows of the token table leave, and the config gets smaller.

The result computes what the large model computes with these parts left out, by smaller products.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lmjax.compress.calibrate import Batch
from lmjax.compress.importance import gains, influence
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import abstract_params
from lmjax.model.parameter_paths import layer_of
from lmjax.model.parameters import axis_names, flat, unflat

PyTree = Any
# The fields of a config that structured pruning changes.
SIZES = ("num_heads", "num_kv_heads", "head_dim", "mlp_dim", "num_layers", "num_decoder_layers", "vocab_size")
_LEFT_OUT = ("backbone", "stack")
Parts = Mapping[str, np.ndarray]


class Smaller(NamedTuple):
    """A smaller model.

    Attributes:
        config: of the model, with unrolled layers.
        params: its parameters.
        kept: what was kept of each part, by name: heads, neurons or layers, by their numbers in the large model.
    """

    config: ModelConfig
    params: PyTree
    kept: Parts


# From the model, batches of texts and the share that leaves, to the smaller model.
Shrink = Callable[[LoadedModel, Sequence[Batch], float], Smaller]


def _left(count: int, amount: float) -> int:
    """Returns how many of `count` parts are kept: at least one."""
    return max(1, round(count * (1 - amount)))


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the numbers of the `count` highest scores, in order."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _modules(loaded: LoadedModel, kind: str) -> dict[str, str]:
    """Returns the paths of the modules of a kind in all layers, such as attention, and the names of their activations.

    Args:
        loaded: the model.
        kind: a regular expression for the name of the module.
    """
    found = {}
    for path in flat(loaded.params):
        names = path.split("/")
        if layer_of(tuple(names)) and (inner := next((i for i, n in enumerate(names) if re.fullmatch(kind, n)), None)):
            found["/".join(names[: inner + 1])] = "/".join(n for n in names[: inner + 1] if n not in _LEFT_OUT)
    return found


def _axes(loaded: LoadedModel) -> dict[str, tuple[str, ...]]:
    """Returns the axis names of the parameters by path."""
    return axis_names(abstract_params(loaded.config, loaded.model.heads))


def _taken(params: Mapping[str, Any], places: Mapping[str, tuple[int, np.ndarray]]) -> PyTree:
    """Returns parameters by path with only some places along an axis; those that are not named stay whole."""
    return unflat({p: jnp.take(x, places[p][1], axis=places[p][0]) if p in places else x for p, x in params.items()})


def without_heads(loaded: LoadedModel, given: Sequence[Batch], amount: float) -> Smaller:
    """Returns the model without the least important heads, as many in each layer (Michel et al. 2019).

    Query heads that share their keys and values leave together. Where all layers share one table of relative
    positions, they lose the same heads.

    Args:
        loaded: the model.
        given: batches of texts.
        amount: the share that leaves.

    Raises:
        FlagError: a head depends on the other ones.
    """
    config, names = loaded.config, _axes(loaded)
    counted = any(config.scheme(side.causal).counts_heads for side in config.family.sides)
    if config.attention.qk_norm == "full" or counted:
        raise FlagError(
            f"--method=heads: with qk_norm={config.attention.qk_norm} and positions={config.positions} a head depends"
            " on the number of the others; take --method=neurons or layers"
        )
    modules, shared = _modules(loaded, "(cross_)?attention"), config.num_heads // config.kv_heads
    found = gains(loaded, given, [f"{name}/heads" for name in modules.values()], 2)
    scores = {path: found[f"{name}/heads"].reshape(config.kv_heads, shared).sum(1) for path, name in modules.items()}
    tables = [path for path, axes in names.items() if "heads" in axes and not any(p in path for p in modules)]
    if tables:
        # Of norm one within each layer, as in section 2.4, so that no layer decides alone.
        together = sum(x / max(np.linalg.norm(x), 1e-30) for x in scores.values())
        scores = dict.fromkeys(scores, together)
    left = _left(config.kv_heads, amount)
    kept = {path: _best(x, left) for path, x in scores.items()}
    kept |= dict.fromkeys(tables, next(iter(kept.values())))
    places = {}
    for path, axes in names.items():
        groups = next((x for p, x in kept.items() if path == p or path.startswith(f"{p}/")), None)
        if groups is None:
            continue
        if "kv_heads" in axes:
            places[path] = axes.index("kv_heads"), groups
        elif "heads" in axes:
            places[path] = axes.index("heads"), (groups[:, None] * shared + np.arange(shared)[None]).ravel()
    fields = {"num_heads": left * shared, "head_dim": config.width_of_head}
    if config.num_kv_heads is not None:
        fields["num_kv_heads"] = left
    return Smaller(config.with_fields(fields), _taken(flat(loaded.params), places), kept)


def without_neurons(loaded: LoadedModel, given: Sequence[Batch], amount: float) -> Smaller:
    """Returns the model without the least important neurons of its MLPs, as many in each layer; arguments as above.

    Raises:
        FlagError: a layer has experts.
    """
    config, names, modules = loaded.config, _axes(loaded), _modules(loaded, "mlp")
    if config.moe.num_experts:
        raise FlagError(
            f"--method=neurons: the model has {config.moe.num_experts} experts; take --method=heads or layers"
        )
    found = gains(loaded, given, [f"{name}/hidden" for name in modules.values()], 2)
    left = _left(config.mlp_dim, amount)
    kept = {path: _best(found[f"{name}/hidden"], left) for path, name in modules.items()}
    places = {}
    for path, axes in names.items():
        chosen = next((x for p, x in kept.items() if path.startswith(f"{p}/")), None)
        if chosen is not None and "mlp" in axes:
            places[path] = axes.index("mlp"), chosen
    return Smaller(config.with_fields({"mlp_dim": left}), _taken(flat(loaded.params), places), kept)


def without_layers(loaded: LoadedModel, given: Sequence[Batch], amount: float) -> Smaller:
    """Returns the model without the layers that turn the residual stream least; arguments as above.

    Raises:
        FlagError: layers share their parameters, or differ by their number.
    """
    config = loaded.config
    differ = config.attention.global_every or not config.first_norm or (config.moe.num_experts and config.moe.every > 1)
    if config.share_layers or differ:
        raise FlagError(
            "--method=layers: the layers of this model share their parameters or differ by their number; take "
            "--method=heads or neurons"
        )
    paired, kept, fields = config.family.paired, {}, {}
    for side in config.family.sides:
        count = config.side_layers(side.causal)
        name = f"{side.prefix.removesuffix('_')}/" if paired else ""
        kept[name] = _best(influence(loaded, given, name, count), _left(count, amount))
        fields["num_decoder_layers" if paired and side.causal else "num_layers"] = len(kept[name])
    params = {}
    for path, x in flat(loaded.params).items():
        names = tuple(path.split("/"))
        layer = layer_of(names)
        if layer is None:
            params[path] = x
            continue
        side = next((name for name in kept if name and name.removesuffix("/") in layer.stack), "")
        if layer.number in (chosen := kept[side].tolist()):
            place = len(layer.stack)
            new = re.sub(r"\d+", str(chosen.index(layer.number)), names[place])
            params["/".join([*names[:place], new, *names[place + 1 :]])] = x
    return Smaller(config.with_fields(fields), unflat(params), kept)


def without_rows(loaded: LoadedModel, given: Sequence[Batch] = (), amount: float = 0.0) -> Smaller:
    """Returns the model without the rows of the token table that no token of its tokenizer has."""
    del given, amount
    config, names, rows = loaded.config, _axes(loaded), loaded.tokenizer.vocab_size
    places = {path: (axes.index("vocab"), np.arange(rows)) for path, axes in names.items() if "vocab" in axes}
    if rows >= config.vocab_size:
        raise FlagError(
            f"--method=vocabulary: each of the {config.vocab_size} rows has a token; there is none to leave out"
        )
    return Smaller(config.with_fields({"vocab_size": rows}), _taken(flat(loaded.params), places), {})
