"""System calls that fail in what a run reads and writes, without its model: many tries in one process.

The stand-in for a run claims a workdir, restores, writes metrics, saves and removes checkpoints as `train` does, but
its step adds a number. `campaign_calls` has whole runs, and kills them in such calls too.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

from lmjax.training.checkpoint import saved_steps
from tests.faults.campaign_calls import EVERY, KILL, STEPS, Campaign, report, spawned, tries
from tests.workdirs import losses

_SECONDS = 120


class Hang(BaseException):
    """A try did not end in time; no Exception, which the code under test could catch."""


def stand_in(config: object, workdir: pathlib.Path) -> str:
    """Returns the state after `STEPS` steps of a run, which goes on from where the last one in the workdir ended."""
    import jax
    import jax.numpy as jnp

    from lmjax.runs.workdir import check_nothing_lost, claim_workdir
    from lmjax.training.checkpoint import Checkpoints
    from lmjax.training.metrics import MetricsWriter

    key = jax.random.key(0)
    state = {"params": {"kernel": jnp.zeros((16, 8)), "bias": jnp.zeros(8)}, "key": key, "step": jnp.int32(0)}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with claim_workdir(workdir, config) as claim:
        with Checkpoints(workdir, config.checkpoint, claim.saved) as checkpoints:
            restored = checkpoints.restore(abstract)
            start = 0 if restored is None else int(restored["step"])
            check_nothing_lost(workdir, None if restored is None else start)
            state = state if restored is None else restored
            with MetricsWriter(workdir, config.logging, start) as writer:
                claim.begun()
                for number in range(start + 1, STEPS + 1):
                    checkpoints.check()
                    params = jax.tree.map(lambda x, n=number: x + 0.1 * n, state["params"])
                    state = {"params": params, "key": jax.random.split(state["key"])[0], "step": jnp.int32(number)}
                    writer.write(number, {"train/loss": float(params["bias"].sum())})
                    if number % EVERY == 0:
                        checkpoints.save(number, state)
                checkpoints.wait()
        claim.done()
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    leaves = map(plain, jax.tree.leaves(state))
    return str([x.tolist() for x in leaves])


class Writes(Campaign):
    """Tries with the stand-in, all in this process."""

    def _train(self, place: pathlib.Path, before: Callable[[], None] | None) -> tuple[int | None, str, bool]:
        """Returns what that of `Campaign` returns."""
        from lmjax.errors import UserError

        def late(*_: object) -> None:
            raise Hang

        signal.signal(signal.SIGALRM, late)
        output, kept = place / "output", os.dup(2)
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 2)
        status: int | None = 0
        try:
            if before is not None:
                before()
            signal.alarm(_SECONDS)
            state = stand_in(self._config, place / "run")
            self._shim.fault_pause()
            saved = saved_steps(place / "run")[-1:]
            (place / "digest").write_text(f"{saved} {state} {sorted(losses(place / 'run').items())}")
        except UserError as e:
            self._shim.fault_pause()
            os.write(2, f"lmjax: {e}\n".encode())
            status = e.exit_code
        except Hang:
            self._shim.fault_pause()
            status = None
        except BaseException:
            self._shim.fault_pause()
            os.write(2, traceback.format_exc().encode())
            status = 1
        finally:
            signal.alarm(0)
            os.dup2(kept, 2)
            os.close(kept)
            os.close(file)
        return status, output.read_text(errors="replace"), bool(self._shim.fault_fired())


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign."""
    return spawned("tests.faults.campaign_writes", folder, number)


def main(folder: pathlib.Path, number: int) -> None:
    """Prints the rows of so many tries; the process has loaded the library."""
    campaign = Writes(folder)
    chosen = itertools.islice((fault for fault in tries(campaign.calls) if fault.error != KILL), number)
    report(campaign, chosen, "one system call fails, once or from then on", "that a run makes as it starts or resumes")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
