"""Seconds from a command to what a user waits for: help, a run's progress bar and first step, the first token.

    python experiments/bench/start.py [--text=input.txt] [--model=FOLDER]

Each command is a process of its own in a terminal of 200 columns, so that it shows what it shows a user. Runs begin
with an empty cache once, then with that of the run before. Give the machine nothing else to do. README.md has results.
"""

import argparse
import fcntl
import os
import pathlib
import pty
import re
import shutil
import statistics
import struct
import subprocess
import tempfile
import termios
import time

BAR, STEP, TEXT = rb"0/\d+ \[", rb" 1/\d+ \[", rb"The function returns\s*\S"


def seen(command: list[str], marks: dict[str, bytes]) -> dict[str, float]:
    """Returns the seconds from the start of a command until its output has each of the marks, and until its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    start, output, found = time.perf_counter(), b"", {}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        while part := os.read(ours, 65536):
            output += part
            for name, mark in marks.items():
                if name not in found and re.search(mark, output):
                    found[name] = time.perf_counter() - start
    except OSError:  # the process has ended
        pass
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{' '.join(command)}\n{output.decode()}")
    return found | {"end": time.perf_counter() - start}


def train(folder: pathlib.Path, *flags: str) -> dict[str, float]:
    """Returns the seconds until the bar and the first step of a new run, whose cache is in `folder`."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    own = [f"--workdir={folder}/run", f"--config.data.cache_dir={folder}/cache", "--config.evaluation.batches=1"]
    return seen(["lmjax", "train", "--steps=2", *own, *flags], {"bar": BAR, "first step": STEP})


def told(name: str, rounds: list[dict[str, float]]) -> None:
    """Prints the medians."""
    medians = {mark: statistics.median(each[mark] for each in rounds) for mark in rounds[0]}
    print(f"{name:32}", ", ".join(f"{mark} {seconds:.2f} s" for mark, seconds in medians.items()), flush=True)


def main() -> None:
    """Prints the seconds of each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="a text, for runs of GPT-2; without it they are left out")
    parser.add_argument("--model", help="a folder with GPT-2's shapes, for its first token")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    again = range(args.rounds)
    for flags in (["--help"], ["train", "--help"], ["generate", "--help"], ["sweep", "--help"]):
        told(f"lmjax {' '.join(flags)}", [seen(["lmjax", *flags], {}) for _ in again])
    for imported in ("jax", "lmjax.commands.train"):
        told(f"import {imported}", [seen(["python", "-c", f"import {imported}"], {}) for _ in again])
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        told("the default run, no cache", [train(place)])
        told("the default run", [train(place) for _ in again])
        if args.text:
            flags = ("--preset=gpt2", "--length=512", "--batch_size=2", f"--data={args.text}")
            train(place, *flags)
            told("GPT-2, 2 x 512", [train(place, *flags) for _ in again])
    if args.model:
        generate = [
            "lmjax",
            "generate",
            f"--model={args.model}",
            "--prompt=The function returns",
            "--max_new_tokens=16",
        ]
        seen(generate, {})
        told("GPT-2's first token", [seen(generate, {"first token": TEXT}) for _ in again])


if __name__ == "__main__":
    main()
