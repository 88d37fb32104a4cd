"""The mesh of devices, and how parameters and batches are placed on it."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from pydantic import Field

from lmjax.axes import MESH_AXES, POPULATION, RULES
from lmjax.errors import FlagError
from lmjax.model.parameters import unboxed
from lmjax.schema import Schema


class ParallelConfig(Schema):
    """How many devices each mesh axis spans."""

    kind: Literal["mesh", "pmap"] = Field("mesh", description="pmap: replicas by jax.pmap, with the data axis only")
    data: int = Field(-1, ge=-1, description="replicas that split the batch; -1: all devices that the other axes leave")
    fsdp: int = Field(1, ge=1, description="devices that split the batch and the parameters")
    expert: int = Field(1, ge=1, description="devices that split the experts of a mixture of experts")
    sequence: int = Field(1, ge=1, description="devices that split the positions of each row")
    sequence_attention: Literal["ring", "all_to_all"] = Field(
        "ring",
        description="with sequence; ring: keys go round the devices; all_to_all: each device has some heads of the"
        " whole row",
    )
    tensor: int = Field(1, ge=1, description="devices that split heads, MLP and vocabulary")
    slices: int = Field(
        1,
        ge=1,
        description="TPU slices (or other groups of devices) between which links are slow; the data axis is divided"
        " over them, so that they exchange nothing but summed gradients",
    )
    connect_timeout: int = Field(300, ge=1, description="seconds in which all processes of a run must connect")
    heartbeat_timeout: int = Field(20, ge=2, description="seconds without a heartbeat after which a process is lost")

    def sizes(self) -> dict[str, int]:
        """Returns the size of each mesh axis, in the order of the mesh."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}


def make_mesh(config: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all devices); raises FlagError if the axes do not fit them."""
    devices = jax.devices() if devices is None else devices
    given = config.sizes()
    others = math.prod(given.values()) // config.data
    data = len(devices) // others if config.data == -1 else config.data
    sizes = tuple((given | {"data": data}).values())
    if data < 1 or math.prod(sizes) != len(devices):
        raise FlagError(
            f"--config.parallel: {' x '.join(f'{axis}={size}' for axis, size in given.items())} "
            f"does not fit {len(devices)} device(s); their product must be {len(devices)} "
            f"(data=-1 takes the remaining devices)"
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    if config.slices > 1:
        return Mesh(_over_slices(config.slices, sizes, devices), MESH_AXES, axis_types=types)
    try:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        # An axis is no product of sides of the TPU slice: it takes a part of a side, and so fewer links.
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)


def _over_slices(slices: int, sizes: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Returns the devices as an array of the given sizes, whose first axis goes over the slices one after the other.

    Devices that do not say their slice, such as those of a CPU or a GPU, are divided in their order.

    Raises:
        FlagError: the slices do not divide the first axis, or there are other slices.
    """
    if sizes[0] % slices:
        raise FlagError(
            f"--config.parallel.slices={slices} does not divide the data axis of {sizes[0]}; give fewer devices to the "
            "other axes"
        )
    known = {device.slice_index for device in devices if hasattr(device, "slice_index")}
    if len(known) < 2:
        return np.asarray(devices).reshape(sizes)
    if len(known) != slices:
        raise FlagError(f"--config.parallel.slices={slices}: these devices are {len(known)} slices; give that number")
    inside = (sizes[0] // slices, *sizes[1:])
    outside = (slices, *[1] * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=True)


def population_mesh(config: ParallelConfig, members: int, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh whose first axis, `population`, splits the members of a population over `devices`.

    A member has the mesh of `config`; with `data=-1` the members take as many devices as they can, and each member's
    batch is split over the devices that are left.

    Raises:
        FlagError: the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    if config.sequence > 1 or config.slices > 1:
        name = "sequence" if config.sequence > 1 else "slices"
        raise FlagError(
            f"--config.parallel.{name}={getattr(config, name)}: runs that train together have no such axis; set 1,"
            " or train them one after the other"
        )
    own = abs(math.prod(config.sizes().values()))
    groups = len(devices) // own
    if config.data == -1:
        groups = max((n for n in range(1, groups + 1) if groups % n == 0 and n <= members), default=1)
    rows = make_mesh(config, devices[: len(devices) // groups] if groups else devices)
    if groups * rows.size != len(devices):
        raise FlagError(
            f"--config.parallel: a run takes {rows.size} device(s), which does not divide {len(devices)}; give axes "
            "whose product divides the devices"
        )
    names = (POPULATION, *MESH_AXES)
    sizes = (groups, *rows.shape.values())
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_divisible(mesh: Mesh, *, batch_size: int, accumulation: int, sharded: dict[str, int]) -> None:
    """Raises FlagError if the mesh does not divide the batch or a parameter dimension of the model.

    Args:
        mesh: the mesh.
        batch_size: rows of a global batch.
        accumulation: microbatches of a step.
        sharded: sizes of parameter dimensions by axis name.
    """
    parts = batch_shards(mesh) * accumulation
    if batch_size % parts:
        raise FlagError(
            f"--config.batch_size={batch_size} is not divisible by {parts} "
            f"(data x fsdp = {batch_shards(mesh)} shards x accumulation {accumulation}); take a multiple of {parts}"
        )
    for name, size in sharded.items():
        axis = dict(RULES)[name]
        ways = mesh.shape[axis] if isinstance(axis, str) else 1
        if size % ways:
            more = f", such as --config.model.vocab_size={size + -size % ways} --config.model.embedding.padding="
            more = f"{more}{-size % ways}, which adds rows without a token" if name == "vocab" else ""
            raise FlagError(
                f"--config.parallel.{axis}={ways} does not divide the model's {name} dimension of {size}; "
                f"change one of them{more}"
            )


def on_mesh(boxed: Any, mesh: Mesh) -> Any:
    """Returns shapes and dtypes of arrays (or shapes) that are boxed with axis names, with shardings on the mesh."""
    places = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), unboxed(boxed), places)


def batch_sharding(mesh: Mesh, shape: Sequence[int] = ()) -> NamedSharding:
    """Returns the sharding of an array whose first dimension is the batch.

    Args:
        mesh: the mesh.
        shape: of the array; its second dimension, which is that of the positions or of parts of a row, is split too if
            the sequence axis divides it.
    """
    names = ("act_batch", "act_length") if len(shape) > 1 and shape[1] % mesh.shape["sequence"] == 0 else ("act_batch",)
    return nn.logical_to_mesh_sharding(jax.sharding.PartitionSpec(*names), mesh, RULES)


def process_rows(x: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Returns the rows of a global batch that this process gives to `to_device`, of those that the mesh spans."""
    processes = sorted({device.process_index for device in mesh.devices.flat})
    share = len(x) // len(processes)
    return x[processes.index(jax.process_index()) * share :][:share]


def to_device(batch: dict[str, np.ndarray], mesh: Mesh, stacked: bool = False) -> dict[str, jax.Array]:
    """Returns the global batch sharded on the mesh.

    Args:
        batch: the rows of this process.
        mesh: the mesh.
        stacked: whether the arrays have a dimension before the batch, which is not split.
    """

    def sharding(shape: tuple[int, ...]) -> NamedSharding:
        if not stacked:
            return batch_sharding(mesh, shape)
        return NamedSharding(mesh, jax.sharding.PartitionSpec(None, *batch_sharding(mesh, shape[1:]).spec))

    return {name: jax.make_array_from_process_local_data(sharding(x.shape), x) for name, x in batch.items()}
