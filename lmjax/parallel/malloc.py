"""Settings of glibc's malloc, and waits, with which each step on a CPU reuses the memory pages of the step before.

XLA's CPU client allocates the temporaries of a program with malloc at each call and frees them after it. By default
glibc then returns their pages to the system, and the next step faults them in again: 350,000 to 730,000 page faults
per step. Four measures prevent this: freed memory stays in the process (`keep_freed_memory`); one step ends before
the next starts, because two steps in flight hold their temporaries twice; a pause lets XLA's thread free them (both
`in_turn`); and small blocks have room of their own, so that they do not break up the block of the temporaries.

Measured with jax 0.10.2 and glibc 2.36 on two cores: the settings alone make steps of small models 1.13 to 1.4 times
as fast; GPT-2's step takes 8.8 s and not 14.5 s; BERT-base peaks at 3.4 GiB and not 4.2 to 5.9 GiB, T5-small at 1.8
and not 2.0 to 3.7 GiB (experiments/README.md).

To remove this file, delete the calls of `keep_freed_memory` and `in_turn`: only speed and memory change. Whether a
newer glibc still needs it is shown by the control in tests/parallel/test_malloc.py.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any

import jax

from lmjax.arenas import glibc, one_arena

# Numbers of mallopt's options, from glibc's malloc.h.
_M_MXFAST, _M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = 1, -1, -2, -4
_NEVER = -1
# Bytes of the room for small blocks, bytes of the block above it, and how many holes are filled to place that block.
_SPARE, _GUARD, _MOST_HOLES = 2**28, 2**20, 2**10
# The pause after a step: at most so many seconds, and seconds per second of the step.
_LONGEST_PAUSE, _PAUSE = 0.01, 0.002


def keep_freed_memory() -> None:
    """Makes malloc keep freed memory in the process, for the next step's temporaries.

    Best called before the first use of a device, whose threads would get arenas of their own: a nano encoder-decoder's
    step takes 57 ms without it, 44 to 49 if it is called after that, and 43 if before (two cores, Zen 4, 2026-11-30).
    Does nothing where malloc is not glibc's.
    """
    one_arena()
    if (libc := glibc()) is not None:
        for option, value in (
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, _NEVER),
            (_M_TOP_PAD, 2**26),
            # XLA aligns its blocks, which leaves small free blocks beside them. Without fast bins malloc merges these
            # with their free neighbours at once.
            (_M_MXFAST, 0),
        ):
            libc.mallopt(option, value)


def _leave_room_for_small_blocks() -> None:
    """Leaves a free block, not backed by pages yet, from which malloc then serves small requests.

    malloc takes the smallest free block that suffices, and the end of the heap last. Without this block, small blocks
    would be placed right behind a step's temporaries once these are free. The next step's temporaries, which ask for a
    little more than they use because they are aligned, would then no longer fit there.
    """
    if (libc := glibc()) is None:
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    # Memory that was freed before, such as by the initialisation, holds pages that may never be needed again.
    libc.malloc_trim(ctypes.c_size_t(0))
    spare = libc.malloc(_SPARE) or 0
    # A block above it that is never freed keeps malloc from merging the spare block with the end of the heap. Guards
    # that malloc places in holes below the spare block are freed again.
    holes = []
    while (guard := libc.malloc(_GUARD) or spare) < spare and len(holes) < _MOST_HOLES:
        holes.append(guard)
    for block in (*holes, spare):
        libc.free(block)


def in_turn(step: Callable) -> Callable:
    """Returns `step`, which on a CPU also waits for its end, because two steps in flight hold their temporaries twice.

    Waiting costs nothing there: the host's cores are the device, so a step that starts early does not end earlier. The
    first call also makes room for small blocks. It is not made before, because the state would be allocated in it.
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
    """Returns `result` once the program that computes it has ended and its temporaries are free."""
    start = time.perf_counter()
    jax.block_until_ready(result)
    # XLA's thread frees the temporaries only after the results are ready, and needs a core to do so.
    time.sleep(min(_LONGEST_PAUSE, _PAUSE * (time.perf_counter() - start)))
    return result
