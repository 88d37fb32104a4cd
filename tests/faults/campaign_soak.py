"""A run that trains, evaluates and saves every few seconds beside a reader: its memory, open files and threads."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from tests.faults.campaign_kills import config_of, newest, progress, start

# Seconds between measurements, the share of the time at the beginning that is left out, and the parts whose means
# make a slope.
_EVERY, _BEGINNING, _BLOCKS = 5.0, 0.25, 10
# Steps between saves, which take a few seconds.
_INTERVAL = 100


def measure(pid: int) -> tuple[float, int, int]:
    """Returns a process's resident bytes, open files and threads."""
    process = pathlib.Path(f"/proc/{pid}")
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(os.listdir(process / "fd")), len(os.listdir(process / "task"))


def slope_of(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Returns the slope per hour, and half of its 95 % interval, by means of consecutive measurements.

    Means of blocks: consecutive measurements go up and down together, and are not that many independent ones.
    """
    x, y = (np.array([part.mean() for part in np.array_split(v, min(_BLOCKS, len(v)))]) for v in (hours, values))
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), 1.96 * float(covariance[0, 0]) ** 0.5


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign; `number`: minutes."""
    from lmjax.config import replace

    fields = {"steps": 10**7, "evaluation.every": _INTERVAL, "checkpoint.every": _INTERVAL, "logging.every": 40}
    workdir, reads, failed = folder / "run", 0, 0
    pid = start(replace(config_of(folder), fields), workdir)
    reader = [
        sys.executable,
        "-m",
        "lmjax",
        "generate",
        f"--workdir={workdir}",
        "--prompt=the king",
        "--max_new_tokens=4",
    ]
    begin, measured = time.monotonic(), []
    try:
        while time.monotonic() - begin < 60 * number:
            measured.append((time.monotonic() - begin, *measure(pid)))
            time.sleep(_EVERY)
            # A reader, every minute.
            trains = (workdir / "checkpoints").is_dir() and progress(workdir) > 2 * _INTERVAL
            if trains and measured[-1][0] // 60 > reads:
                done = subprocess.run(reader, capture_output=True, check=False)
                reads, failed = reads + 1, failed + (done.returncode != 0)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    times, resident, files, threads = np.array(measured).T
    for minute in range(0, number, 5):
        part = resident[(times >= 60 * minute) & (times < 60 * (minute + 5))]
        print(f"from minute {minute}: {part.mean() / 2**20:.1f} MiB", file=sys.stderr, flush=True)
    late = times > _BEGINNING * times[-1]
    slope, error = slope_of(times[late] / 3600, resident[late] / 2**20)
    memory = f"{resident[late].mean() / 2**20:.0f} MiB, slope {slope:+.1f} ± {error:.1f} MiB an hour"
    yield (
        f"| {number} minutes of training, evaluating and saving beside a reader | {progress(workdir)} steps, "
        f"{newest(workdir) // _INTERVAL} saves, {reads} reads ({failed} failed) | resident memory {memory}; open files "
        f"{files[late].min():.0f} to {files[late].max():.0f}, threads "
        f"{threads[late].min():.0f} to {threads[late].max():.0f} |"
    )
