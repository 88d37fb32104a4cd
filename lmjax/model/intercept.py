"""Activations by name: recorded, or replaced, while a model reads a batch.

A name is the path of a module in the model without `backbone` and `stack`, which say nothing more, and an activation is
what that module returns. In layer 3 these are

| name | activation |
|---|---|
| `layer_3` | the residual stream behind the layer |
| `layer_3/attention`, `layer_3/cross_attention` | of a branch, before dropout and the norm of an output |
| `layer_3/mlp`, with experts `layer_3/moe` | the same |
| `layer_3/attention/weights` | float32 `[batch, heads, queries, keys]`: the weights of the values, without dropout |
| `layer_3/attention/query`, `layer_3/mlp_norm`, ... | of any module inside |

and beside the layers `inputs` (what the embeddings give) and `final_norm`. An encoder-decoder has `encoder/` or
`decoder/` in front. Layers that share parameters have names of their own. `names` lists all.

Flax calls the functions here at each module (`flax.linen.intercept_methods`): no module knows of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
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
        model: its layers unrolled.
        params: of the model; shapes are enough.
        batch: as for a call of the model; shapes are enough.
        method: of the model; None: its call.
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
    """Returns what the model returns for a batch, and the activations with these names; pure, so that jit takes it.

    Args:
        model: its layers unrolled, without remat.
        params: of the model.
        batch: as for a call of the model.
        names: of the activations, `[batch, length, embed]` where they are the residual stream or a branch.
        changes: what to replace activations by: functions, by name, of the activation to another one of its shape.
            What is recorded is the new one.
        method: of the model; None: its call, which returns hidden states.

    Raises:
        ValueError: a name that there is not, or one that is computed more than once; layers that are scanned or
            recomputed; a change of shape.
    """
    visitor = _Visitor(names, {} if changes is None else changes)
    outputs = _apply(visitor, model, params, batch, method)
    visitor.check()
    return outputs, visitor.found


def replace(
    model: LanguageModel, params: PyTree, batch: Batch, changes: Mapping[str, Change], *, method: str | None = None
) -> PyTree:
    """Returns what the model returns for a batch with activations replaced; arguments and errors are `record`'s."""
    return record(model, params, batch, (), changes=changes, method=method)[0]


def _apply(visitor: _Visitor, model: LanguageModel, params: PyTree, batch: Batch, method: str | None) -> PyTree:
    """Returns what the model returns, seen by a visitor."""
    config = model.config
    if config.scan_layers or config.remat != "none":
        raise ValueError(
            f"scan_layers={config.scan_layers} and remat={config.remat!r}: activations have names in unrolled layers"
            " that are not recomputed; set scan_layers=False and remat='none', and bring the parameters of scanned"
            " layers into that form by lmjax.model.transformer.unstack_layers"
        )
    with nn.intercept_methods(visitor):
        return model.apply({"params": params}, batch, method=method)


class _Visitor:
    """What Flax calls in the place of each method of each module.

    Attributes:
        calls: how often each activation was computed, by name.
        found: the activations that were asked for.
    """

    def __init__(self, names: Collection[str], changes: Mapping[str, Change]):
        """Takes the names to record, and what to change."""
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
        """Returns what the method returns, its activation replaced where that is asked for."""
        module = context.module
        if isinstance(module, Attention) and context.method_name == "weigh":
            return self._weighed(method, module, *args)
        if context.method_name != "__call__" or isinstance(module, Stack | Side | EncoderDecoder):
            return method(*args, **kwargs)
        if isinstance(module, Block):
            # Layers that share parameters are one module, which is told the number of the layer.
            self._layer = module.path, f"{UNROLLED}{args[2]}"
        name = self._name(module.path)
        result = method(*args, **kwargs)
        # Blocks and attentions return what they keep for a cache too.
        value, *rest = result if isinstance(result, tuple) else (result,)
        if name is None or not isinstance(value, jax.Array):
            return result
        value = self._seen(name, value)
        return (value, *rest) if isinstance(result, tuple) else value

    def _seen(self, name: str, value: jax.Array) -> jax.Array:
        """Returns an activation, or what it is replaced by; records it where that is asked for."""
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
        """Returns what `Attention.weigh` returns; its weights, which kernels do not give, are computed if asked for."""
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
        """Returns the name of what the module at a path returns; None: it stands outside of the backbones."""
        if BACKBONE not in path:
            return None
        block, layer = self._layer
        if block and path[: len(block)] == block:
            path = (*block[:-1], layer, *path[len(block) :])
        return "/".join(part for part in path if part not in _LEFT_OUT)

    def check(self) -> None:
        """Raises ValueError for a name that was asked for and is not that of one activation."""
        for name in (*self._names, *self._changes):
            count = self.calls.get(name, 0)
            if count > 1:
                raise ValueError(f"{name!r} is computed {count} times; take a name that stands for one activation")
            if count == 0:
                near = difflib.get_close_matches(name, self.calls) or list(self.calls)
                raise ValueError(f"no activation is called {name!r}; there are {', '.join(near)}")


def _same_shape(name: str, old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns the new activation in the type of the old one; raises ValueError for another shape."""
    if jnp.shape(new) != old.shape:
        raise ValueError(f"{name!r} has the shape {old.shape}, and its change gives {jnp.shape(new)}; give the same")
    return jnp.asarray(new, old.dtype)
