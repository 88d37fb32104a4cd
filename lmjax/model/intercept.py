"""Records or replaces named activations while a model reads a batch.

An activation has the path of the module that computes it as its name, without `backbone` and `stack`. In an
encoder-decoder, names start with `encoder/` or `decoder/`. Layers that share parameters have a name each.

| name | activation |
|---|---|
| `inputs/tokens` | `[batch, length, table width]`: the rows of the token table, before positions and types are added |
| `inputs/positions` | `[1, length, table width]`: the embeddings of the positions, if they are learned |
| `inputs` | `[batch, length, table width]`: the input embeddings |
| `layer_3` | `[batch, length, embed]`: the residual stream after layer 3 |
| `layer_3/attention` | `[batch, length, embed]`: the output of the branch, before its output norm and dropout |
| `layer_3/attention/scores` | `[batch, heads, queries, keys]`, float32: the softmax's input; masked: the least float |
| `layer_3/attention/weights` | `[batch, heads, queries, keys]`, float32: attention probabilities, without dropout |
| `layer_3/attention/heads` | `[batch, length, heads, head_dim]`: the output of each head, before the projection `out` |
| `layer_3/cross_attention` | the same four names, with the keys of the encoder |
| `layer_3/mlp` | `[batch, length, embed]`: the output of the branch |
| `layer_3/mlp/hidden` | `[batch, length, mlp]`: the MLP's hidden layer, after the activation and the gate |
| `layer_3/moe` | `[batch, length, embed]`: the output of the branch, if the layer has experts |
| `layer_3/moe/router` | `[batch, length, experts]`, float32: the router's logits |
| `layer_3/moe/choices` | `[batch, length, top_k]`, int32: the experts of each token; change the router to change them |
| `final_norm` | `[batch, length, embed]`: the hidden states, if the stack has a final norm |

The output of any other module in a layer is an activation too, such as `layer_3/attention/query`; `names` lists them.

Flax calls the functions of this file at each module (`flax.linen.intercept_methods`), so the modules need no change.
Kernels return no probabilities: where these are read or changed, they are computed in addition, as the plain kernel
does. Scanned layers are unrolled first, because arrays cannot leave a scan, and layers are not recomputed.
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
from lmjax.model.families import Batch, EncoderDecoder, InputEmbedding, Side
from lmjax.model.kernels.softmax import scores, softmax
from lmjax.model.language_model import LanguageModel
from lmjax.model.layers import MLP, Embed
from lmjax.model.moe import ExpertKernels, MoE
from lmjax.model.parameter_paths import BACKBONE, STACK_NAME, UNROLLED
from lmjax.model.transformer import Block, Stack, unstack_layers

PyTree = Any
Change = Callable[[jax.Array], jax.Array]

_LEFT_OUT = (BACKBONE, STACK_NAME)
# Modules whose output is that of another module, or, of experts, a parameter.
_NO_ACTIVATIONS = (Stack, Side, EncoderDecoder, ExpertKernels)


def names(model: LanguageModel, params: PyTree, batch: Batch, *, method: str | None = None) -> list[str]:
    """Returns the names of all activations that `record` can record, in the order in which they are computed.

    Args:
        model: the model.
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
        model: the model.
        params: of the model.
        batch: as for a call of the model.
        names: activations to record; the residual stream and the branches are `[batch, length, embed]`.
        changes: by name, functions from an activation to its replacement, of the same shape. The replacement is
            recorded.
        method: name of the model's method; None: its call, which returns hidden states.

    Raises:
        ValueError: a name is unknown, or is computed more than once; a replacement has another shape; the choices of
            a router are to be changed.
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


@contextlib.contextmanager
def replacing(changes: Mapping[str, Change]) -> Iterator[None]:
    """Replaces the named activations of models with unrolled layers that are applied in this context.

    Programs that were compiled outside of it are not changed, so a model that is applied by cached programs needs a
    class of its own, whose `apply` enters this context (`lmjax.analysis.steering`).
    """
    with nn.intercept_methods(_Visitor((), changes)):
        yield


def _apply(visitor: _Visitor, model: LanguageModel, params: PyTree, batch: Batch, method: str | None) -> PyTree:
    """Returns the model's output; Flax calls the visitor at each module."""
    config = model.config
    if config.scan_layers:
        params = unstack_layers(params)
    if config.scan_layers or config.remat != "none":
        model = model.clone(config=config.model_copy(update={"scan_layers": False, "remat": "none"}))
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
        # The name of the input embeddings that are being computed.
        self._inputs: str | None = None
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
        if context.method_name != "__call__" or isinstance(module, _NO_ACTIVATIONS):
            return method(*args, **kwargs)
        if isinstance(module, Block):
            # Layers that share parameters are one module; the layer's number is an argument of its call.
            self._layer = module.path, f"{UNROLLED}{args[2]}"
        if isinstance(module, InputEmbedding):
            self._inputs = self._name(module.path)
        name = self._name(module.path)
        if name is not None and module.name == "down" and isinstance(module.parent, MLP):
            args = (self._seen(f"{name.removesuffix('/down')}/hidden", args[0]),)
        result = method(*args, **kwargs)
        if isinstance(module, InputEmbedding):
            self._inputs = None
        if isinstance(module, Embed) and name is None and self._inputs is not None:
            name = f"{self._inputs}/tokens"
        # Blocks and attentions return a tuple of the activation and the cache.
        value, *rest = result if isinstance(result, tuple) else (result,)
        if name is None or not isinstance(value, jax.Array):
            return result
        value = self._seen(name, value)
        if module.name == "router" and isinstance(module.parent, MoE):
            self._choose(f"{name.removesuffix('/router')}/choices", module.parent, value)
        return (value, *rest) if isinstance(result, tuple) else value

    def _seen(self, name: str, value: jax.Array) -> jax.Array:
        """Returns an activation or its replacement, and records it if its name is among those to record."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if name in self._changes:
            value = _same_shape(name, value, self._changes[name](value))
        if name in self._names:
            self.found[name] = value
        return value

    def _choose(self, name: str, module: MoE, logits: jax.Array) -> None:
        """Records the experts that a router with these logits chooses."""
        if name in self._changes:
            raise ValueError(f"{name!r} is computed from the router's logits; change the router instead")
        self.calls[name] = self.calls.get(name, 0) + 1
        if name in self._names:
            self.found[name] = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), module.config.moe.top_k)[1]

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
        """Returns the output of `Attention.weigh`; scores and probabilities are computed if they are used."""
        name = self._name(module.path)
        if name is None:
            return method(query, key, value, relation, sink_logits, dropout_rate)
        inner = (f"{name}/scores", f"{name}/weights")
        changed = [each for each in inner if each in self._changes]
        if not changed and not self._names.intersection(inner):
            for each in inner:
                self.calls[each] = self.calls.get(each, 0) + 1
        else:
            config = module.config
            compared = self._seen(
                inner[0],
                scores(
                    query,
                    key,
                    mask=relation.mask,
                    bias=relation.bias,
                    scale=config.score_scale,
                    softcap=config.attention.softcap,
                ),
            )
            weights = self._seen(inner[1], softmax(compared, sink_logits))
        if changed:
            value = jnp.repeat(value, query.shape[2] // value.shape[2], axis=2)
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, value.astype(weights.dtype)).astype(value.dtype)
        else:
            y = method(query, key, value, relation, sink_logits, dropout_rate)
        return self._seen(f"{name}/heads", y)

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
