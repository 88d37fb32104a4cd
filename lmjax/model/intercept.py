"""Records or replaces named activations while a model reads a batch.

An activation is the output of a module, and its name is the module's path in the model, without `backbone` and `stack`.
In layer 3 these are

| name | activation |
|---|---|
| `layer_3` | the residual stream after the layer |
| `layer_3/attention`, `layer_3/cross_attention` | the output of the branch, before its output norm and dropout |
| `layer_3/mlp`, with experts `layer_3/moe` | the same |
| `layer_3/attention/weights` | float32 `[batch, heads, queries, keys]`: attention probabilities, without dropout |
| `layer_3/attention/query`, `layer_3/mlp_norm`, ... | the output of any module in the layer |

and outside the layers `inputs` (the input embeddings) and `final_norm`. In an encoder-decoder the names start with
`encoder/` or `decoder/`. Layers that share parameters have a name each. `names` lists all names.

Flax calls the functions of this file at each module (`flax.linen.intercept_methods`), so the modules need no change.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.attention import Attention, Relation
from lmjax.model.families import Batch, EncoderDecoder, Side
from lmjax.model.kernels.softmax import probabilities
from lmjax.model.language_model import LanguageModel
from lmjax.model.parameter_paths import BACKBONE, STACK_NAME, UNROLLED
from lmjax.model.transformer import Block, Stack

PyTree = Any
Change = Callable[[jax.Array], jax.Array]

_LEFT_OUT = (BACKBONE, STACK_NAME)


def names(model: LanguageModel, params: PyTree, batch: Batch, *, method: str | None = None) -> list[str]:
    """Returns the names of all activations that `record` can record, in the order in which they are computed.

    Args:
        model: with unrolled layers.
        params: parameters of the model, or their shapes.
        batch: as for a call of the model, or its shapes.
        method: name of the model's method; None: its call.
    """
    visitor = _Visitor((), {})
    jax.eval_shape(lambda params, batch: _apply(visitor, model, params, batch, method), params, batch)
    return list(visitor.calls)


def record(
    model: LanguageModel,
    params: PyTree,
    batch: Batch,
    names: Collection[str],
    *,
    changes: Mapping[str, Change] | None = None,
    method: str | None = None,
) -> tuple[PyTree, dict[str, jax.Array]]:
    """Returns the model's output for a batch, and the named activations by name; can be called under jit.

    Args:
        model: with unrolled layers, without remat.
        params: of the model.
        batch: as for a call of the model.
        names: activations to record; the residual stream and the branches are `[batch, length, embed]`.
        changes: by name, functions from an activation to its replacement, of the same shape. The replacement is
            recorded.
        method: name of the model's method; None: its call, which returns hidden states.

    Raises:
        ValueError: a name is unknown, or is computed more than once; layers are scanned or recomputed; a replacement
            has another shape.
    """
    visitor = _Visitor(names, {} if changes is None else changes)
    outputs = _apply(visitor, model, params, batch, method)
    visitor.check()
    return outputs, visitor.found


def replace(
    model: LanguageModel, params: PyTree, batch: Batch, changes: Mapping[str, Change], *, method: str | None = None
) -> PyTree:
    """Returns the model's output for a batch with activations replaced; arguments and errors as of `record`."""
    return record(model, params, batch, (), changes=changes, method=method)[0]


@contextlib.contextmanager
def recording(names: Collection[str]) -> Iterator[dict[str, jax.Array]]:
    """Gives a dict in which the named activations of the models that are applied in this context are found by name.

    The layers must be unrolled and not recomputed, as for `record`. If several models are applied, or one several
    times, the last one counts.
    """
    visitor = _Visitor(names, {})
    with nn.intercept_methods(visitor):
        yield visitor.found


def _apply(visitor: _Visitor, model: LanguageModel, params: PyTree, batch: Batch, method: str | None) -> PyTree:
    """Returns the model's output; Flax calls the visitor at each module."""
    config = model.config
    if config.scan_layers or config.remat != "none":
        raise ValueError(
            f"scan_layers={config.scan_layers} and remat={config.remat!r}: activations can be recorded only in unrolled"
            " layers that are not recomputed; set scan_layers=False and remat='none', and convert the parameters of"
            " scanned layers by lmjax.model.transformer.unstack_layers"
        )
    with nn.intercept_methods(visitor):
        return model.apply({"params": params}, batch, method=method)


