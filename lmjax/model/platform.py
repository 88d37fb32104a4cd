"""The platform that a program is compiled for, by which code for one backend is selected."""

import jax


def platform() -> str:
    """Returns the platform (cpu, gpu, tpu ...) of the mesh in use; without a mesh, that of this process.

    The devices of a mesh need not exist on this machine, as when a program is compiled ahead for others.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
