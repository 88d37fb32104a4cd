"""Meshes that fit and that do not fit the devices, and how batches and parameters are placed on them."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax.axes import RULES
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.parallel import mesh as mesh_module
from lmjax.parallel.mesh import ParallelConfig, batch_shards, check_divisible, make_mesh, to_device
from lmjax.training.hyperparameters import Hyperparameters, OptimizerConfig
from lmjax.training.state import state_maker

pytestmark = pytest.mark.usefixtures("all_devices")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 1, 1, 2)),
        ({"data": 2, "expert": 4}, (2, 1, 4, 1, 1)),
        ({"sequence": 4}, (2, 1, 1, 4, 1)),
    ],
)
def test_data_takes_what_the_others_leave(sizes, shape):
    mesh = make_mesh(ParallelConfig(**sizes))
    assert tuple(mesh.shape.values()) == shape
    assert batch_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"data": 4}, {"tensor": 16}, {"expert": 5}])
def test_a_mesh_that_does_not_fit_names_the_sizes(sizes):
    (name, size), *_ = sizes.items()
    with pytest.raises(FlagError, match=rf"{name}={size}.*8 device\(s\)"):
        make_mesh(ParallelConfig(**sizes))


def test_sizes_that_do_not_divide_are_named():
    mesh = make_mesh(ParallelConfig(data=2, tensor=4))
    check_divisible(mesh, batch_size=4, accumulation=2, sharded={"heads": 4, "embed": 7})
    with pytest.raises(FlagError, match=r"--config.batch_size=6.*multiple of 4"):
        check_divisible(mesh, batch_size=6, accumulation=2, sharded={})
    with pytest.raises(FlagError, match=r"--config.parallel.tensor=4.*kv_heads dimension of 2"):
        check_divisible(mesh, batch_size=4, accumulation=2, sharded={"kv_heads": 2})


def test_rows_are_split_over_data_and_fsdp_in_order():
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    rows = np.arange(8, dtype=np.int32)
    array = to_device({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(array, rows)
    assert {tuple(np.asarray(s.data)) for s in array.addressable_shards} == {(0, 1), (2, 3), (4, 5), (6, 7)}


def test_parameters_and_optimizer_state_are_really_split():
    """A rule that matches no parameter would leave every device with a full copy."""
    config = ModelConfig(
        architecture="decoder", vocab_size=64, embed_dim=16, num_heads=2, mlp_dim=32, num_layers=2, max_length=16
    )
    mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    optimizer = OptimizerConfig()
    hparams = Hyperparameters.build(optimizer, steps=1, dropout=config.dropout.rates(), loss_weights={})
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        make_state, abstract = state_maker(LanguageModel(config), optimizer, hparams, 0, mesh)
        state = make_state()
    total = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    local = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    assert local < 0.25 * total
    jax.tree.map(lambda x, a: np.testing.assert_equal(x.sharding, a.sharding), state.params, abstract.params)


@pytest.mark.parametrize("told", [False, True])
def test_slices_are_divided_by_the_data_axis_alone(told):
    """With devices that say their slice, in whatever order they come, and with others in their order."""

    class Device:
        platform = device_kind = "test"

        def __init__(self, number):
            self.id, self.process_index = number, number // 4
            if told:
                self.slice_index = number // 4

        def __repr__(self):
            return str(self.id)

    devices = [Device(number) for number in range(8)]
    sizes = (4, 2, 1, 1, 1)
    given = devices[::2] + devices[1::2] if told else devices
    placed = mesh_module._over_slices(2, sizes, given)
    assert placed.shape == sizes
    assert {device.id // 4 for device in placed[:2].flat} == {0}
    assert {device.id // 4 for device in placed[2:].flat} == {1}


def test_a_mesh_over_slices():
    mesh = make_mesh(ParallelConfig(fsdp=2, slices=2))
    assert tuple(mesh.shape.values()) == (4, 2, 1, 1, 1)
    assert len({device.id for device in mesh.devices.flat}) == 8
    with pytest.raises(FlagError, match=r"parallel.slices=2 does not divide the data axis of 1"):
        make_mesh(ParallelConfig(data=1, fsdp=8, slices=2))


def test_rows_and_positions_are_split():
    """Positions go over the sequence axis where it divides them; a number for each row does not."""
    mesh = make_mesh(ParallelConfig(data=2, sequence=4))
    batch = {"tokens": np.zeros((4, 8), np.int32), "chosen": np.zeros((4, 3), np.int32), "label": np.zeros(4, np.int32)}
    shapes = {name: x.addressable_shards[0].data.shape for name, x in to_device(batch, mesh).items()}
    assert shapes == {"tokens": (2, 2), "chosen": (2, 3), "label": (2,)}
    # Of the batches of several updates, every device has its part of each.
    stacked = to_device({name: np.stack([x] * 4) for name, x in batch.items()}, mesh, stacked=True)
    shapes = {name: x.addressable_shards[0].data.shape for name, x in stacked.items()}
    assert shapes == {"tokens": (4, 2, 2), "chosen": (4, 2, 3), "label": (4, 2)}
