"""System calls of a run that fail, or in which it is killed, one in each try: how it ends, and what the next one makes.

The calls are those that a run makes on its workdir and its cache, from Python and from the C++ code of tensorstore and
XLA, as faulty_calls.c sees them. Each try trains with one call failing, once or from then on; then the same command
without a fault must reach the state and the losses of a run that met no fault, bit for bit.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import errno
import itertools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

from tests.faults.campaign_kills import config_of
from tests.workdirs import resumed_from

STEPS, EVERY = 8, 2
_SOURCE = pathlib.Path(__file__).with_name("faulty_calls.c")
_ALWAYS, KILL = 2**31 - 1, -1
_FAILURES = {
    "create": (errno.ENOSPC, errno.EACCES, errno.EROFS, KILL),
    "open": (errno.EIO, errno.EACCES, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, KILL),
    "fsync": (errno.EIO, errno.ENOSPC, KILL),
    "truncate": (errno.EIO, KILL),
    "mkdir": (errno.ENOSPC, errno.EACCES, errno.EROFS, KILL),
    "rename": (errno.EIO, errno.ENOSPC, KILL),
    "unlink": (errno.EIO, errno.EACCES, KILL),
}
_SECONDS = 240
# Names that differ from try to try, and patterns of all of them.
_ROLES = (
    (r"/[0-9a-f]{32}(?=$|/)", "/[0-9a-f]{32}"),
    (r"/\d+(?=[./]|$)", "/[0-9]+"),
    (r"/events\.out\..*", "/events.*"),
    (r"(?<=/xla)/.*", "/.*"),
    (r"/\.tmp-store-[^/]*", "/\\.tmp-store-[^/]*"),
)


@dataclasses.dataclass(frozen=True)
class Try:
    """One fault.

    Attributes:
        scenario: "start", a new run, or "resume", one that goes on from a checkpoint.
        kind: the kind of call.
        pattern: of its path, below the folder of the try.
        when: the number of the first call that fails.
        until: the number of the last one.
        error: the error; KILL: the process is killed there.
    """

    scenario: str
    kind: str
    pattern: str
    when: int
    until: int
    error: int

    def __str__(self) -> str:
        what = "SIGKILL" if self.error == KILL else errno.errorcode[self.error]
        lasting = " and later" if self.until == _ALWAYS else ""
        return f"{self.scenario}: {self.kind} {self.pattern} (call {self.when}{lasting}): {what}"


def build(folder: pathlib.Path) -> pathlib.Path:
    """Returns the library that makes calls fail, compiled by gcc."""
    library = folder / "faulty_calls.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


def _pattern(path: str) -> str:
    """Returns a pattern that paths of one role have in common."""
    for number, (found, _) in enumerate(_ROLES):
        path = re.sub(found, f"/ROLE{number}ROLE", path)
    path = re.escape(path).replace(r"\-", "-")  # the C library knows no such escape
    for number, (_, pattern) in enumerate(_ROLES):
        path = path.replace(f"/ROLE{number}ROLE", pattern)
    return f"{path}$"


class Campaign:
    """Makes calls of runs fail, and compares what follows with a run that met no fault."""

    def __init__(self, folder: pathlib.Path):
        """Trains the run to compare with. The process has loaded the library of `build` with LD_PRELOAD."""
        from lmjax.config import replace

        self._folder, self._shim, self._number = folder, ctypes.CDLL(os.environ["LD_PRELOAD"]), 0
        fields = {"steps": STEPS, "checkpoint.every": EVERY, "evaluation.every": 4, "logging.tensorboard": True}
        self._config = replace(config_of(folder), fields)
        self.calls = {
            "start": self._traced("start", None),
            "resume": self._traced("resume", folder / "start" / "run"),
        }
        self._whole = self._digest("start")
        assert self._digest("resume") == self._whole

    def _traced(self, scenario: str, whole: pathlib.Path | None) -> collections.Counter[tuple[str, str]]:
        """Returns how often each kind of call is made on paths of each role, in a run without a fault."""
        place, log = self._folder / scenario, self._folder / f"{scenario}.calls"
        self._prepare(place, whole)
        status, text, _ = self._train(place, lambda: self._shim.fault_trace(os.fsencode(log)))
        assert status == 0, text
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for line in log.read_text(errors="replace").splitlines():
            kind, _, path = line.partition("\t")
            if path.startswith((f"{place}/run", f"{place}/cache")) and kind in _FAILURES:
                found[kind, _pattern(path.removeprefix(str(place)))] += 1
        return found

    def _prepare(self, place: pathlib.Path, whole: pathlib.Path | None) -> None:
        """Makes the folder of a try; `whole`: the run whose half is to go on."""
        place.mkdir()
        if whole is not None:
            resumed_from(whole, STEPS - EVERY, place / "run")

    def _digest(self, name: str) -> str:
        """Returns the last state and the losses of every step of the run in the folder of a try."""
        return (self._folder / name / "digest").read_text()

    def _fork(self, output: pathlib.Path, work: Callable[[], None]) -> tuple[int | None, str]:
        """Returns how a process ended that does some work, or None if it did not end, and what it wrote."""
        if not (pid := os.fork()):
            code = 1
            try:
                file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
                work()
                code = 0
            except BaseException as e:
                from lmjax.errors import UserError

                if isinstance(e, UserError):
                    print(f"lmjax: {e}", file=sys.stderr)
                    code = e.exit_code
                else:
                    traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        limit = time.monotonic() + _SECONDS
        while time.monotonic() < limit:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None, output.read_text(errors="replace")

    def _train(self, place: pathlib.Path, before: Callable[[], None] | None) -> tuple[int | None, str, bool]:
        """Returns how a process ended that trains, what it wrote, and whether a call failed in it."""
        from lmjax.config import replace

        config, fired = replace(self._config, {"data.cache_dir": str(place / "cache")}), place / "fired"

        def work() -> None:
            from lmjax.commands.train import train
            from tests.workdirs import bits, losses

            if before is not None:
                before()
            try:
                train(config, place / "run", progress=False)
            finally:
                self._shim.fault_pause()
                if self._shim.fault_fired():
                    fired.touch()
            digest = f"{sorted(bits(place / 'run', STEPS).items())}\n{sorted(losses(place / 'run').items())}\n"
            (place / "digest").write_text(digest)

        status, text = self._fork(place / "output", work)
        return status, text, fired.exists()

    def _unsound(self, workdir: pathlib.Path) -> list[str]:
        """Returns what is wrong with the checkpoints that a run left behind."""
        from lmjax.training import manifest
        from lmjax.training.checkpoint import checkpoint_folder, saved_steps

        return [problem for s in saved_steps(workdir) for problem in manifest.problems(checkpoint_folder(workdir, s))]

    def attempt(self, fault: Try) -> tuple[str, str]:
        """Returns "right" or what is wrong, and how the process with the fault ended."""
        self._number += 1
        place = self._folder / str(self._number)
        self._prepare(place, self._folder / "start" / "run" if fault.scenario == "resume" else None)
        if not fault.pattern.startswith("/cache") and (self._folder / "start" / "cache").exists():
            shutil.copytree(self._folder / "start" / "cache", place / "cache")
        pattern = re.escape(str(place)).replace(r"\-", "-") + fault.pattern
        setting = (fault.kind.encode(), pattern.encode(), fault.when, fault.until, fault.error)
        status, text, fired = self._train(place, lambda: self._shim.fault_set(*setting))
        ended = "killed" if status == -signal.SIGKILL else f"exit {status}"
        if status is None:
            return "it hangs", ended
        if not fired and ended != "killed":
            return "not reached", ended
        if "Traceback" in text or status == 1:
            return f"a traceback: {text[max(text.find('Traceback') - 200, 0) :][:3000]}", ended
        if ended != "killed" and status not in (0, 64, 65, 66, 74, 78):
            return f"the exit code {status}: {text[-500:]}", ended
        if status and ended != "killed" and str(place) not in text.splitlines()[-1]:
            return f"the message names no path: {text[-500:]}", ended
        if unsound := self._unsound(place / "run"):
            return f"a checkpoint that is not whole: {unsound}", ended
        if status:
            again, text, _ = self._train(place, None)
            if again != 0:
                return f"the next command ends with {again}: {text[-1500:]}", ended
        if self._digest(str(self._number)) != self._whole:
            return "another state or other losses than those of a run without a fault", ended
        shutil.rmtree(place)
        return "right", ended


def tries(calls: dict[str, collections.Counter[tuple[str, str]]]) -> Iterator[Try]:
    """Yields faults, in rounds: in each, every kind of call on every role of path has one more."""
    rng, groups = random.Random(0), []
    for scenario, kinds in calls.items():
        for (kind, pattern), count in kinds.items():
            places = [(1, 1), ((count + 1) // 2, _ALWAYS), (count, count)]
            each = [Try(scenario, kind, pattern, *place, e) for place in places for e in _FAILURES[kind]]
            rng.shuffle(each)
            groups.append(each)
    rng.shuffle(groups)
    yield from (fault for line in itertools.zip_longest(*groups) for fault in line if fault is not None)


def spawned(module: str, folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields what a module of this package prints, in a process that has loaded the library."""
    command = [sys.executable, "-m", module, str(folder), str(number)]
    with subprocess.Popen(
        command, env=os.environ | {"LD_PRELOAD": str(build(folder))}, stdout=subprocess.PIPE, text=True
    ) as process:
        yield from map(str.rstrip, process.stdout)


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign."""
    return spawned("tests.faults.campaign_calls", folder, number)


def report(campaign: Campaign, chosen: Iterable[Try], what: str, of: str) -> None:
    """Makes tries, prints each to standard error, and prints the row of all of them.

    Args:
        campaign: makes the tries.
        chosen: the tries.
        what: what happens to a call, for the row.
        of: whose calls they are.
    """
    counts: collections.Counter[str] = collections.Counter()
    ends: collections.Counter[str] = collections.Counter()
    for index, fault in enumerate(chosen, 1):
        outcome, ended = campaign.attempt(fault)
        counts[outcome.split(":")[0]] += 1
        ends[ended] += 1
        print(f"{index} {ended}: {fault}: {outcome}", file=sys.stderr, flush=True)
    roles = sum(map(len, campaign.calls.values()))
    listed = [", ".join(f"{count} {name}" for name, count in each.most_common()) for each in (counts, ends)]
    print(f"| {what}, of {roles} (kind of call on a kind of file) {of} | {counts.total()} | {'; '.join(listed)} |")


def _main(folder: pathlib.Path, number: int) -> None:
    campaign = Campaign(folder)
    chosen = itertools.islice(tries(campaign.calls), number)
    report(campaign, chosen, "one system call fails or kills", "of a run that starts and one that resumes")


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
