"""The time of a training step without dropout, and with it by each generator of its masks, in turns in one process.

    python experiments/bench/dropout.py --workload=nanogpt,nano_t5

README.md has results.
"""

import argparse
import statistics
import time
import typing

from ours import build
from workloads import WORKLOADS

from lmjax.model.dropout import Generator
from lmjax.parallel.malloc import keep_freed_memory


def main() -> None:
    """Prints the median milliseconds of a step, of the clock and of the processor, for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="nanogpt", help="workloads of train_step.py, separated by commas")
    parser.add_argument("--rate", type=float, default=0.1, help="of the residual branches")
    parser.add_argument("--rounds", type=int, default=7, help="of 20 steps of every arm")
    args = parser.parse_args()
    keep_freed_memory()
    for name in args.workload.split(","):
        fields = {"model.scan_layers": "false"}
        arms = {"none": build(WORKLOADS[name], "float32", fields)[0]}
        for generator in typing.get_args(Generator):
            dropped = {"model.dropout.residual": str(args.rate), "model.dropout.generator": generator}
            arms[generator] = build(WORKLOADS[name], "float32", fields | dropped)[0]
        times = {arm: [] for arm in arms}
        for run in arms.values():
            run(5)
        for _ in range(args.rounds):
            for arm, run in arms.items():
                clock, processor = time.perf_counter(), time.process_time()
                run(20)
                times[arm].append((50 * (time.perf_counter() - clock), 50 * (time.process_time() - processor)))
        for arm, measured in times.items():
            clock, processor = (statistics.median(column) for column in zip(*measured, strict=True))
            print(f"{name:10} {arm:10} {clock:6.1f} ms/step, {processor:6.1f} ms of the processor")


if __name__ == "__main__":
    main()
