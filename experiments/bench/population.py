"""Benchmark of a population against the same runs by `lmjax train`, one after another: total wall time of both.

    python experiments/bench/population.py --members=16 --steps=100
    python experiments/bench/population.py --members=16 --steps=100 --alone=4      # 4 of the 16 runs alone, times 4

The runs are nano decoders on the embedded corpus at different learning rates, of which `--embed_dim` sets the size.
Start-up and compilation count; the caches of tokens and programs are warm: both ways are run once before with few
steps. The population and the runs alone take turns in halves, so that changes in the machine's speed affect both; the
ratio of the processor times is a second view that other work on the machine affects less.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).parent


def flags(options: argparse.Namespace, steps: int) -> list[str]:
    """Returns the flags that all runs have in common."""
    return [
        f"--steps={steps}",
        f"--config.batch_size={options.batch_size}",
        f"--config.model.embed_dim={options.embed_dim}",
        f"--config.model.mlp_dim={options.mlp_dim}",
        "--config.evaluation.every=0",
        "--config.checkpoint.every=0",
        "--config.seeds.order=0",
        "--noprogress",
    ]


def lmjax(*arguments: str) -> np.ndarray:
    """Returns the wall time of a command of lmjax and its time on processors, in seconds, `[2]`."""
    began = clocks()
    command = [sys.executable, "-m", "lmjax.cli", *arguments]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return clocks() - began


def clocks() -> np.ndarray:
    """Returns the wall time, and the time on processors of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def together(options: argparse.Namespace, rates: list[str], steps: int, folder: pathlib.Path) -> np.ndarray:
    """Returns the seconds of the runs as one population."""
    grid = f"--grid=optimizer.learning_rate={','.join(rates)}"
    return lmjax("sweep", grid, *flags(options, steps), f"--workdir={folder}", "--run")


def alone(options: argparse.Namespace, rates: list[str], steps: int, folder: pathlib.Path) -> np.ndarray:
    """Returns the seconds of the runs, one after another."""
    return sum(
        lmjax("train", f"--config.optimizer.learning_rate={rate}", *flags(options, steps), f"--workdir={folder / rate}")
        for rate in rates
    )


def main() -> None:
    """Prints the seconds of both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("members", 16), ("steps", 100), ("batch_size", 8), ("embed_dim", 128), ("mlp_dim", 384),
                          ("alone", 0)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rates = [f"{1e-3 * 1.2**i:.6g}" for i in range(options.members)]
    some = rates[: options.alone or options.members]
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        together(options, rates, 1, folder / "warm")
        alone(options, rates[:1], 1, folder / "warm_alone")
        half = len(some) // 2
        seconds = alone(options, some[:half], options.steps, folder / "first")
        population = together(options, rates, options.steps, folder / "population")
        seconds += alone(options, some[half:], options.steps, folder / "second")
    whole = seconds * options.members / len(some)
    print(
        json.dumps(
            {
                "members": options.members,
                "steps": options.steps,
                "embed_dim": options.embed_dim,
                "runs_alone": len(some),
                "population_seconds": round(population[0], 1),
                "alone_seconds": round(whole[0], 1),
                "ratio": round(whole[0] / population[0], 2),
                "ratio_of_processor_time": round(whole[1] / population[1], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
