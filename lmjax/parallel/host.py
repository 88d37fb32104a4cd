"""What a process that computes sets up: compiled programs that are kept, and on a CPU malloc's habits and its turns."""

import ctypes
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

# glibc's malloc.h.
_M_MXFAST, _M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = 1, -1, -2, -4, -8
_NEVER = -1
_SPARE, _GUARD, _MOST_HOLES = 2**28, 2**20, 2**10
# Seconds, and seconds per second of a step.
_LONGEST_PAUSE, _PAUSE = 0.01, 0.002


def keep_freed_memory() -> None:
    """Makes malloc keep what is freed: XLA's CPU client allocates the same temporaries anew in every step.

    Handed back to the system, their pages are faulted in again, hundreds of thousands a step. Must come before the
    first use of a device, whose threads take arenas of their own; does nothing where malloc is not glibc's.
    """
    if (libc := _glibc()) is not None:
        for option, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, _NEVER),
            (_M_TOP_PAD, 2**26),
            # Alignment leaves crumbs beside the temporaries: they melt into their neighbours at once.
            (_M_MXFAST, 0),
        ):
            libc.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    """Returns the C library if its malloc is glibc's, the only one with these settings."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "mallopt") else None


def _leave_room_for_small_blocks() -> None:
    """Leaves a free block, still without pages, from which malloc takes what is small.

    It takes the smallest free block that suffices, and the heap's end last: without this one, small blocks would come
    to lie where a step's temporaries end, and the next step's, which ask for a little more than they take (they are
    aligned), would no longer fit there.
    """
    if (libc := _glibc()) is None:
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    # What is free by now, as after the initialisation, holds pages that nothing may ask for again.
    libc.malloc_trim(ctypes.c_size_t(0))
    spare = libc.malloc(_SPARE) or 0
    # A block above it, which stays, keeps it from melting into the heap's end. Those that land in holes below go back.
    holes = []
    while (guard := libc.malloc(_GUARD) or spare) < spare and len(holes) < _MOST_HOLES:
        holes.append(guard)
    for block in (*holes, spare):
        libc.free(block)


def in_turn(step: Callable) -> Callable:
    """Returns `step`, on a CPU with a wait for its end: two steps on the way hold their temporaries twice.

    There the host's cores are the device, and nothing is gained by starting a step before the last one has ended. Its
    first call makes room for small blocks: the state, which would fill that room, is there by then.
    """
    if jax.default_backend() != "cpu":
        return step
    room = False

    def waited(*args: Any) -> Any:
        nonlocal room
        if not room:
            _end_of(args)
            _leave_room_for_small_blocks()
            room = True
        return _end_of(step(*args))

    return waited


def _end_of(result: Any) -> Any:
    """Returns `result` once the program that makes it has ended, and its temporaries are free."""
    start = time.perf_counter()
    jax.block_until_ready(result)
    # XLA's thread frees them after the results are there, and needs a core for it.
    time.sleep(min(_LONGEST_PAUSE, _PAUSE * (time.perf_counter() - start)))
    return result


def cache_compilations(folder: str) -> None:
    """Keeps compiled programs for later runs in a part of `folder`, unless jax was told where to keep them."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
