"""Benchmark of the speed at which objectives make rows, compared with the speed at which nano models train on them.

    python experiments/bench/objectives.py                       # every objective, in every family
    python experiments/bench/objectives.py --objective=denoise,mlm+nsp --rounds=9

Host speed is that of one thread, from the token store to stacked arrays; training speed is that of the compiled step
with batches that are made already. Both are measured in alternating turns, and the ratio is the median over the rounds.
Below 1 the model waits for its data; at 5, even a model that is five times as fast does not. `--config.data.workers`
adds processes.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from lmjax.config import resolve
from lmjax.data.pipeline import example_stream
from lmjax.objectives.registry import OBJECTIVES, architectures, combinations
from lmjax.parallel.malloc import keep_freed_memory
from lmjax.parallel.mesh import to_device
from lmjax.runs.build import Run, build
from lmjax.training.state import state_maker
from lmjax.training.step import count_tokens, make_train_step

Batch = dict[str, np.ndarray]


def make_batch(run: Run, step: int) -> Batch:
    """Returns the batch of a step, made in this thread."""
    mixture, rows = run.train_examples.mixture, []
    for position in range(step * run.config.batch_size, (step + 1) * run.config.batch_size):
        epoch, row = mixture.row(position, run.config.seed)
        rows.append(run.train_examples(row, example_stream(run.config.seed, epoch, row)))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def measure(run: Run, rounds: int, batches: int) -> tuple[float, float, float]:
    """Returns tokens/s of the host, tokens/s of training, and the median ratio."""
    hparams = run.hparams
    make_state, abstract = state_maker(run.model, run.config.optimizer, hparams, 0, run.mesh)
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1), donate_argnums=0)
    with jax.set_mesh(run.mesh):
        compiled = step.lower(abstract, to_device(make_batch(run, 0), run.mesh), hparams).compile()
        state, numbers = make_state(), itertools.count()
        hosts, devices = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            made = [make_batch(run, next(numbers)) for _ in range(batches)]
            middle = time.perf_counter()
            placed = [to_device(batch, run.mesh) for batch in made]
            jax.block_until_ready(placed)
            begin = time.perf_counter()
            for batch in placed:
                state, metrics = compiled(state, batch, hparams)
            jax.block_until_ready(metrics)
            end = time.perf_counter()
            tokens = sum(int(count_tokens(batch)) for batch in made)
            hosts.append(tokens / (middle - start))
            devices.append(tokens / (end - begin))
    ratios = [host / device for host, device in zip(hosts, devices, strict=True)]
    return statistics.median(hosts), statistics.median(devices), statistics.median(ratios)


def main() -> None:
    """Prints a table, a line for every objective in every family that trains it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*OBJECTIVES, *map("+".join, combinations()), "span_corruption+prefix_lm+denoise"]
    parser.add_argument("--objective", default=",".join(everything), help="names; + joins those trained together")
    parser.add_argument("--rounds", type=int, default=5, help="how often host and training take turns")
    parser.add_argument("--batches", type=int, default=4, help="batches of a turn")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"{'objective':<36}{'family':<18}{'host tokens/s':>14}{'training':>12}{'ratio':>8}")
    for names in arguments.objective.split(","):
        objective = tuple(names.split("+"))
        for family in architectures(objective):
            with tempfile.TemporaryDirectory() as folder:
                workdir = pathlib.Path(folder)
                run = build(resolve(objective=objective, architecture=family), workdir)
                host, training, ratio = measure(run, arguments.rounds, arguments.batches)
            print(f"{names:<36}{family:<18}{host:>14,.0f}{training:>12,.0f}{ratio:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
