"""Several adapters of one base in one form: a program takes each of them, or one for each row of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.adapters.config import AdapterConfig
from lmjax.adapters.forms import A, B
from lmjax.adapters.model import ROWS
from lmjax.errors import FlagError
from lmjax.model.parameter_paths import layer_of
from lmjax.model.parameters import flat, overlaid, unflat

PyTree = Any


class Several(NamedTuple):
    """Adapters with the same fields, so that a model that is compiled for one is compiled for all.

    Attributes:
        config: the fields of all of them.
        adapters: the parameters of each by name, with the same paths and shapes.
    """

    config: AdapterConfig
    adapters: Mapping[str, PyTree]

    def one(self, base: PyTree, name: str) -> PyTree:
        """Returns all parameters of the model with one adapter."""
        return overlaid(base, self.adapters[self._known(name)])

    def by_row(self, base: PyTree, names: Sequence[str]) -> PyTree:
        """Returns all parameters of a model whose rows have adapters of their own, for batches of so many rows.

        Args:
            base: the parameters that are not trained.
            names: the adapter of each row. A beam search of these rows has the same adapters.

        Raises:
            FlagError: an adapter changes a table, experts or a layer outside the stack, which rows cannot have apart.
        """
        paths = flat(next(iter(self.adapters.values())))
        if odd := [p for p in paths if layer_of(tuple(p.split("/"))) is None or "/moe/" in p]:
            raise FlagError(f"{odd[0]}: rows have adapters of their own only in the attentions and MLPs of layers")
        order = list(self.adapters)
        rows = jnp.array([order.index(self._known(name)) for name in names], jnp.int32)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *self.adapters.values())
        return {**overlaid(base, stacked), ROWS: rows}

    def _known(self, name: str) -> str:
        if name not in self.adapters:
            raise FlagError(f"there is no adapter {name!r}; there are {', '.join(self.adapters)}")
        return name


def together(adapters: Mapping[str, tuple[AdapterConfig, PyTree]]) -> Several:
    """Returns adapters of one base in one form, unrolled; LoRA of different ranks, scales and targets too.

    The scale of each becomes part of its B, and smaller ranks and layers without an adapter are filled with zeros.

    Raises:
        FlagError: they are of kinds that have no common form, or train other parts whole.
    """
    configs = {name: config for name, (config, _) in adapters.items()}
    first, *others = configs.values()
    if all(other == first for other in others):
        return Several(first, {name: tree for name, (_, tree) in adapters.items()})
    for name, config in configs.items():
        if config.kind not in ("lora", "rslora") or config.whole != first.whole:
            raise FlagError(
                f"adapter {name}: kind={config.kind}, whole={','.join(config.whole) or 'none'}: adapters that differ "
                "from each other must be lora or rslora, and train the same parts whole"
            )
    rank = max(config.rank for config in configs.values())
    trees = {name: _scaled(tree, configs[name], rank) for name, (_, tree) in adapters.items()}
    shapes = {path: x for tree in trees.values() for path, x in tree.items()}
    filled = {
        name: unflat({path: tree.get(path, jnp.zeros_like(x)) for path, x in sorted(shapes.items())})
        for name, tree in trees.items()
    }
    targets = "|".join(dict.fromkeys(config.pattern for config in configs.values()))
    return Several(AdapterConfig(kind="lora", rank=rank, alpha=rank, targets=targets, whole=first.whole), filled)


def _scaled(tree: PyTree, config: AdapterConfig, rank: int) -> dict[str, jax.Array]:
    """Returns an adapter by path, with the scale 1 and a larger rank."""
    more, found = rank - config.rank, {}
    for path, x in flat(tree).items():
        if path.endswith(f"/{A}"):
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
        elif path.endswith(f"/{B}"):
            x = jnp.pad(x * config.scale, [(0, more)] + [(0, 0)] * (x.ndim - 1))
        found[path] = x
    return found
