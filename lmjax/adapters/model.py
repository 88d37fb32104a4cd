"""A language model with an adapter: the same modules, of which Flax hands some calls to the adapter's formulas.

All parameters are one tree. Those of the adapter are beside the kernels that they change, made by the same modules, and
so they get the axes of scanned layers and the sharding of their layer. What is trained is this tree without the
parameters of the model itself; `Fixed.whole` puts both together again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.forms import FORMS, MAGNITUDE, NAMES, Form, norms
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, abstract_params, init_params
from lmjax.model.layers import Dense, Embed
from lmjax.model.moe import ExpertKernels
from lmjax.model.parameter_paths import SCANNED, map_named
from lmjax.model.parameters import flat, unboxed
from lmjax.nearest import nearest
from lmjax.streams import prng_key

PyTree = Any
Path = tuple[str, ...]

# A leaf at the top of the parameters: int32 `[batch]`, the number of the adapter of each row.
ROWS = "adapter_rows"


class AdaptedModel(LanguageModel):
    """A language model whose parameters include those of an adapter; `init` makes the trained ones alone.

    Attributes:
        adapter: the adapter's fields.
    """

    adapter: AdapterConfig = AdapterConfig()

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> PyTree:
        """Returns what `nn.Module.init` returns, without the parameters that are not trained."""
        with nn.intercept_methods(_Interceptor(self.adapter)):
            variables = super().init(*args, **kwargs)
        return {**variables, "params": trained(variables["params"], self.adapter)}

    @nn.nowrap
    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Returns what `nn.Module.apply` returns, given all parameters in one tree."""
        params = dict(variables["params"])
        rows = params.pop(ROWS, None)
        with nn.intercept_methods(_Interceptor(self.adapter, rows)):
            return super().apply({**variables, "params": params}, *args, **kwargs)


def make_model(config: ModelConfig, heads: tuple[str, ...], adapter: AdapterConfig) -> LanguageModel:
    """Returns the model, with an adapter if its fields name a kind.

    Raises:
        FlagError: the adapter's pattern matches no layer, or one that this kind cannot change.
    """
    if adapter.kind == "none":
        return LanguageModel(config, heads)
    _check(config, heads, adapter)
    return AdaptedModel(config, heads, adapter)


def is_trained(names: Path, adapter: AdapterConfig) -> bool:
    """Returns whether the parameter at a path is trained: it is one of the adapter, or in a part trained whole."""
    return names[-1] in NAMES or names[0] in adapter.whole


def trained(params: PyTree, adapter: AdapterConfig) -> PyTree:
    """Returns the trained parameters of a tree of all parameters."""
    return _only(params, lambda names: is_trained(names, adapter))


def untrained(params: PyTree, adapter: AdapterConfig) -> PyTree:
    """Returns the parameters of a tree of all parameters that are not trained."""
    return _only(params, lambda names: not is_trained(names, adapter))


def _only(tree: PyTree, chosen: Callable[[Path], bool], path: Path = ()) -> PyTree:
    """Returns nested dicts with the chosen leaves alone, and no empty dicts."""
    found = {}
    for name, value in tree.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            if inner := _only(value, chosen, here):
                found[name] = inner
        elif chosen(here):
            found[name] = value
    return found


@functools.lru_cache(maxsize=8)
def abstract_adapter(model: AdaptedModel) -> PyTree:
    """Returns the shapes of the trained parameters, boxed with their axis names. Do not change it: it is cached."""
    return jax.eval_shape(lambda: init_params(model, prng_key(0, "shapes of an adapter")))


def first_parameters(model: LanguageModel, base: PyTree) -> PyTree:
    """Returns the trained parameters that begin with a value of the base: the lengths of the columns of dora.

    Args:
        model: the model, with an adapter or without.
        base: the parameters that are not trained.
    """
    if not isinstance(model, AdaptedModel) or model.adapter.kind != "dora":
        return {}

    def length(names: Path, leaf: jax.Array) -> jax.Array:
        if names[-1] != MAGNITUDE:
            return leaf
        kernel = functools.reduce(lambda tree, name: tree[name], names[:-1], base)["kernel"]
        leading = int(SCANNED in names)
        find: Callable[[jax.Array], jax.Array] = functools.partial(norms, outputs=leaf.ndim - leading)
        return (jax.vmap(find) if leading else find)(kernel).astype(leaf.dtype)

    wanted = _only(unboxed(abstract_adapter(model)), lambda names: names[-1] == MAGNITUDE)
    return jax.jit(lambda: map_named(length, wanted))()


class _Interceptor:
    """The function that Flax calls in place of each method of each module."""

    def __init__(self, adapter: AdapterConfig, rows: jax.Array | None = None):
        self._adapter, self._rows = adapter, rows
        self._form: Form = FORMS[adapter.kind](adapter)

    def __call__(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Returns the output of the method, changed by the adapter if it has one for this module."""
        module, called, form = context.module, context.method_name, self._form
        if not isinstance(module, Dense | Embed | ExpertKernels) or not self._adapter.chooses(module.path):
            return method(*args, **kwargs)
        if isinstance(module, Dense) and called == "__call__":
            (x,) = args
            x = form.before(module, x, self._rows)
            return form.dense(module, x, method(x), self._rows)
        if isinstance(module, ExpertKernels) and called == "__call__":
            kernels, biases = method(*args)
            return form.expert(module, kernels, *args), biases
        found = method(*args, **kwargs)
        if isinstance(module, Embed) and called == "setup":
            form.table(module)
        if isinstance(module, Embed) and called == "__call__":
            return form.look_up(module, *args, found, self._rows)
        if isinstance(module, Embed) and called == "attend":
            return form.attend(module, *args, found)
        return found


def _layers(config: ModelConfig, heads: tuple[str, ...]) -> dict[str, bool]:
    """Returns the paths of the layers that an adapter can change, and whether each is a Dense layer."""
    found = {}
    for path in flat(abstract_params(config, heads)):
        *names, last = path.split("/")
        if last in ("kernel", "table") and names:
            found["/".join(names)] = last == "kernel" and ("moe" not in names or names[-1] == "router")
    return found


@functools.lru_cache(maxsize=64)
def _check(config: ModelConfig, heads: tuple[str, ...], adapter: AdapterConfig) -> None:
    """Raises FlagError if the adapter's pattern matches no layer, or a layer that its kind cannot change."""
    layers = _layers(config, heads)
    chosen = [path for path in layers if adapter.chooses(tuple(path.split("/")))]
    flag = f"--config.adapter.targets={adapter.pattern}"
    if not chosen:
        names = sorted({path.rpartition("/")[2] for path in layers})
        hint = nearest(adapter.pattern, names)
        raise FlagError(f"{flag}: matches no layer; {hint}{' ' if hint else ''}the last names are {', '.join(names)}")
    form = FORMS[adapter.kind]
    if odd := [path for path in chosen if not layers[path] and not (form.experts and form.tables)]:
        raise FlagError(
            f"{flag}: {odd[0]} is a table or belongs to experts, which --config.adapter.kind={adapter.kind} cannot "
            "change; take lora, or leave it out"
        )
    if relative := [path for path in chosen if path.endswith("relative_bias")]:
        raise FlagError(f"{flag}: {relative[0]} is a table of biases, which no adapter changes; leave it out")
