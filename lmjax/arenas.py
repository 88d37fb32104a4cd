"""glibc's malloc, and its one setting that must come before a process has threads; so nothing large is imported."""

from __future__ import annotations

import ctypes
import sys

# Number of mallopt's option, from glibc's malloc.h.
_M_ARENA_MAX = -8


def glibc() -> ctypes.CDLL | None:
    """Returns the C library if its malloc is glibc's, the only one with the settings used here."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "mallopt") else None


def one_arena() -> None:
    """Makes all threads allocate in one arena, the heap of the process; those that have another keep it.

    An arena that a thread leaves behind, even one that only showed a message, is given to another thread. Its blocks
    are at most 64 MiB large, so what XLA's threads then need for a step is mapped anew each time, whatever the other
    settings are: in 2 of 6 runs of BERT-base a step took 3.5 in place of 3.0 s (two cores, glibc 2.36, 2026-11-30). The
    price: threads that allocate much wait for each other, and tokenizing the embedded corpus takes 2 to 3 s longer.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, 1)
