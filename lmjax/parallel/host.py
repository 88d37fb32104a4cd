"""What a process sets up before it uses a device: compiled programs that are kept, and malloc's habits on a CPU."""

import ctypes
import os
import pathlib
import sys

import jax

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Makes malloc keep what is freed: XLA's CPU client allocates the same temporaries anew in every step.

    Handed back to the system, their pages are faulted in again, hundreds of thousands a step. Must come before the
    first use of a device, whose threads take arenas of their own; does nothing where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)):
            mallopt(option, value)


def cache_compilations(folder: str) -> None:
    """Keeps compiled programs for later runs in a part of `folder`, unless jax was told where to keep them."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