class _Visitor:
    """The function that Flax calls instead of each method of each module.

    Attributes:
        calls: how often each activation was computed, by name.
        found: the recorded activations, by name.
    """

    def __init__(self, names: Collection[str], changes: Mapping[str, Change]):
        """Takes the names to record, and the changes by name."""
        self._names, self._changes = frozenset(names), changes
        self._layer: tuple[tuple[str, ...], str] = ((), "")
        self.calls: dict[str, int] = {}
        self.found: dict[str, jax.Array] = {}

    def __call__(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Returns the output of the method, with the activation replaced if there is a change for it."""
        module = context.module
        if isinstance(module, Attention) and context.method_name == "weigh":
            return self._weighed(method, module, *args)
        if context.method_name != "__call__" or isinstance(module, Stack | Side | EncoderDecoder):
            return method(*args, **kwargs)
        if isinstance(module, Block):
            # Layers that share parameters are one module; the layer's number is an argument of its call.
            self._layer = module.path, f"{UNROLLED}{args[2]}"
        name = self._name(module.path)
        result = method(*args, **kwargs)
        # Blocks and attentions return a tuple of the activation and the cache.
        value, *rest = result if isinstance(result, tuple) else (result,)
        if name is None or not isinstance(value, jax.Array):
            return result
        value = self._seen(name, value)
        return (value, *rest) if isinstance(result, tuple) else value

    def _seen(self, name: str, value: jax.Array) -> jax.Array:
        """Returns an activation or its replacement, and records it if its name is among those to record."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if name in self._changes:
            value = _same_shape(name, value, self._changes[name](value))
        if name in self._names:
            self.found[name] = value
        return value

    def _weighed(
        self,
        method: Callable[..., jax.Array],
        module: Attention,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        relation: Relation,
        sink_logits: jax.Array | None,
        dropout_rate: jax.Array | None,
    ) -> jax.Array:
        """Returns the output of `Attention.weigh`.

        Kernels do not return the attention probabilities, so they are computed here if they are recorded or changed.
        """
        name = self._name(module.path)
        name = None if name is None else f"{name}/weights"
        if name not in self._names and name not in self._changes:
            if name is not None:
                self.calls[name] = self.calls.get(name, 0) + 1
            return method(query, key, value, relation, sink_logits, dropout_rate)
        config = module.config
        weights = self._seen(
            name,
            probabilities(
                query,
                key,
                mask=relation.mask,
                bias=relation.bias,
                scale=config.score_scale,
                softcap=config.attention.softcap,
                sink_logits=sink_logits,
            ),
        )
        if name not in self._changes:
            return method(query, key, value, relation, sink_logits, dropout_rate)
        value = jnp.repeat(value, query.shape[2] // value.shape[2], axis=2)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).astype(value.dtype)

    def _name(self, path: tuple[str, ...]) -> str | None:
        """Returns the name of the activation of the module at a path; None: the module is not in a backbone."""
        if BACKBONE not in path:
            return None
        block, layer = self._layer
        if block and path[: len(block)] == block:
            path = (*block[:-1], layer, *path[len(block) :])
        return "/".join(part for part in path if part not in _LEFT_OUT)

    def check(self) -> None:
        """Raises ValueError for a name to record or to change that does not name exactly one activation."""
        for name in (*self._names, *self._changes):
            count = self.calls.get(name, 0)
            if count > 1:
                raise ValueError(
                    f"{name!r} is computed {count} times; give the name of an activation that is computed once"
                )
            if count == 0:
                near = difflib.get_close_matches(name, self.calls) or list(self.calls)
                raise ValueError(f"no activation is called {name!r}; there are {', '.join(near)}")


def _same_shape(name: str, old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns the new activation with the dtype of the old one; raises ValueError if their shapes differ."""
    if jnp.shape(new) != old.shape:
        raise ValueError(
            f"{name!r} has the shape {old.shape}, and its change gives {jnp.shape(new)}; return that shape"
        )
    return jnp.asarray(new, old.dtype)
