"""The cache on disk of compiled programs."""

import os
import pathlib

import jax


def cache_compilations(folder: str) -> None:
    """Stores compiled programs for later runs below `folder`, unless jax's own variable names another folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder) / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
