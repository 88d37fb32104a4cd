"""Several processes: `jax.distributed` starts when flags ask for it or a cluster's variables show it."""

import os

import jax

from lmjax.errors import FlagError


def _detected(environment: dict[str, str]) -> bool:
    """Returns whether the variables of a launcher that jax knows say that there are several processes."""
    if any(int(environment.get(name, "1") or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Starts `jax.distributed` if asked or detected; must come before the first use of a device.

    Args:
        coordinator: HOST:PORT of process 0, or None to detect.
        num_processes: how many processes there are, or None to detect.
        process_id: this process's number, or None to detect.

    Raises:
        FlagError: only some of the three are given where nothing can be detected.
    """
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given) and not _detected(dict(os.environ)):
        raise FlagError(
            "--coordinator_address, --num_processes and --process_id go together, except on a cluster that jax detects"
        )
    if any(given) or _detected(dict(os.environ)):
        jax.distributed.initialize(coordinator, num_processes, process_id)
