"""What a program is compiled for: where a backend has code of its own, this picks it."""

import jax


def platform() -> str:
    """Returns the platform of the mesh in use, which need not be here, or without one that of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
