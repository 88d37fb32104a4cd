"""Several processes: starts `jax.distributed` where flags or the environment variables of a cluster say so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax

from lmjax.errors import FlagError, PreemptedError, StuckError, UserError
from lmjax.parallel.watchdog import leave, leave_when_aborted


def _detected(environment: dict[str, str]) -> bool:
    """Returns whether the environment variables of a launcher that jax supports show several processes."""
    if any(int(environment.get(name, "1") or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    connect_timeout: int = 300,
    heartbeat_timeout: int = 20,
) -> bool:
    """Returns whether it started `jax.distributed`: if an argument is given, or a cluster is detected.

    Call it before any use of a device.

    Args:
        coordinator: HOST:PORT of process 0, or None to detect it.
        num_processes: the number of processes, or None to detect it.
        process_id: the number of this process, or None to detect it.
        connect_timeout: seconds in which all processes must connect.
        heartbeat_timeout: seconds without a heartbeat after which a process counts as lost.

    Raises:
        FlagError: only some of the three are given where no cluster is detected, or one of them is invalid.
        StuckError: not all processes connected in time.
    """
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given) and not _detected(dict(os.environ)):
        raise FlagError(
            "--coordinator_address, --num_processes and --process_id go together, except on a cluster that jax detects"
        )
    if not any(given) and not _detected(dict(os.environ)):
        return False
    _check(coordinator, num_processes, process_id)
    missing = (
        f"--coordinator_address={coordinator}: not all of --num_processes={num_processes} processes connected within "
        f"{connect_timeout} seconds (reported by --process_id={process_id}); start all of them with the same address"
    )
    # jax either raises an error or aborts the process, depending on where it notices.
    leave_when_aborted(missing)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=connect_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except RuntimeError as e:
        raise StuckError(f"{missing} ({str(e).splitlines()[0][:300]})") from e
    leave_when_aborted(
        "another process of this run is lost, as jax reports above: it was killed, stopped, or does not answer. Run "
        "the same command again in every process; it resumes from the newest checkpoint"
    )
    return True


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises FlagError for an invalid address or number."""
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise FlagError(
                f"--coordinator_address={coordinator}: is not HOST:PORT with a port from 1 to 65535, as 10.0.0.1:1234"
            )
    if num_processes is not None and num_processes < 1:
        raise FlagError(f"--num_processes={num_processes}: must be at least 1")
    if process_id is not None and not 0 <= process_id < (num_processes or 2**31):
        raise FlagError(
            f"--process_id={process_id}: processes are numbered from 0 to --num_processes={num_processes} minus 1"
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once on an error inside, because jax's own exit would wait minutes for the other processes.

    A preempted run ends as usual, for all processes stop at the same step. Does nothing in a single process.
    """
    try:
        yield
    except PreemptedError:
        raise
    except UserError as e:
        if jax.process_count() > 1:
            leave(str(e), e.exit_code)
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as e:
        # jax raises one of these where a collective operation fails.
        if jax.process_count() > 1:
            leave(
                f"this process cannot continue, usually because another one is lost: {e}",
                StuckError.exit_code,
                stacks=True,
            )
        raise
