"""Axis names: one glossary and one table of sharding rules for all parameters and activations.

Parameter axes:
    vocab     tokens of the vocabulary
    embed     width of the residual stream
    heads     query heads
    kv_heads  key and value heads
    head_dim  width of one head
    mlp       width of the MLP's hidden layer
    experts   MLPs of a mixture of experts
    embedding width of the embedding tables where it is not that of the residual stream
    layers    stacked layers under `nn.scan`
    positions rows of a learned position table
    types     rows of a token-type table
    buckets   rows of a relative-position table
    classes   outputs of a classification head, or of a router
    rank      inner width of an adapter's two matrices
    norm      the scale and bias of a normalisation, and other biases of the residual stream's width

Activation axes:
    act_batch   rows of the batch
    act_length  positions in a row
    act_embed   width of the residual stream
    act_heads   attention heads
    act_mlp     width of the MLP's hidden layer
    act_experts MLPs of a mixture of experts
    act_vocab   logits over the vocabulary
    act_attention_length  positions in a row inside attention: whole where all-to-all splits the heads instead
    act_attention_heads   query heads inside attention

Mesh axes:
    data    replicas: the batch is split, parameters are copied
    fsdp    the batch is split, and so are parameters and optimizer state (parameters are gathered layer by layer)
    expert  the experts of a mixture are split; all devices of the axis have the same rows
    sequence  the positions of a row are split, in all activations; attention alone sends keys or heads between devices
    tensor  heads, MLP and vocabulary are split
    population  before these, in a population of runs: its members are split

A name that is not in the table is an error. Linen alone would silently leave such an axis unsharded.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")
POPULATION = "population"

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]
RULES: Rules = (
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("experts", "expert"),
    ("embedding", None),
    ("layers", None),
    ("positions", None),
    ("types", None),
    ("buckets", None),
    ("classes", None),
    ("rank", None),
    ("norm", None),
    ("act_batch", ("data", "fsdp")),
    ("act_length", "sequence"),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_experts", "expert"),
    ("act_vocab", "tensor"),
    ("act_attention_length", "sequence"),
    ("act_attention_heads", "tensor"),
)
# How attention splits a row over the mesh axis `sequence`.
SEQUENCE_RULES: dict[str, Rules] = {
    "ring": RULES,
    "all_to_all": tuple(
        {"act_attention_length": (name, None), "act_attention_heads": (name, ("tensor", "sequence"))}.get(
            name, (name, rule)
        )
        for name, rule in RULES
    ),
}

_NAMES = frozenset(name for name, _ in RULES)


def check(names: Sequence[str | None]) -> tuple[str | None, ...]:
    """Returns `names` as a tuple; raises ValueError for a name that is not in the glossary."""
    for name in names:
        if name is not None and name not in _NAMES:
            raise ValueError(f"unknown axis name {name!r}; lmjax.axes lists: {', '.join(sorted(_NAMES))}")
    return tuple(names)


def partitioned(init: nn.initializers.Initializer, names: Sequence[str | None]) -> nn.initializers.Initializer:
    """Returns the initializer `init` with one axis name for every dimension of the parameter it makes."""
    return nn.with_logical_partitioning(init, check(names))


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Returns `x` with its sharding constrained by axis names; outside a mesh, `x` itself.

    Positions that the mesh axis `sequence` does not divide, such as those of the predictions of a row, stay whole.
    """
    ways = sequence_ways()
    if ways > 1:
        names = [None if name == "act_length" and n % ways else name for name, n in zip(names, x.shape, strict=True)]
    return nn.with_logical_constraint(x, check(names))


def sequence_ways() -> int:
    """Returns the number of devices that split the positions of a row; 1 outside a mesh and inside its shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    if "sequence" not in mesh.axis_names or not nn.get_logical_axis_rules():
        return 1
    return 1 if "sequence" in mesh.manual_axes else mesh.shape["sequence"]
