"""One of two processes of a run killed or stopped: whether and when the other one ends."""

from __future__ import annotations

import itertools
import pathlib
import random
import signal
import time
from collections.abc import Iterator

from tests.faults.test_processes import Pair


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign."""
    rng = random.Random(0)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(" ".join(rng.choices(["king", "queen", "sees", "goes"], k=30)) for _ in range(60)))
    kinds = list(itertools.product((signal.SIGKILL, signal.SIGSTOP), (0, 1)))
    for kind, (sent, victim) in enumerate(kinds):
        codes, worst = [], 0.0
        for index in range(kind, number, len(kinds)):
            with Pair(corpus, folder / f"run{index}") as pair:
                pair.train()
                begin = time.monotonic()
                pair.processes[victim].send_signal(sent)
                codes.append(pair.end(1 - victim, 120)[0])
                worst = max(worst, time.monotonic() - begin)
        right, name = sum(code == 70 for code in codes), signal.Signals(sent).name
        yield (
            f"| {name} to process {victim} of 2 | {len(codes)} | {right} of {len(codes)} survivors "
            f"end with 70; the last after {worst:.0f} s |"
        )
