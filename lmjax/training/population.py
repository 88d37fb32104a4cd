"""A population of runs as one program: their states are stacked, they share each batch, and their numbers are arrays.

Members do not communicate. On a mesh with the axis `population`, each part of it computes its own members; a part
computes them as one larger computation (`vmap`), or one after the other inside the program (`map`). On CPUs `map` is
faster, since the working set of one small model stays in the cache, and products of matrices with a batch dimension are
no faster than those without: the nano decoder with 8 rows of 128 tokens took 79 ms a member and step with `map`, 103
with `vmap`, and 94 in a program of its own (8 members, two cores, jax 0.10.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.axes import POPULATION
from lmjax.training.fixed import Fixed
from lmjax.training.hyperparameters import Hyperparameters
from lmjax.training.state import TrainState
from lmjax.training.step import Metrics

PyTree = Any
Form = Literal["vmap", "map"]


class Own(NamedTuple):
    """What the members of a population do not share; every array has the dimension `[members]` first.

    Attributes:
        states: the states.
        hparams: the traced hyperparameters.
        frozen: bool `[members]`, whether a member stays as it is.
    """

    states: TrainState
    hparams: Hyperparameters
    frozen: jax.Array


def default_form() -> Form:
    """Returns how this backend computes the members of a population fastest."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


def over_members(function: Callable[[Any, Any], Any], mesh: Mesh, form: Form) -> Callable[[Any, Any], Any]:
    """Returns `function(own, shared)` for all members: `own` and the result have the dimension `[members]` first."""

    def local(own: Any, shared: Any) -> Any:
        if form == "vmap":
            return jax.vmap(function, in_axes=(0, None))(own, shared)
        return jax.lax.map(lambda one: function(one, shared), own)

    if mesh.shape[POPULATION] == 1:
        return local
    members = PartitionSpec(POPULATION)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(members, PartitionSpec()),
        out_specs=members,
        axis_names={POPULATION},
        # The check does not know how random numbers vary over the axis.
        check_vma=False,
    )


def make_population_step(
    train_step: Callable[..., tuple[TrainState, Metrics]], mesh: Mesh, form: Form
) -> Callable[[Own, tuple[Any, Fixed]], tuple[TrainState, Metrics]]:
    """Returns the function that makes one update of each member that is not frozen, all from the same batch.

    It takes the batch together with the arrays that no member changes. The metrics of a frozen member are zeros. With
    `map` a frozen member costs no time.
    """

    def one(own: Own, shared: tuple[Any, Fixed]) -> tuple[TrainState, Metrics]:
        (state, hparams, frozen), (batch, fixed) = own, shared
        shapes = jax.eval_shape(train_step, state, batch, hparams, fixed)[1]

        def kept() -> tuple[TrainState, Metrics]:
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        return jax.lax.cond(frozen, kept, lambda: train_step(state, batch, hparams, fixed))

    return over_members(one, mesh, form)


def stacked_shapes(one: PyTree, members: int, mesh: Mesh) -> PyTree:
    """Returns the shapes, dtypes and shardings of `members` stacked trees.

    Args:
        one: those of one member, with shardings on the mesh.
        members: the number of members, which the axis `population` divides.
        mesh: the mesh of the population.
    """

    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec(POPULATION, *x.sharding.spec))
        return jax.ShapeDtypeStruct((members, *x.shape), x.dtype, sharding=place)

    return jax.tree.map(stacked, one)


class Stacker:
    """Puts members into a stacked tree and takes them out; compiled once for each number of members."""

    def __init__(self, one: PyTree, mesh: Mesh):
        """Makes a stacker for trees with the shapes and shardings of `one`."""

        def put(stack: PyTree, tree: PyTree, index: jax.Array) -> PyTree:
            return jax.tree.map(lambda s, x: jax.lax.dynamic_update_index_in_dim(s, x, index, 0), stack, tree)

        def take(stack: PyTree, index: jax.Array) -> PyTree:
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), stack)

        self._one, self._mesh = one, mesh
        self._put = jax.jit(put, donate_argnums=0)
        self._take = jax.jit(take, out_shardings=jax.tree.map(lambda x: x.sharding, one))

    def stack(self, trees: Sequence[PyTree]) -> PyTree:
        """Returns the trees stacked in their order; the mesh's axis `population` must divide their number."""
        places = jax.tree.map(lambda x: x.sharding, stacked_shapes(self._one, len(trees), self._mesh))

        def repeated(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(trees), *x.shape)), tree)

        stack = jax.jit(repeated, out_shardings=places)(trees[0])
        for index, tree in enumerate(trees[1:], 1):
            stack = self._put(stack, tree, np.int32(index))
        return jax.device_put(stack, places)

    def take(self, stack: PyTree, index: int) -> PyTree:
        """Returns member `index`, with its own sharding."""
        return self._take(stack, np.int32(index))
