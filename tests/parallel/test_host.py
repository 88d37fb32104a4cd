"""Malloc keeps the pages of a step's temporaries, in one place; and steps on a CPU come one after the other."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lmjax.parallel.host import in_turn

# Twice the place of large temporaries, 3 GiB so that no threshold of malloc's is above them. What is allocated while
# they are there, and between the two times, stays. Prints how many pages the second time cost.
FAULTS = """
import ctypes, resource, sys
from lmjax.parallel.host import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def step():
    block = libc.malloc(3 * 2**30)
    ctypes.memset(block, 1, 2**26)
    libc.malloc(2**20)
    libc.free(block)

step()
small = [libc.malloc(2**15) for _ in range(100)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone has these settings")
def test_the_temporaries_of_a_step_keep_their_pages():
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 1_000
    # Without it the 64 MiB that are written to come as new pages: the control.
    assert faults("plain") > 10_000


def test_on_a_cpu_a_step_has_ended_when_it_returns():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y @ x, x))
    x = jnp.eye(300)
    slow(x).block_until_ready()
    assert in_turn(slow)(x).is_ready()
