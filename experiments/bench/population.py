"""Benchmark of a population against the same runs by `lmjax train`, one after another: total wall time of both.

    python experiments/bench/population.py --members=16 --steps=100
    python experiments/bench/population.py --members=16 --steps=100 --alone=4      # 4 of the 16 runs alone, times 4
    python experiments/bench/population.py --members=2,4,8,16 --embed_dim=64,128,256 --alone=2 --figure=population.svg

The runs are nano decoders on the embedded corpus at different learning rates, of which `--embed_dim` sets the size.
Start-up and compilation count; the caches of tokens and programs are warm: both ways are run once before with few
steps. The population and the runs alone take turns in halves, so that changes in the machine's speed affect both; the
ratio of the processor times is a second view that other work on the machine affects less.
"""

import argparse
import itertools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from lmjax.sweep.charts import Curve, curves
from lmjax.sweep.charts import alone as svg_file

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


def measured(options: argparse.Namespace) -> dict:
    """Returns the seconds of both ways and their ratio, for one number of members and one size."""
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
    return {
        "members": options.members,
        "steps": options.steps,
        "embed_dim": options.embed_dim,
        "runs_alone": len(some),
        "population_seconds": round(population[0], 1),
        "alone_seconds": round(whole[0], 1),
        "ratio": round(whole[0] / population[0], 2),
        "ratio_of_processor_time": round(whole[1] / population[1], 2),
    }


def figure(found: list[dict], path: pathlib.Path) -> None:
    """Draws the ratio of wall times over the number of members, a line for each size."""
    lines = []
    for size in dict.fromkeys(row["embed_dim"] for row in found):
        points = sorted((row["members"], row["ratio"]) for row in found if row["embed_dim"] == size)
        members, ratios = zip(*points, strict=True)
        lines.append(Curve(f"width {size}", members, ratios, ratios, ratios))
    name = "time alone / time as one population"
    path.write_text(svg_file(curves(lines, "runs in the population", name, log=True)))


def main() -> None:
    """Prints a line for each number of members and each size, and draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 100), ("batch_size", 8), ("alone", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--members", default="16", help="numbers of runs, divided by commas")
    parser.add_argument("--embed_dim", default="128", help="widths, divided by commas; the MLP is three times as wide")
    parser.add_argument("--figure", help="an SVG file")
    options = parser.parse_args()
    found = []
    for size, members in itertools.product(options.embed_dim.split(","), options.members.split(",")):
        each = {"embed_dim": int(size), "mlp_dim": 3 * int(size), "members": int(members)}
        found.append(measured(argparse.Namespace(**vars(options) | each)))
        print(json.dumps(found[-1]), flush=True)
    if options.figure:
        figure(found, pathlib.Path(options.figure))


if __name__ == "__main__":
    main()
