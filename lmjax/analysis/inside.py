"""Inside a model that is ready for inference: records and replaces its activations by name.

`lmjax.model.intercept` has the glossary of the names. In a name to record, `*` stands for any part between slashes:
`layer_*/attention/weights` is recorded of all layers. Beside activations, the outputs of the model can be recorded:
`hidden`, `logits` if it predicts tokens, and those of its heads by name, such as `classifier`.

    found = record(model, ["The king sees"], ["layer_*", "logits"])
    outputs = patch(model, ["The king sees"], {"layer_1/mlp": lambda x: x * 0})
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.axes import RULES
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import longest_row
from lmjax.inference.texts import Texts
from lmjax.model import intercept
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import batch_sharding, batch_shards

PyTree = Any
# Texts, or the fields of a batch, `[batch, length]` each, as `lmjax.model.families` lists them.
Batch = Texts | Mapping[str, np.ndarray]
# The new value of an activation, or a function from the old to the new value.
Replacement = np.ndarray | jax.Array | Callable[[jax.Array], jax.Array]


def record(
    loaded: LoadedModel, batch: Batch, what: Sequence[str], *, targets: Texts | None = None
) -> dict[str, np.ndarray]:
    """Returns activations and outputs by name, in the order of `what`; floating-point ones as float32.

    Args:
        loaded: the model.
        batch: texts, each a row of its own, padded at its end to a common length; or the fields of a batch.
        what: names or patterns.
        targets: of texts for an encoder-decoder, as for a call of the model.

    Raises:
        FlagError: no activation has a name of `what`, or the model cannot read the batch.
    """
    return patch(loaded, batch, {}, what, targets=targets)


def patch(
    loaded: LoadedModel,
    batch: Batch,
    changes: Mapping[str, Replacement],
    what: Sequence[str] | None = None,
    *,
    targets: Texts | None = None,
) -> dict[str, np.ndarray]:
    """Returns the outputs of the model by name with activations replaced; without changes, equal to those of a call.

    Args:
        loaded: the model.
        batch: as for `record`.
        changes: by name of the activation its new value, of the same shape or `[1, ...]` for all rows; or a function
            from its value to that, which is traced.
        what: names or patterns to return; None: all outputs.
        targets: as for `record`.

    Raises:
        FlagError: as of `record`, or a value has another shape than its activation.
    """
    fields, count = fields_of(loaded, batch, targets)
    inner, outer = shapes(loaded, fields)
    chosen = list(outer) if what is None else matching(what, [*inner, *outer])
    given, functions = {}, []
    for name, change in changes.items():
        matching([name], inner)
        if callable(change):
            functions.append((name, change))
        else:
            given[name] = _fitting(name, np.asarray(change), inner[name], count)
    with loaded.on_devices():
        device = jax.device_put(fields, batch_sharding(loaded.mesh))
        recorded = frozenset(name for name in chosen if name in inner)
        try:
            found = _run(loaded.model, loaded.params, device, given, recorded, tuple(chosen), tuple(functions))
        except ValueError as e:
            raise FlagError(str(e)) from e
    # An activation of the positions alone has one row for all texts.
    return {name: np.asarray(found[name])[:count] for name in chosen}


def shapes(
    loaded: LoadedModel, fields: Mapping[str, np.ndarray]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Returns the shapes of a batch's activations by name, in the order in which they are computed, and of outputs."""
    leaves, tree = jax.tree.flatten(loaded.params)
    params = tree, tuple(_size(x) for x in leaves)
    return _shapes(loaded.model, loaded.mesh, params, tuple((name, _size(x)) for name, x in fields.items()))


def _size(x: np.ndarray | jax.Array) -> tuple[tuple[int, ...], np.dtype]:
    return x.shape, np.dtype(x.dtype)


