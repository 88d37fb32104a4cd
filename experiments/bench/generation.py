"""Benchmark of lmjax's generation against transformers' `generate` on torch; worker processes run in alternating turns.

    pip install torch==2.13.0 && pip install transformers      # the peer; on a GPU, torch's build for it
    python experiments/bench/generation.py --workload=gpt2_1,gpt2_8,gpt2_beam5 --dtype=float32

Both sides generate the same number of tokens for the same prompts. The peer runs twice: eager with its cache, and with
its static cache and torch.compile. Prints the median seconds of a batch of texts, tokens/s (of texts, not of beams),
the ratio (the median of the ratios in each round), seconds until the first token, the share of the memory bandwidth
(bytes of weights and cache read for each token, relative to the speed at which a large array is read), peak memory, and
the seconds until the first batch was done, compilation included.
"""

import argparse
import statistics

from generation_workloads import WORKLOADS
from train_step import HERE, Worker, run


def commands(workload: str, dtype: str, args: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the workers' commands by name, ours first."""
    shared = [f"--workload={workload}", f"--dtype={dtype}"]
    result = {"lmjax": [str(HERE / "ours_generation.py"), *shared, f"--cache={args.cache}"]}
    peer = [str(HERE / "peer_generation.py"), *shared, f"--device={args.device}"]
    for name, extra in {"eager": [], "compile": ["--compile"]}.items():
        if name in args.peers.split(","):
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
                worker.turn(1, counted=round_number >= 0)
    finally:
        for worker in workers:
            worker.close()
    ours, w = workers[0], WORKLOADS[workload]
    # On average, half of the generated tokens are in the cache.
    used = (w.prompt + w.new / 2) / (w.prompt + w.new)
    bytes_per_step = ours.facts["weights_bytes"] + used * ours.facts["cache_bytes"]
    rows = {}
    for worker in workers:
        seconds, first = statistics.median(worker.seconds), statistics.median(worker.values)
        step = (seconds - first) / (w.new - 1)
        rows[worker.name] = {
            "seconds": seconds,
            "tokens_per_second": w.batch * w.new / seconds,
            "lmjax_is_faster_by": statistics.median(b / a for a, b in zip(ours.seconds, worker.seconds, strict=True)),
            "seconds_to_first_token": first,
            "bandwidth_share": bytes_per_step / step / ours.facts["bandwidth"],
            "peak_memory_bytes": worker.peak_memory_bytes,
            "build_and_first_batch_seconds": worker.facts["build_seconds"] + worker.facts["first_step_seconds"],
            "all_seconds": worker.seconds,
            "facts": worker.facts,
        }
    return rows


def table(workload: str, dtype: str, rows: dict) -> str:
    """Returns the rows of one workload as text."""
    w = WORKLOADS[workload]
    how = f"beams {w.beams}" if w.beams > 1 else "greedy"
    bandwidth = next(iter(rows.values()))["facts"]["bandwidth"]
    lines = [
        f"{w.preset}, {w.batch} x {w.prompt} + {w.new} tokens, {how}, {dtype}; reads {bandwidth / 1e9:.1f} GB/s",
        f"  {'':<16}{'seconds':>8}{'tokens/s':>10}{'ours is':>9}{'first':>8}{'of bandw.':>11}{'memory':>9}{'start':>8}",
    ]
    for name, row in rows.items():
        lines.append(
            f"  {name:<16}{row['seconds']:>8.2f}{row['tokens_per_second']:>10.1f}{row['lmjax_is_faster_by']:>8.2f}x"
            f"{row['seconds_to_first_token']:>7.2f}s{row['bandwidth_share']:>11.0%}"
            f"{row['peak_memory_bytes'] / 2**30:>7.2f} G{row['build_and_first_batch_seconds']:>7.1f}s"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the workloads of the command line, prints the tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="gpt2_1,gpt2_8,gpt2_beam5", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16: of weights and compute, on both sides")
    parser.add_argument("--cache", default="compute", help="ours: compute or int8")
    parser.add_argument("--peers", default="eager,compile", help="which of eager, compile run; empty: none")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--warmup", type=int, default=1, help="turns before them")
    parser.add_argument("--device", default="cpu", help="the peer's: cpu or cuda")
    parser.add_argument("--output", default="", help="a JSON file for the results")
    run(parser.parse_args(), measure, table)


if __name__ == "__main__":
    main()
