"""The platform that a program is compiled for, by which code for one backend is selected."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PORTABLE = contextvars.ContextVar("portable", default=False)


def platform() -> str:
    """Returns the platform (cpu, gpu, tpu ...) of the mesh in use; without a mesh, that of this process.

    The devices of a mesh need not exist on this machine, as when a program is compiled ahead for others. Within
    `portable` it is "any".
    """
    if _PORTABLE.get():
        return "any"
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Leaves code for one backend out of what is traced inside the context, so that a program runs on any platform."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)