# To trace a model takes longer than a forward pass of a short text.
@functools.lru_cache(maxsize=32)
def _shapes(
    model: LanguageModel, mesh: jax.sharding.Mesh, params: tuple[Any, ...], fields: tuple[Any, ...]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Returns the result of `shapes`, given the shapes and dtypes of parameters and fields. Do not change it."""
    tree, leaves = params
    made = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*x) for x in leaves])
    batch = {name: jax.ShapeDtypeStruct(*x) for name, x in fields}
    method = LanguageModel.outputs
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        names = intercept.names(model, made, batch, method=method)
        outer, inner = jax.eval_shape(
            lambda params, fields: intercept.record(model, params, fields, names, method=method), made, batch
        )
    return {name: inner[name].shape for name in names}, {name: x.shape for name, x in outer.items()}


def fields_of(loaded: LoadedModel, batch: Batch, targets: Texts | None = None) -> tuple[dict[str, np.ndarray], int]:
    """Returns the fields of a batch and its number of rows, which are more in the fields if the mesh needs that.

    Raises:
        FlagError: the model cannot read the batch.
    """
    if not isinstance(batch, Mapping):
        rows = 1 if isinstance(batch, str) or isinstance(batch[0], int | np.integer | Mapping) else len(batch)
        return loaded.rows(batch, targets), rows
    needed = {f"{side.prefix}tokens" for side in loaded.config.family.sides}
    if missing := sorted(needed - batch.keys()):
        raise FlagError(f"batch: has no field {missing[0]!r}; this {loaded.config.family.label} reads {sorted(needed)}")
    fields = {name: np.asarray(x) for name, x in batch.items()}
    rows = len(next(iter(fields.values())))
    more = -rows % batch_shards(loaded.mesh)
    return {name: np.concatenate([x, np.repeat(x[-1:], more, axis=0)]) for name, x in fields.items()}, rows


def cut_rows(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of texts in the prompt format, cut at the length of the rows that read them."""
    family = loaded.config.family
    limit = longest_row(loaded.config, decoder=family.causal and not family.paired)
    return [ids[:limit] for ids in loaded.encode(list(texts))]


def role_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Returns the ids that stand for no text, such as those of the beginning and of padding; an unknown token does."""
    return frozenset(i for role, i in loaded.tokenizer.role_ids.items() if role != "unk")


def matching(what: Sequence[str], names: Iterable[str]) -> list[str]:
    """Returns the names that match a list of names and patterns, each once.

    Raises:
        FlagError: a pattern matches none.
    """
    if isinstance(what, str):
        raise FlagError(f"what={what!r} is one text; give a list of names, such as [{what!r}]")
    names, found = list(names), {}
    for pattern in what:
        parts = str(pattern).split("/")
        mine = [
            name
            for name in names
            if len(split := name.split("/")) == len(parts) and all(map(fnmatch.fnmatchcase, split, parts))
        ]
        if not mine:
            near = difflib.get_close_matches(str(pattern), names) or names
            raise FlagError(f"no activation is called {pattern!r}; there are {', '.join(near)}")
        found |= dict.fromkeys(mine)
    return list(found)


@functools.partial(jax.jit, static_argnames=("model", "recorded", "chosen", "functions"))
def _run(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    values: Mapping[str, jax.Array],
    recorded: frozenset[str],
    chosen: tuple[str, ...],
    functions: tuple[tuple[str, Callable[[jax.Array], jax.Array]], ...],
) -> dict[str, jax.Array]:
    """Returns the chosen outputs and activations, with activations replaced by values and by functions.

    Outputs that are not chosen, such as the logits of a large vocabulary, are not computed.
    """
    changes = dict(functions) | {
        name: lambda x, new=new: jnp.broadcast_to(new, x.shape).astype(x.dtype) for name, new in values.items()
    }
    outputs, found = intercept.record(model, params, fields, recorded, changes=changes, method=LanguageModel.outputs)
    every = {name: (outputs | found)[name] for name in chosen}
    return {n: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x for n, x in every.items()}


def _fitting(name: str, value: np.ndarray, shape: tuple[int, ...], rows: int) -> np.ndarray:
    """Returns a new value with as many rows as the activation, or one; raises FlagError if the shapes differ."""
    wanted = (rows if shape[0] >= rows else shape[0], *shape[1:])
    if value.shape == (1, *shape[1:]):
        return value
    if value.shape != wanted:
        raise FlagError(f"{name!r} has the shape {wanted}, and its replacement has {value.shape}; give that shape")
    return np.concatenate([value, np.zeros((shape[0] - wanted[0], *shape[1:]), value.dtype)])
