"""Counts the instructions of a tiny training step, of tokenizing, packing and decoding, with valgrind.

    python experiments/bench/instructions.py                 # all of them, in 10 minutes; needs valgrind
    python experiments/bench/instructions.py --what=packing

Instructions are the same on a busy and on a quiet machine, where times differ by a factor of two. valgrind offers
AVX2 and no AVX-512, so the programs that XLA compiles for it are the same on most processors. XLA is given one thread.
Each count is that of work repeated after a first, which compiles and loads what it needs; it is printed beside the
recorded one, and the command ends with code 1 if one is more than a tenth above it. tests/runs/test_ahead.py and
tests/runs/test_work.py hold compiled steps and the host's work to the same limit without valgrind.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

# Instructions, as counted with Python 3.11, jax 0.10.2 and valgrind 3.19.
RECORDED = {"step": 64_871_291, "tokenizing": 122_608_770, "packing": 10_427_349, "decoding": 15_749_861}


def step() -> Callable[[], object]:
    """Returns one training step of a nano decoder on 2 rows of 32 tokens."""
    import ours
    from workloads import WORKLOADS

    run, _ = ours.build(WORKLOADS["tiny"], "float32", {})
    return lambda: run(1)


def tokenizing() -> Callable[[], object]:
    """Returns the encoding of 100,000 characters of the embedded corpus by a small BPE tokenizer."""
    from lmjax.data.stdlib import documents
    from lmjax.data.tokenizer import TokenizerConfig, train_tokenizer

    texts, size = [], 0
    for document in documents(pairs=False):
        texts.append(" ".join(document.segments))
        size += len(texts[-1])
        if size > 100_000:
            break
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=1024))
    return lambda: [tokenizer.encode(text) for text in texts]


def packing() -> Callable[[], object]:
    """Returns the packing of 2,000 documents into rows of 512."""
    import numpy as np

    from lmjax.data.packing import pack

    lengths = np.random.default_rng(0).geometric(1 / 200, 2_000)
    return lambda: pack(lengths, max_piece=510, cost=lambda sizes: sizes + 2, capacity=512)


def decoding() -> Callable[[], object]:
    """Returns the reading of a prompt of 32 tokens and 8 greedy tokens after it by a nano decoder."""
    import ours_generation
    from generation_workloads import WORKLOADS

    run, _ = ours_generation.build(WORKLOADS["tiny"], "float32", "float32")
    return lambda: run(1)


SECTIONS = {function.__name__: function for function in (step, tokenizing, packing, decoding)}


def inside(name: str) -> None:
    """Does the work of a section twice: first not counted, then counted."""
    work = SECTIONS[name]()
    work()

    def count(state: str) -> None:
        subprocess.run(["callgrind_control", f"--instr={state}", str(os.getpid())], check=True, capture_output=True)

    count("on")
    work()
    count("off")


def instructions(name: str) -> int:
    """Returns the instructions of a section, counted in a process of its own."""
    with tempfile.NamedTemporaryFile() as profile:
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={profile.name}"]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [*valgrind, sys.executable, __file__, f"--inside={name}"], env=environ, capture_output=True, text=True
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{name}: valgrind ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found.group(1))


def main() -> None:
    """Prints the counts beside those recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--inside", choices=SECTIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args.inside)
        return
    above = []
    for name in args.what.split(","):
        count, recorded = instructions(name), RECORDED[name]
        print(f"{name:<12}{count:>16,} instructions, {count / recorded:.3f} of those recorded", flush=True)
        above += [name] if count > 1.1 * recorded else []
    if above:
        raise SystemExit(f"more than a tenth above those recorded: {', '.join(above)}")


if __name__ == "__main__":
    main()
