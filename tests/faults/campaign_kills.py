"""Runs killed again and again at any time, each compared bit for bit with a run that was not killed."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

STEPS, EVERY = 40, 5


@dataclasses.dataclass
class Record:
    """What became of the kills.

    Attributes:
        kills: how many processes were killed.
        runs: how many runs ended, each killed at least once.
        unequal: runs whose state or losses differ from those of a run that was not killed.
        lost: the most steps that were done, and were done again after a kill.
        restarted: kills after the first save that were followed by a start from step 0.
        seconds: of all processes together.
        longest: of the last process of a run, which was not killed.
    """

    kills: int = 0
    runs: int = 0
    unequal: int = 0
    lost: int = 0
    restarted: int = 0
    seconds: float = 0.0
    longest: float = 0.0


def config_of(folder: pathlib.Path) -> object:
    """Returns a run with dropout and accumulation, which reads its rows three times."""
    from lmjax.config import resolve

    rng, words = (
        random.Random(0),
        ["a", "the", "old", "young", "king", "queen", "river", "house", "tree", "goes", "sees", "under", "never"],
    )
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(" ".join(rng.choices(words, k=30)) for _ in range(90)))
    values = {
        "data.train": corpus, "data.held_out": 0.2, "data.cache_dir": folder / "cache", "tokenizer.kind": "char",
        "tokenizer.byte_fallback": "false", "batch_size": 8, "accumulation": 2, "task.length": 32, "steps": STEPS,
        "model.embed_dim": 16, "model.num_heads": 2, "model.mlp_dim": 32, "model.num_layers": 2,
        "model.max_length": 64, "model.dropout.residual": 0.1, "model.dropout.attention": 0.1,
        "evaluation.every": 10, "evaluation.batches": 2, "checkpoint.every": EVERY, "checkpoint.keep": 2,
        "logging.every": 1, "logging.tensorboard": "false",
    }  # fmt: skip
    return resolve(overrides={path: str(value) for path, value in values.items()})


def start(config: object, workdir: pathlib.Path, kill_in: Callable[[], None] | None = None) -> int:
    """Returns the number of a process, forked from this one, that trains; it has the imports behind it."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        from lmjax.commands.train import train

        if kill_in is not None:
            kill_in()
        train(config, workdir, progress=False)
        code = 0
    finally:
        os._exit(code)


def killed_in(place: str, call: int) -> Callable[[], None]:
    """Returns what makes a process kill itself in the `call`-th call of a function, `MODULE:NAME`."""

    def install() -> None:
        module, _, path = place.partition(":")
        owner = importlib.import_module(module)
        *owners, name = path.split(".")
        for part in owners:
            owner = getattr(owner, part)
        real, calls = getattr(owner, name), iter(range(1, 10**9))

        def fatal(*args: object, **options: object) -> object:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(owner, name, fatal)

    return install


def lines(workdir: pathlib.Path) -> Iterator[dict]:
    """Yields the whole lines of a run's metrics."""
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return


def progress(workdir: pathlib.Path) -> int:
    """Returns the last step that is written down."""
    return max((line["step"] for line in lines(workdir) if "train/loss" in line), default=0)


def newest(workdir: pathlib.Path) -> int:
    """Returns the step of the newest checkpoint."""
    from lmjax.training.checkpoint import saved_steps

    return max(saved_steps(workdir), default=0)


def digest(workdir: pathlib.Path) -> str:
    """Returns what must be equal: every leaf of the last state, and the loss of every step; read by another process."""
    code = (
        "import pathlib, sys; from tests.workdirs import bits, losses; folder = pathlib.Path(sys.argv[1])\n"
        f"print(sorted(bits(folder, {STEPS}).items()), sorted(losses(folder).items()))"
    )
    return subprocess.run([sys.executable, "-c", code, workdir], check=True, capture_output=True, text=True).stdout


def end(pid: int, seconds: float | None) -> tuple[int, bool]:
    """Returns the status of a process, and whether it was killed from here, after so many seconds."""
    limit = time.monotonic() + (3000 if seconds is None else seconds)
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, False
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1], True


class Campaign:
    """Kills runs, and compares them with one that is not killed."""

    def __init__(self, folder: pathlib.Path):
        """Trains the run to compare with, twice: the second has the compiled programs of the first."""
        self._folder, self._config, self._record = folder, config_of(folder), Record()
        self._number = 0
        for name in ("first", "whole"):
            begin = time.monotonic()
            status, _ = end(start(self._config, folder / name), None)
            assert status == 0, f"the run that is not killed ends with {status}"
            self.usual = time.monotonic() - begin
        self.whole = digest(folder / "whole")
        self.step_seconds = statistics.median(
            line["time/training"] if "time/training" in line else 1 / line["train/steps_per_second"]
            for line in lines(folder / "whole")
            if "train/steps_per_second" in line
        )

    def run(self, kills: Iterator[tuple[float | None, Callable[[], None] | None]]) -> None:
        """Trains one run to its end, killed as `kills` says before each process, by the time or by itself."""
        self._number += 1
        workdir, record = self._folder / str(self._number), self._record
        for seconds, kill_in in kills:
            saved, done = newest(workdir), progress(workdir)
            begin = time.monotonic()
            status, _ = end(start(self._config, workdir, kill_in), seconds)
            took = time.monotonic() - begin
            record.seconds += took
            if status == 0:
                record.longest = max(record.longest, took)
                break
            assert os.WIFSIGNALED(status), f"{workdir}: a process ended with {status} by itself"
            record.kills += 1
            record.lost = max(record.lost, progress(workdir) - newest(workdir))
            record.restarted += bool(saved) and newest(workdir) < saved
            assert progress(workdir) >= done or newest(workdir) >= saved
        record.runs += 1
        record.unequal += digest(workdir) != self.whole

    @property
    def kills(self) -> int:
        """How many processes were killed so far in the current record."""
        return self._record.kills

    @property
    def record(self) -> Record:
        """What became of the kills so far; from here on a new record is kept."""
        record, self._record = self._record, Record()
        return record


def row(name: str, record: Record, step_seconds: float) -> str:
    goodput = record.runs * STEPS * step_seconds / record.seconds
    return (
        f"| {name} | {record.kills} kills in {record.runs} runs | {record.runs - record.unequal} of {record.runs} runs "
        f"equal bit for bit; at most {record.lost} steps lost (a save every {EVERY}); {record.restarted} restarts from "
        f"before a checkpoint; goodput {100 * goodput:.0f} % of {record.seconds:.0f} s |"
    )


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign."""
    rng, campaign = random.Random(0), Campaign(folder)

    def at_any_time(limit: int) -> Iterator[tuple[float | None, None]]:
        for _ in range(limit):
            yield rng.uniform(0, 1.2 * campaign.usual), None
        yield None, None

    done = 0
    while done < number:
        before = campaign.kills
        campaign.run(at_any_time(min(10, number - done)))
        done += campaign.kills - before
        # The row so far, because a campaign of hours may be stopped.
        so_far = row("kill -9 at any time, so far", campaign._record, campaign.step_seconds)
        print(so_far, file=sys.stderr, flush=True)
    yield row("kill -9 at any time", campaign.record, campaign.step_seconds)
