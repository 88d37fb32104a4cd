"""What a process that computes sets up: compiled programs that are kept, and on a CPU malloc's habits and its turns."""

import ctypes
import os
import pathlib
import sys
from collections.abc import Callable

import jax

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER = -1
_SPARE, _GUARD = 2**28, 2**20


def keep_freed_memory() -> None:
    """Makes malloc keep what is freed: XLA's CPU client allocates the same temporaries anew in every step.

    Handed back to the system, their pages are faulted in again, hundreds of thousands a step. Must come before the
    first use of a device, whose threads take arenas of their own; does nothing where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 2**26)):
            mallopt(option, value)
        _leave_room_for_small_blocks()


def _leave_room_for_small_blocks() -> None:
    """Leaves a free block, still without pages, from which malloc takes what is small.

    It takes the smallest free block that suffices: without this one that would be the place of a step's temporaries,
    between two steps, and the next step's would no longer fit there: GPT-2's grew from 5.3 to 7.7 GiB.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    spare = libc.malloc(_SPARE)
    # Stays, and its pages are never touched: it keeps the spare block from melting into the heap's end. A small one
    # would come from elsewhere.
    libc.malloc(_GUARD)
    libc.free(spare)


def in_turn(step: Callable) -> Callable:
    """Returns `step`, on a CPU with a wait for its result: two steps on the way hold their temporaries twice.

    There the host's cores are the device, and nothing is gained by starting a step before the last one has ended.
    """
    if jax.default_backend() != "cpu":
        return step
    return lambda *args: jax.block_until_ready(step(*args))


def cache_compilations(folder: str) -> None:
    """Keeps compiled programs for later runs in a part of `folder`, unless jax was told where to keep them."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
