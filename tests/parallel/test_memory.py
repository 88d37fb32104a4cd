"""Memory: how much there is, with the limits of control groups, how much arrays take, and what cannot fit."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.errors import FlagError
from lmjax.parallel.memory import Memory, check_fits, device_memory, held, host_memory, readable
from lmjax.parallel.mesh import ParallelConfig, make_mesh

pytestmark = pytest.mark.usefixtures("all_devices")

GROUPS = {
    "version 2": ("0::/job/step\n", {"job/memory.max": "max", "job/step/memory.max": "3000"}, 3000),
    "the group around is tighter": ("0::/job/step\n", {"job/memory.max": "2000", "job/step/memory.max": "3000"}, 2000),
    "no limit": ("0::/job\n", {"job/memory.max": "max"}, 8192),
    "looser than the machine": ("0::/job\n", {"job/memory.max": "9000000"}, 8192),
    "version 1": ("4:cpu:/x\n9:memory:/job\n", {"memory/job/memory.limit_in_bytes": "5000"}, 5000),
    "a container sees its own group as the top": ("0::/docker/abc\n", {"memory.max": "4000"}, 4000),
    "version 1 in a container": ("9:memory:/docker/a\n", {"memory/memory.limit_in_bytes": "4000"}, 4000),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_tightest_control_group_bounds_the_host(tmp_path, name):
    place, limits, expected = GROUPS[name]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  8 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(place)
    for path, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert host_memory(str(tmp_path)) == expected


def test_this_machine_has_memory_which_its_devices_share():
    memory = device_memory()
    assert memory.shared
    assert 2**28 < memory.num_bytes == host_memory() < 2**50


@pytest.mark.parametrize("shared", [True, False])
def test_arrays_take_their_shards_on_one_device_or_on_all(shared):
    mesh = make_mesh(ParallelConfig(fsdp=4))  # 2 x 4 devices
    memory = Memory(0, "x", shared)
    split = jax.ShapeDtypeStruct((8, 3), np.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = jax.ShapeDtypeStruct((5,), np.int8, sharding=NamedSharding(mesh, PartitionSpec()))
    assert held(split, memory) == 8 * 3 * 4 // 4 * (8 if shared else 1)
    assert held([whole, whole], memory) == 2 * 5 * (8 if shared else 1)
    assert held(jax.ShapeDtypeStruct((2**40, 2**30), np.float32), memory) == 2**72, "sizes were cut to 64 bits"
    # Arrays on devices have shardings of their own.
    real = jax.device_put(np.zeros((8, 3), np.float32), split.sharding)
    assert held(real, memory) == held(split, memory)
    if shared:
        assert held(real, memory) == sum(shard.data.nbytes for shard in real.addressable_shards)


def test_what_cannot_fit_is_told_with_its_numbers():
    memory = Memory(10**9, "this machine", True)
    check_fits("--x", {"a": 4 * 10**8, "b": 6 * 10**8}, memory, "lower it")
    with pytest.raises(FlagError) as error:
        check_fits("--x=3", {"a": 10**9, "b": 5 * 10**8, "c": 0}, memory, "lower it")
    assert str(error.value) == "--x=3: needs at least 1.5 GB (a 1 GB, b 500 MB) and this machine has 1 GB; lower it"
    assert readable(10**24) == "1.000e+06 EB"
