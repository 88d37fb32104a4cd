"""Products of a few rows with kernels of GPT-2's sizes on a CPU, by the order of the kernel and form of the product.

    python experiments/bench/few_rows.py

The forms take turns; numbers are GB of kernels per second, medians. Give the machine nothing else to do. README.md has
results.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from lmjax.model.cpu import product_of_few
from lmjax.parallel.malloc import keep_freed_memory

KERNELS = ((768, 3072), (3072, 768), (768, 2304))
# Kernels of a step, so that they do not fit into the processor's caches.
COUNT = 24
# By name: whether the kernel has its outputs first, and the product.
FORMS = {
    "inputs first": (False, lambda x, kernel: x @ kernel),
    "outputs first": (True, lambda x, kernel: x @ kernel.T),
    "outputs first, rows as columns": (True, lambda x, kernel: product_of_few(x, kernel, None)),
}


def main() -> None:
    """Prints a line for each size of kernel and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,2,4,8,16,32,64,128,256")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    keep_freed_memory()
    draw = np.random.default_rng(0)
    for inputs, outputs in KERNELS:
        plain = [jax.numpy.asarray(draw.normal(size=(inputs, outputs)), "float32") for _ in range(COUNT)]
        kernels = {False: plain, True: [kernel.T.copy() for kernel in plain]}
        for rows in map(int, args.rows.split(",")):
            x = jax.numpy.asarray(draw.normal(size=(rows, inputs)), "float32")
            steps = {}
            for name, (first, form) in FORMS.items():
                step = jax.jit(lambda x, kernels, form=form: [form(x, kernel) for kernel in kernels])
                steps[name] = step.lower(x, kernels[first]).compile(), kernels[first]
            times = {name: [] for name in steps}
            for _ in range(args.rounds):
                for name, (step, given) in steps.items():
                    start = time.perf_counter()
                    jax.block_until_ready(step(x, given))
                    times[name].append(time.perf_counter() - start)
            size = 4e-9 * COUNT * inputs * outputs
            found = ", ".join(f"{name} {size / statistics.median(each):.1f}" for name, each in times.items())
            print(f"{inputs} x {outputs}, {rows} rows: {found}", flush=True)


if __name__ == "__main__":
    main()
