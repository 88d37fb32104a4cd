"""Benchmark of lmjax's training step against transformers on torch; worker processes run in alternating turns.

    pip install torch==2.13.0 && pip install transformers      # the peer; on a GPU, torch's build for it
    python experiments/bench/train_step.py --workload=gpt2,bert_base,t5_small --dtype=float32,bfloat16
    python experiments/bench/train_step.py --workload=gpt2 --against=model.scan_layers=true   # one field against ours

Prints, for every workload and dtype: the median seconds of a step, tokens/s, the ratio to the faster of eager and
torch.compile, model FLOP/s and its share of the measured matmul peak, peak memory, and the time until the first step
was done. Ratios are medians of the ratios in each round, so that changes in the machine's speed affect both sides.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable

from workloads import WORKLOADS

HERE = pathlib.Path(__file__).parent


class Worker:
    """A process that runs steps on request; see `worker.serve`."""

    def __init__(self, name: str, command: list[str]):
        """Starts the process and waits until its first step is done."""
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{os.environ.get('PYTHONPATH', '')}"},
        )
        self.facts = self._answer()
        self.seconds: list[float] = []
        self.values: list[float] = []
        self.peak_memory_bytes = 0

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early, with code {self.process.wait()}; see its message above")
        return json.loads(line)

    def turn(self, steps: int, *, counted: bool) -> None:
        """Runs some steps; if `counted`, records the seconds of one step and the worker's answer."""
        print(json.dumps({"steps": steps}), file=self.process.stdin, flush=True)
        answer = self._answer()
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        if counted:
            self.seconds.append(answer["seconds"] / steps)
            self.values.append(answer["loss"])

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def commands(workload: str, dtype: str, args: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the workers' commands by name, ours first."""
    shared = [f"--workload={workload}", f"--dtype={dtype}"]
    ours = [str(HERE / "ours.py"), *shared]
    result = {"lmjax": [*ours, *(f"--field={f}" for f in args.field)]}
    if args.against:
        result["lmjax " + " ".join(args.against)] = [*ours, *(f"--field={f}" for f in args.against)]
    peer = [str(HERE / "peer.py"), *shared, f"--device={args.device}", f"--attention={args.attention}"]
    for name, extra in {"eager": [], "compile": ["--compile"]}.items():
        if name in args.peers:
            result[f"torch {name}"] = peer + extra
    return result


def measure(workload: str, dtype: str, args: argparse.Namespace) -> dict:
    """Returns one row for every worker of a workload, measured in alternating turns."""
    workers = []
    try:
        for name, command in commands(workload, dtype, args).items():
            workers.append(Worker(name, command))
        for round_number in range(-args.warmup, args.rounds):
            for worker in workers:
                worker.turn(args.steps, counted=round_number >= 0)
    finally:
        for worker in workers:
            worker.close()
    ours = workers[0]
    tokens, peak = ours.facts["tokens_per_step"], ours.facts["peak_flops"]
    rows = {}
    for worker in workers:
        seconds = statistics.median(worker.seconds)
        rows[worker.name] = {
            "seconds_per_step": seconds,
            "tokens_per_second": tokens / seconds,
            "lmjax_is_faster_by": statistics.median(b / a for a, b in zip(ours.seconds, worker.seconds, strict=True)),
            "model_flops_per_second": ours.facts["flops_per_step"] / seconds,
            "peak_share": peak and ours.facts["flops_per_step"] / seconds / peak,
            "peak_share_causal": peak and ours.facts["flops_per_step_causal"] / seconds / peak,
            "peak_memory_bytes": worker.peak_memory_bytes,
            "build_and_first_step_seconds": worker.facts["build_seconds"] + worker.facts["first_step_seconds"],
            "all_seconds": worker.seconds,
            "facts": worker.facts,
        }
    return rows


def table(workload: str, dtype: str, rows: dict) -> str:
    """Returns the rows of one workload as text."""
    w = WORKLOADS[workload]
    shape = f"{w.batch} x {w.length}" + (f" -> {w.target_length}" if w.target_length else "")
    lines = [
        f"{w.preset} {shape}, {dtype}",
        f"  {'':<28}{'s/step':>8}{'tokens/s':>10}{'ours is':>9}{'GFLOP/s':>9}{'of peak':>9}{'memory':>9}{'start':>8}",
    ]
    for name, row in rows.items():
        share = f"{row['peak_share']:.0%}" if row["peak_share"] else "?"
        lines.append(
            f"  {name:<28}{row['seconds_per_step']:>8.3f}{row['tokens_per_second']:>10,.0f}"
            f"{row['lmjax_is_faster_by']:>8.2f}x{row['model_flops_per_second'] / 1e9:>9,.0f}{share:>9}"
            f"{row['peak_memory_bytes'] / 2**30:>7.2f} G{row['build_and_first_step_seconds']:>7.1f}s"
        )
    return "\n".join(lines)


def run(
    args: argparse.Namespace,
    measure: Callable[[str, str, argparse.Namespace], dict],
    table: Callable[[str, str, dict], str],
) -> None:
    """Measures every workload in every dtype, prints the tables, and writes JSON if a file is named."""
    results = {}
    for workload in args.workload.split(","):
        for dtype in args.dtype.split(","):
            rows = results[f"{workload} {dtype}"] = measure(workload, dtype, args)
            print(table(workload, dtype, rows), flush=True)
    if args.output:
        about = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "command": sys.argv,
        }
        pathlib.Path(args.output).write_text(json.dumps(about | {"results": results}, indent=2) + "\n")


def main() -> None:
    """Runs the workloads of the command line, prints the tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="gpt2,bert_base,t5_small", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--dtype", default="float32,bfloat16", help="float32, bfloat16 (products; weights are float32)")
    parser.add_argument("--peers", default="eager,compile", help="which of eager, compile run; empty: none")
    parser.add_argument("--field", action="append", default=[], help="a field of our config, as model.remat=dots")
    parser.add_argument("--against", action="append", default=[], help="fields of a second worker of ours, to compare")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count")
    parser.add_argument("--warmup", type=int, default=2, help="turns before them")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn")
    parser.add_argument("--device", default="cpu", help="the peer's: cpu or cuda")
    parser.add_argument("--attention", default="sdpa", help="the peer's: sdpa, eager, flash_attention_2")
    parser.add_argument("--output", default="", help="a JSON file for the results")
    run(parser.parse_args(), measure, table)


if __name__ == "__main__":
    main()
