"""The temporaries of steps reuse the same memory pages, and on a CPU one step ends before the next starts."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import lmjax
from lmjax.parallel.malloc import in_turn

# Allocates and frees 3 GiB of temporaries three times, aligned as XLA's are; no threshold of malloc is above 3 GiB.
# Before that, a state of many blocks with holes between them is allocated. Blocks that are allocated beside the
# temporaries and between two steps are not freed. Prints the page faults of the second and the third time. Aligning
# leaves small free blocks, and a thread's cache may by chance keep malloc from merging these: it is off here.
FAULTS = """
import ctypes, resource, sys
import jax
from lmjax.parallel.malloc import in_turn, keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
state = [libc.malloc(3 * 2**20) for _ in range(200)]
for block in state[::2]:
    libc.free(block)

def step():
    block = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(3 * 2**30))
    ctypes.memset(block, 1, 2**26)
    for size in (2**12, 2**15, 2**25):
        libc.malloc(size)
    libc.free(block)

if sys.argv[1] == "keep":
    step = in_turn(step)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step()
before = faults()
for _ in range(2):
    small = [libc.malloc(2**15) for _ in range(100)]
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone has these settings")
def test_the_temporaries_of_a_step_keep_their_pages():
    def faults(mode: str) -> int:
        env = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, env=env)
        return int(done.stdout)

    assert faults("keep") < 2_000
    # The control, with malloc's defaults: the 64 MiB that are written to are faulted in again.
    assert faults("plain") > 10_000


def test_on_a_cpu_a_step_has_ended_when_it_returns():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y @ x, x))
    x = jnp.eye(300)
    slow(x).block_until_ready()
    assert in_turn(slow)(x).is_ready()


@pytest.mark.parametrize("given", [{}, {"keep_memory": True}, {"keep_memory": False}])
def test_training_from_python_keeps_freed_memory_unless_told_otherwise(tiny, tmp_path, monkeypatch, given):
    called = []
    monkeypatch.setattr("lmjax.commands.train.keep_freed_memory", lambda: called.append("keep"))
    monkeypatch.setattr("lmjax.commands.train.train_run", lambda *_, **__: called.append("run"))
    lmjax.train(tiny(), tmp_path, **given)
    assert called == (["keep", "run"] if given.get("keep_memory", True) else ["run"])


# Counts malloc's arenas after a command and a dozen threads that allocate, as XLA's do.
ARENAS = """
import ctypes, sys, threading
from lmjax import cli
from lmjax.arenas import glibc
if sys.argv[1] == "plain":
    cli.one_arena = lambda: None
path = sys.argv[2]
sys.argv = ["lmjax", "train", "--print_config"]
cli.main()
libc = glibc()
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
threads = [threading.Thread(target=libc.malloc, args=(2**20,)) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = libc.fclose.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone has these settings")
def test_all_threads_of_a_command_allocate_in_one_arena(tmp_path):
    def arenas(mode: str) -> int:
        path = tmp_path / mode
        env = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX")}
        subprocess.run([sys.executable, "-c", ARENAS, mode, str(path)], capture_output=True, check=True, env=env)
        return path.read_text().count("<heap nr=")

    assert arenas("one") == 1
    assert arenas("plain") > 1
